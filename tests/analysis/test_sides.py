"""No operand ends in a traceback: words, and run directories that are broken in every file.

A mistake of the user's ends in a line that begins with `error:` and in one of the exit codes of the
README; a traceback is what `rescue` raises in this process, and so fails the test.
"""

import json
import os
import random
import shutil
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, seed, settings
from hypothesis import strategies as st

from rescue_cli import recipe as recipes
from rescue_cli.rundir.planned import add_planned
from tests.conftest import Rescue
from tests.helpers.synthetic_runs import made_run, made_sweep

SMALL = ("model.width=4", "data.subset=[256,40]", "train.epochs=2")
CODES = {0, 1, 2, 3, 4, 6}
FAST, LONG = 150, 5000  # words, and half as many broken folders
NASTY: tuple[Any, ...] = (
    None, True, -1, 0, 0.5, 1e308, 10**23, 10**400, float("nan"), float("inf"), "", "x", "../x",
    "a\0b", [], [None], {}, {"set": "val"}, [[]], "ä" * 300,
)  # fmt: skip
Break = Callable[[Path, random.Random], None]


@pytest.mark.parametrize(
    ("word", "message"),
    [
        ("90/0", "'90/0' must have 1 to 1,000,000 runs."),
        ("90±0.1/" + "9" * 23, "must have 1 to 1,000,000 runs."),
        ("90±0.1/" + "9" * 5000, "must have 1 to 1,000,000 runs."),
        ("90±0.1/1", "'90±0.1/1' has a std, but one run has none."),
        ("90±60/5", "has a std larger than 5 accuracies in percent can have. Give 0 to 55.9."),
        ("9" * 400, "is not an accuracy in percent."),
        ("x" * 300, "is not a run, a sweep, a recipe or a number."),
        ("x" * 300 + ".yaml", "is not a run, a sweep, a recipe or a number."),
        ("a\0b", r"'a\x00b' is not a run"),
        ("/" * 5000, None),
        ("", None),
    ],
)
def test_an_unknown_word_is_refused_with_a_message(
    rescue: Rescue, word: str, message: str | None
) -> None:
    ended = rescue("compare", word, "80")
    assert ended.code in (2, 3)
    assert ended.err.startswith("error: ")
    assert message is None or message in ended.err
    assert len(ended.err) < 400


def test_a_typed_result_may_have_a_std_of_0(rescue: Rescue) -> None:
    assert rescue("compare", "90±0/5", "80±1.0/5").code == 0


def change_result(run: Path, change: Callable[[dict[str, Any]], None]) -> None:
    result = json.loads((run / "result.json").read_text())
    change(result)
    (run / "result.json").write_text(json.dumps(result))


def test_images_that_one_side_was_trained_on_are_a_warning(rescue: Rescue, tmp_path: Path) -> None:
    for name in "abc":
        made_run(tmp_path / name, 60.0 if name == "a" else 50.0, overrides=SMALL)

    def trained(result: dict[str, Any]) -> None:
        result["sets"][0]["protocol"]["trained_on"] = 33

    copies = "warning: test: 1 of 40 test images are training images too, the first x."
    change_result(tmp_path / "b", trained)
    change_result(tmp_path / "c", lambda result: result.update(notes=["skipped files: 2", copies]))
    ended = rescue("compare", "a", "b", "c", "--json")
    assert ended.code == 0
    lines = [
        "b: test: 33 of these 40 images were trained on, by their names and sizes; accuracy on "
        "them says nothing about new ones",
        "c: test: 1 of 40 test images are training images too, the first x.",
    ]
    assert ended.err.splitlines() == [f"warning: {line}" for line in lines]
    warnings = [side["warnings"] for side in json.loads(ended.out)["sides"]]
    assert warnings == [[], [lines[0]], [lines[1]]]


def test_classes_that_differ_are_named(rescue: Rescue, tmp_path: Path) -> None:
    for name in "ab":
        made_run(tmp_path / name, 60.0 if name == "a" else 50.0, overrides=SMALL)

    def rename(result: dict[str, Any]) -> None:
        result["sets"][0]["per_class"][3]["class"] = "parachute"
        del result["sets"][0]["per_class"][4:]

    assert "classes" not in rescue("compare", "a", "b").err
    change_result(tmp_path / "b", rename)
    assert rescue("compare", "a", "b").err.splitlines() == [
        "the classes differ: only a has 3, 4, 5 and 4 more; only b has parachute. Their images are "
        "not compared."
    ]


