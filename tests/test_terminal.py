"""Text on a terminal: paths break between names."""

import io
import sys

import pytest
from rich.console import Console

from rescue_cli.cli import common
from rescue_cli.runs.console import note

PATH = "runs/hymenoptera-experiments/transfer-layerwise/tf_efficientnet_lite0-imagenet/seed-0"


@pytest.mark.parametrize(
    ("width", "pieces"),
    [
        (110, [PATH]),
        (80, ["runs/hymenoptera-experiments/transfer-layerwise/",
              "tf_efficientnet_lite0-imagenet/seed-0"]),
        (56, ["runs/hymenoptera-experiments/", "transfer-layerwise/",
              "tf_efficientnet_lite0-imagenet/", "seed-0"]),
        (40, ["runs/", "hymenoptera-", "experiments/", "transfer-", "layerwise/",
              "tf_efficientnet_", "lite0-imagenet/", "seed-0"]),
    ],
)  # fmt: skip
def test_a_path_in_a_table_breaks_after_slashes_and_numbers_stay_whole(
    width: int, pieces: list[str]
) -> None:
    text = io.StringIO()
    table = common.table(["", "mean %", "95 %"], [[PATH, "98.31", "97.9 to 98.5"]], words=[""])
    Console(file=text, width=width).print(table)
    _, first, *others = text.getvalue().splitlines()
    assert first.endswith("   98.31  97.9 to 98.5")
    assert [first.split()[0], *map(str.strip, others)] == pieces


def test_a_sentence_breaks_at_spaces_and_its_paths_after_slashes(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    common.console().print(f"No significant difference between {PATH} and b:\n  more of it")
    assert capsys.readouterr().out.splitlines() == [
        "No significant difference between runs/hymenoptera-experiments/",
        "transfer-layerwise/tf_efficientnet_lite0-imagenet/seed-0 and b:",
        "  more of it",
    ]
    common.console().print(f"{'x' * 60} runs/study/procedures/3 and b")
    assert capsys.readouterr().out.splitlines() == ["x" * 60, "runs/study/procedures/3 and b"]


def test_a_note_breaks_between_words_on_a_terminal_and_nowhere_on_a_pipe(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    message = f"two words\n  --from {PATH} sets: data.name=folder and more"
    note(message)
    assert capsys.readouterr().err == f"{message}\n"
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    monkeypatch.setenv("COLUMNS", "60")
    note(message)
    assert capsys.readouterr().err.splitlines() == [
        "two words", "  --from", PATH, "sets: data.name=folder and more",
    ]  # fmt: skip


def test_headings_of_numbers_break_before_a_name_or_a_figure_does(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    headings = ["row", "procedure", "paper val %", "measured %", "time (s)"]
    row = ["1", "pytorch", "76.10", "64.71 ± 2.90 (3)", "1041"]

    def printed(width: int) -> list[str]:
        monkeypatch.setenv("COLUMNS", str(width))
        common.console().print(common.table(headings, [row], words=["procedure"]))
        return [line.rstrip() for line in capsys.readouterr().out.splitlines()]

    assert printed(80)[0] == "row  procedure  paper val %        measured %  time (s)"
    assert printed(54) == [
        "                paper",
        "row  procedure  val %        measured %  time (s)",
        "  1  pytorch    76.10  64.71 ± 2.90 (3)      1041",
    ]
