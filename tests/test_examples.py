"""Every script in `examples/` runs, with fewer images than it is written for."""

import runpy
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

EXAMPLES = Path(__file__).parents[1] / "examples"
SMALL = ["data.subset=[128,64]", "train.epochs=1"]


def run(name: str, *arguments: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", [name, *arguments])
    runpy.run_path(str(EXAMPLES / name), run_name="__main__")


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
    assert [file.name for file in files] == ["compare.py", "predict.py", "train.py"]
    for file in files:
        assert f"python examples/{file.name}" in file.read_text()