def test_an_evaluation_at_epoch_0_causes_no_division_by_zero(
    rescue: Rescue, tmp_path: Path
) -> None:
    made_run(tmp_path / "run", 60.0, overrides=SMALL, curve={0.0: 10.0, 2.0: 60.0})
    assert "reached 5 %" in rescue("compare", "run", "--to", "5").out
    made_run(tmp_path / "begun", 60.0, overrides=SMALL, curve={0.0: 60.0})
    ended = rescue("compare", "begun", "--to", "5")
    assert ended.code == 3
    assert "every line of metrics.jsonl is from epoch 0." in ended.err


@pytest.mark.parametrize(
    ("file", "old", "new", "message"),
    [
        ("result.json", '"seed"', '"sead"', "run/result.json: has no key seed."),
        ("result.json", '"top1"', '"top9"', "run/result.json: has no key sets[0].top1."),
        ("result.json", '"count": 40', '"count": "40"', "count: '40' is not a positive integer"),
        ("metrics.jsonl", '"epoch"', '"epok"', "run/metrics.jsonl, line 1: has no key epoch."),
        ("metrics.jsonl", '{"kind"', "{kind", "run/metrics.jsonl, line 1: not valid JSON"),
    ],
)
def test_an_invalid_file_is_named_with_a_remedy(
    rescue: Rescue, tmp_path: Path, file: str, old: str, new: str, message: str
) -> None:
    made_run(tmp_path / "run", 60.0, overrides=SMALL)
    path = tmp_path / "run" / file
    path.write_text(path.read_text().replace(old, new, 1))
    ended = rescue("compare", "run", "--to", "5")
    assert ended.code == 3
    assert message in ended.err or message.replace("sets[0].", "") in ended.err
    assert "Remove the" in ended.err


def test_a_failure_record_without_a_message_is_refused(rescue: Rescue, tmp_path: Path) -> None:
    made_sweep(tmp_path / "sweep", {0: 60.0}, overrides=SMALL, diverged={1: "the loss is nan."})
    file = tmp_path / "sweep" / "seed-1" / "failure.json"
    file.write_text('{"rank": 0, "exit_code": 4}')
    ended = rescue("report", "sweep")
    assert ended.code == 3
    assert "sweep/seed-1/failure.json: has no key message. Remove the file;" in ended.err


# --- fuzzing ---

NUMBERS = st.from_regex(
    r"[0-9]{0,4}(\.[0-9]{0,3})?((±|\+-|\+/-)[0-9.]{0,6})?(/[0-9]{0,25})?", fullmatch=True
)
WORDS = st.one_of(
    NUMBERS,
    st.text(max_size=400).filter(lambda word: not word.startswith("-")),
    st.sampled_from([*recipes.names(), "good", "sweep", ".", "..", "/", "~", "good/recipe.yaml"]),
)  # fmt: skip


def good(folder: Path) -> None:
    """A run and a sweep of which one seed diverged."""
    made_run(folder / "good", 60.0, overrides=SMALL)
    tops = {0: 60.0, 1: 62.5, 2: 65.0}
    made_sweep(folder / "sweep", tops, overrides=SMALL, diverged={3: "the loss is nan."})
    add_planned(folder / "sweep", [f"seed-{number}" for number in range(5)])


def _places(value: Any) -> list[tuple[Any, Any]]:
    """Each (container, key) in a JSON value."""
    items = value.items() if isinstance(value, dict) else enumerate(value)
    found = [(value, key) for key, _ in items]
    for container, key in list(found):
        if isinstance(container[key], dict | list):
            found += _places(container[key])
    return found


def _edit(text: str, draw: random.Random) -> str:
    """A JSON text with one key removed, or one value of another kind."""
    tree = json.loads(text)
    container, key = draw.choice(_places(tree))
    if draw.random() < 0.3:
        del container[key]
    else:
        container[key] = draw.choice(NASTY)
    return json.dumps(tree)


