"""Every file in `examples/` runs, with fewer images than it is written for."""

import runpy
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.conftest import Rescue

EXAMPLES = Path(__file__).parents[1] / "examples"
SMALL = ["data.subset=[128,64]", "train.epochs=1"]


def run(name: str, *arguments: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", [name, *arguments])
    runpy.run_path(str(EXAMPLES / name), run_name="__main__")


@pytest.mark.slow
def test_the_examples_run_one_after_another(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    Image.fromarray(np.zeros((28, 28), np.uint8)).save("image.png")
    run("train.py", *SMALL, monkeypatch=monkeypatch)
    assert "runs/quickstart/0: top-1" in capsys.readouterr().out
    run("predict.py", "runs/quickstart/0", "image.png", monkeypatch=monkeypatch)
    assert "with flips\nimage.png: " in capsys.readouterr().out
    run("compare.py", SMALL[0], monkeypatch=monkeypatch)
    assert "(3 runs)\nruns/smoothing/smoothed: " in capsys.readouterr().out


def test_every_example_is_run_and_says_what_it_shows() -> None:
    files = sorted(EXAMPLES.glob("*.py"))
    scripts = ["compare.py", "predict.py", "train.py"]
    assert [file.name for file in files] == sorted([*scripts, "ingredients.py"])
    for name in scripts:
        assert f"python examples/{name}" in (EXAMPLES / name).read_text()


def test_the_ingredients_of_ones_own_train_as_their_file_says(
    rescue: Rescue, tmp_path: Path
) -> None:
    text = (EXAMPLES / "ingredients.py").read_text()
    calls = [line.split()[1:] for line in text.splitlines() if line.startswith("    rescue ")]
    assert [call[0] for call in calls] == ["seed-sweep", "seed-sweep", "compare"]
    small = ["--seeds", "2", "data.subset=[256,64]", "train.epochs=1", "schedule.epochs=[0,0.5,1]"]
    for call in calls[:2]:
        words = [str(EXAMPLES.parent / w) if w.startswith("examples/") else w for w in call]
        assert "--seeds" in words
        ended = rescue(*words, *small)
        assert ended.code == 0, ended.err
    ended = rescue(*calls[2])
    assert ended.code == 0, ended.err
    assert "runs/sweep/own" in ended.out
    copied = tmp_path / "runs" / "sweep" / "own" / "seed-1" / "code" / "ingredients.py"
    assert copied.read_text() == text
