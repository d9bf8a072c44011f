"""metrics.jsonl is read line by line, as it would be read at once."""

import json
from pathlib import Path
from typing import Any

import pytest

from rescue_cli.engine.recorder import Recorder
from rescue_cli.errors import DataError
from rescue_cli.rundir import RunDirectory, each_line, read_metrics, read_text


def train(step: int, loss: float | None = 1.5, **more: Any) -> dict[str, Any]:
    return {"kind": "train", "step": step, "epoch": step / 4, "loss": loss, "lr": 0.1,
            "seconds": step * 0.5, **more}  # fmt: skip


def evaluation(step: int, *, top1: float = 50.0) -> dict[str, Any]:
    return {"kind": "eval", "step": step, "epoch": step / 4, "set": "val", "size": 28, "crop": 1.0,
            "tta": "none", "loss": 1.0, "top1": top1}  # fmt: skip


RUN = [
    train(0),
    train(1, 1.4, momentum=None),
    train(2, 1.3, momentum=0.9),
    evaluation(2),
    train(3),
    train(4),
    evaluation(4),
]


def text_of(lines: list[dict[str, Any]]) -> str:
    return "".join(json.dumps(line) + "\n" for line in lines)


@pytest.mark.parametrize("cut", ["", '{"kind": "tra', json.dumps(train(5))])
def test_a_last_line_without_its_end_is_left_out(cut: str, tmp_path: Path) -> None:
    (tmp_path / "m").write_text(text_of(RUN) + cut)
    assert read_metrics(tmp_path / "m") == list(each_line(tmp_path / "m")) == RUN


def test_lines_may_end_as_on_windows(tmp_path: Path) -> None:
    (tmp_path / "m").write_bytes(text_of(RUN).replace("\n", "\r\n").encode())
    assert read_metrics(tmp_path / "m") == RUN


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("", "m, line 8: not valid JSON: Expecting value: line 1 column 1 (char 0). Remove the"),
        ("[1]", "m, line 8: not a JSON object. Remove the line."),
        ('{"kind": ["x"]}', "m, line 8: kind: ['x'] is not train or eval."),
        (json.dumps(train(4, None)), "m, line 8: loss: None is not a number."),
        (json.dumps(train(4, momentum="x")), "m, line 8: momentum: 'x' is not a finite number"),
        (json.dumps(train(4, epoch=1e6 + 1)), "epoch: 1000001.0 is not a number from 0 to 1,000"),
        (json.dumps(train(4, seconds=-0.5)), "seconds: -0.5 is not a non-negative number."),
        (json.dumps(train(4, lr=True)), "m, line 8: lr: True is not a number."),
        (json.dumps(train(3)), "m, line 8: step: 3 comes after 4. Remove the line."),
        (
            json.dumps(evaluation(4, top1=100.5)),
            "m, line 8: top1: 100.5 is not a number from 0 to 100.",
        ),
    ],
)
def test_a_wrong_line_is_named(line: str, message: str, tmp_path: Path) -> None:
    (tmp_path / "m").write_text(f"{text_of(RUN)}{line}\n")
    with pytest.raises(DataError) as error:
        read_metrics(tmp_path / "m")
    assert message in str(error.value)


def test_a_loss_may_be_any_number_of_json(tmp_path: Path) -> None:
    lines = [train(0, float("nan")), train(1, float("inf")), train(2, 3), train(3, -(10**30))]
    (tmp_path / "m").write_text(text_of(lines))
    assert text_of(read_metrics(tmp_path / "m")) == text_of(lines)


def test_bytes_that_are_not_utf8_are_located_in_the_whole_file(tmp_path: Path) -> None:
    (tmp_path / "m").write_bytes(text_of(RUN).encode() + b"\xff\n")
    with pytest.raises(DataError) as whole:
        read_text(tmp_path / "m")
    with pytest.raises(DataError) as by_line:
        read_metrics(tmp_path / "m")
    assert str(by_line.value) == str(whole.value)
    assert f"position {len(text_of(RUN))}" in str(whole.value)


@pytest.mark.parametrize("step", [0, 2, 3, 4, 9])
@pytest.mark.parametrize("writes", [True, False])
def test_a_resumed_run_keeps_the_lines_until_its_step(
    step: int, tmp_path: Path, *, writes: bool
) -> None:
    for evaluated in (-1, step):
        run = RunDirectory(tmp_path)
        run.metrics.write_text(text_of(RUN) + '{"kind": "train", "st')
        recorder = Recorder(run, writes=writes, steps=9, progress=False)
        recorder.open_metrics(step, evaluated)
        recorder.close()
        kept = [
            line for line in RUN
            if line["step"] < step
            or (line["step"] == step and (line["kind"] == "train" or evaluated == step))
        ]  # fmt: skip
        losses = [line["loss"] for line in kept if line["kind"] == "train"]
        assert (recorder.first_loss, recorder.last_loss) == (losses[0], losses[-1])
        whole = text_of(RUN) + '{"kind": "train", "st'
        assert run.metrics.read_text() == (text_of(kept) if writes else whole)


def test_a_run_with_a_wrong_line_does_not_resume_and_loses_nothing(tmp_path: Path) -> None:
    run = RunDirectory(tmp_path)
    text = text_of([*RUN, train(3)])
    run.metrics.write_text(text)
    recorder = Recorder(run, writes=True, steps=9, progress=False)
    with pytest.raises(DataError, match="step: 3 comes after 4"):
        recorder.open_metrics(9, -1)
    assert run.metrics.read_text() == text
    assert list(tmp_path.iterdir()) == [run.metrics]