def edit(file: Path, draw: random.Random) -> None:
    if file.suffix == ".jsonl":
        lines = file.read_text().splitlines()
        place = draw.randrange(len(lines))
        lines[place] = _edit(lines[place], draw)
        file.write_text("\n".join(lines) + "\n")
    elif file.suffix == ".json":
        file.write_text(_edit(file.read_text(), draw))
    else:
        cut(file, draw)


def cut(file: Path, draw: random.Random) -> None:
    content = file.read_bytes()
    file.write_bytes(content[: draw.randrange(len(content))])


def flip(file: Path, draw: random.Random) -> None:
    content = bytearray(file.read_bytes())
    content[draw.randrange(len(content))] = draw.randrange(256)
    file.write_bytes(content)


def fill(file: Path, draw: random.Random) -> None:
    file.write_bytes(draw.choice([b"", b"\xff\xfe", b"[" * 100_000, b"null", b"{}", b"\n\n", b"1"]))


def folder_instead(file: Path, _draw: random.Random) -> None:
    file.unlink()
    file.mkdir()


def gone(file: Path, _draw: random.Random) -> None:
    file.unlink()


BREAKS: tuple[Break, ...] = (edit, edit, edit, edit, cut, flip, fill, folder_instead, gone)
CALLS = (
    ("compare", "good", "sweep"), ("compare", "sweep", "70±1.0/5"),
    ("compare", "good", "--to", "5"), ("compare", "sweep", "good", "--json", "--to", "30"),
    ("report", "good", "sweep"),
    ("report", "sweep", "--json"), ("report", "good", "sweep", "--csv"),
    ("report", "sweep", "good", "--markdown"), ("compare", "good", "--check-expected"),
)  # fmt: skip


def say_words(rescue: Rescue, tmp_path: Path, count: int) -> Counter[int]:
    good(tmp_path)
    codes: Counter[int] = Counter()

    @seed(28)
    @settings(
        max_examples=count, deadline=None, database=None,
        suppress_health_check=list(HealthCheck),
    )  # fmt: skip
    @given(st.lists(WORDS, min_size=1, max_size=3), st.sampled_from(["compare", "report"]))
    def each(words: list[str], verb: str) -> None:
        more = ["--json"] if verb == "report" else []
        ended = rescue(verb, *more, "--", *words)
        assert ended.code in CODES, (words, ended)
        codes[ended.code] += 1

    each()
    return codes


def break_folders(rescue: Rescue, tmp_path: Path, count: int) -> Counter[int]:
    good(tmp_path / "whole")
    codes: Counter[int] = Counter()
    for number in range(count):
        draw = random.Random(number)
        for name in ("good", "sweep"):
            shutil.rmtree(tmp_path / name, ignore_errors=True)
            shutil.copytree(tmp_path / "whole" / name, tmp_path / name)
        files = sorted(
            f for n in ("good", "sweep") for f in (tmp_path / n).rglob("*") if f.is_file()
        )
        file, how = draw.choice(files), draw.choice(BREAKS)
        how(file, draw)
        call = draw.choice(CALLS)
        try:
            ended = rescue(*call)
        except BaseException as error:
            place = os.path.relpath(file, tmp_path)
            raise AssertionError(f"{number}: {how.__name__} {place}: {call}") from error
        assert ended.code in CODES, (number, ended)
        codes[ended.code] += 1
    return codes


def test_no_word_ends_in_a_traceback(rescue: Rescue, tmp_path: Path) -> None:
    assert say_words(rescue, tmp_path, FAST).total() >= FAST


@pytest.mark.slow
def test_no_broken_folder_ends_in_a_traceback(rescue: Rescue, tmp_path: Path) -> None:
    assert set(break_folders(rescue, tmp_path, FAST // 2)) >= {0, 3}


@pytest.mark.long
def test_no_word_of_thousands_ends_in_a_traceback(rescue: Rescue, tmp_path: Path) -> None:
    codes = say_words(rescue, tmp_path, LONG)
    print(sorted(codes.items()))
    assert codes.total() >= LONG


@pytest.mark.long
def test_no_broken_folder_of_thousands_ends_in_a_traceback(rescue: Rescue, tmp_path: Path) -> None:
    codes = break_folders(rescue, tmp_path, LONG)
    print(sorted(codes.items()))
    assert codes.total() == LONG
