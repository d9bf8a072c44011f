"""The 25 architectures: the paper's figures beside ours, which are counted anew here."""

import json
import sys
from typing import Any

import pytest
import timm
import torch
from torch import nn

from rescue_cli import estimate
from rescue_cli.cli import main
from rescue_cli.recipe import architectures

TABLE = architectures.table()
ROWS: list[dict[str, Any]] = TABLE["architectures"]
NAMES = [row["name"] for row in ROWS]
ORIGINAL = {"o", "p"}  # notes that the paper's figure is that of another publication


def run_rescue(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> int:
    monkeypatch.setattr(sys, "argv", ["rescue", *arguments])
    monkeypatch.setenv("COLUMNS", "80")
    with pytest.raises(SystemExit) as ended:
        main()
    assert isinstance(ended.value.code, int)
    return ended.value.code


def test_the_table_has_the_papers_25_networks_and_their_figures() -> None:
    assert len(set(NAMES)) == 25
    row = architectures.row_of("resnet50.a1_in1k")
    assert row is not None
    assert row["sizes"] == {"a1-a2": [224, 224], "a3": [160, 224]}
    assert row["cost"] == {
        "a1": {"hours": 110, "gpus": 4, "memory_gb": 22.0},
        "a2": {"hours": 55, "gpus": 4, "memory_gb": 22.0},
        "a3": {"hours": 15, "gpus": 4, "memory_gb": 11.4},
    }
    assert row["top1"] == {"a1": 80.4, "a2": 79.8, "a3": 78.1, "original": 76.1}
    assert (row["real"], row["v2"]) == (85.7, 68.7)
    assert (row["images_per_second"], row["memory_mb"]) == (2536.6, 1155)
    assert architectures.row_of("nosuch") is None


def test_every_row_is_complete_and_a1_takes_twice_the_hours_of_a2() -> None:
    for row in ROWS:
        a1, a2 = row["cost"]["a1"], row["cost"]["a2"]
        assert (a1["hours"], a1["gpus"]) == (2 * a2["hours"], a2["gpus"])
        for cost in row["cost"].values():
            assert architectures.BATCH % cost["gpus"] == 0
        for column in architectures.COLUMNS:
            train, test = row["sizes"][column]
            assert 160 <= train <= test <= 416
        assert set(row["notes"]) <= set(TABLE["notes"])
        assert timm.is_model(row["name"])


def test_the_two_networks_whose_a1_results_the_tables_swap_are_marked() -> None:
    swapped = {row["name"]: row["top1"] for row in ROWS if "s" in row["notes"]}
    small, medium = swapped["efficientnetv2_rw_s"], swapped["efficientnetv2_rw_m"]
    assert len(swapped) == 2
    assert (small["a1"], small["a1_table4"]) == (medium["a1_table4"], medium["a1"]) == (82.3, 80.6)


@pytest.mark.parametrize("row", ROWS, ids=NAMES)
def test_ours_is_counted_on_timms_network_and_equals_the_paper_or_says_why(
    row: dict[str, Any],
) -> None:
    test_size = row["sizes"]["a1-a2"][1]
    with torch.device("meta"):
        network = timm.create_model(row["name"])
    found = estimate.flops(network, test_size)
    assert row["ours"] == {
        "parameters": estimate.parameters(network),
        "multiply_adds": found.multiply_adds,
        "normalised": found.normalised,
    }
    notes = set(row["notes"])
    equal = f"{row['ours']['parameters'] / 1e6:.1f}" == f"{row['parameters_m']:.1f}"
    assert equal != bool(notes & ORIGINAL)
    alone = f"{found.multiply_adds / 1e9:.1f}" == f"{row['flops_g']:.1f}"
    with_norms = (found.multiply_adds + 5 * found.normalised) / 1e9
    if "o" not in notes:
        assert alone != ("n" in notes)
        assert f"{with_norms:.1f}" == f"{row['flops_g']:.1f}"


def test_multiply_adds_of_a_small_network_by_hand() -> None:
    with torch.device("meta"):
        network = nn.Sequential(
            nn.Conv2d(3, 4, 3, padding=1), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(256, 10)
        )
    found = estimate.flops(network, 8)
    assert found == estimate.Flops(multiply_adds=8 * 8 * 4 * 27 + 256 * 10, normalised=8 * 8 * 4)
    assert network.training
    assert not network[1]._forward_hooks


def test_models_prints_the_table_in_80_columns_with_paper_and_ours_apart(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run_rescue(monkeypatch, "models") == 0
    lines = capsys.readouterr().out.splitlines()
    assert max(map(len, lines)) <= 80
    assert [line.split()[0] for line in lines[1:26]] == NAMES
    assert lines[4].split() == (
        ["resnet101", "224", "160>224", "44.5", "44.55", "7.9", "7.80", "81.5", "81.3", "79.8", "n"]
    )
    assert "…" not in "".join(lines)


def test_models_prints_one_network_whole(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run_rescue(monkeypatch, "models", "ecaresnet269d") == 0
    out = capsys.readouterr().out
    assert max(map(len, out.splitlines())) <= 80
    rows = [line.split() for line in out.splitlines()]
    assert ["multiply-adds,", "G", "70.6", "69.905"] in rows
    assert ["with", "5", "per", "normalised", "element", "70.611"] in rows
    assert ["A3", "256>320", "11", "32", "17.8", "83.3"] in rows


def test_models_as_json_and_an_unknown_name(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run_rescue(monkeypatch, "models", "--json") == 0
    assert json.loads(capsys.readouterr().out) == TABLE
    assert run_rescue(monkeypatch, "models", "ViT-B", "--json") == 0
    assert json.loads(capsys.readouterr().out)["name"] == "vit_base_patch16_224"
    assert run_rescue(monkeypatch, "models", "regnety_40") == 2
    assert capsys.readouterr().err == (
        "error: models: 'regnety_40' is not in the table. Did you mean 'regnety_040'?\n"
    )
