"""A run, a recipe, a study or a weights file from elsewhere runs no code, whatever it says."""

import hashlib
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from safetensors import safe_open
from safetensors.torch import save_file

from rescue_cli.rundir import RunDirectory
from tests.conftest import Ended, Rescue
from tests.helpers.own_code import NET, SMALL, write_ingredients
from tests.helpers.processes import start

MARK = "MARK_OF_FOREIGN_CODE"  # a file that the attacker's code writes where this is set
HARM = f"""
import os
from os import system
if "{MARK}" in os.environ:
    open(os.environ["{MARK}"], "w").close()
"""
TRAIN = ("train", "--recipe", "quickstart", NET, *SMALL, "train.epochs=1")


def train_at(home: Path, name: str, more: str) -> Path:
    """A run with a file of its own, by somebody whose state folder is another."""
    home.mkdir()
    file = write_ingredients(home, more=more)
    words = [*TRAIN, "--with", file, "--out", home / name]
    theirs = {"XDG_STATE_HOME": str(home / "state")}
    start(words, home / "told", environment=theirs).ends(0)
    return home / name


@pytest.fixture(scope="module")
def attackers(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return train_at(tmp_path_factory.mktemp("elsewhere") / "attacker", "run", HARM)


@pytest.fixture(scope="module")
def users(tmp_path_factory: pytest.TempPathFactory) -> Path:
    more = "from os import system"  # a function that the user's file has, and that is not its own
    return train_at(tmp_path_factory.mktemp("here") / "user", "run", more)


@pytest.fixture
def mark(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv(MARK, str(tmp_path / "mark"))
    return tmp_path / "mark"


@pytest.fixture
def foreign(attackers: Path, rescue: Rescue, tmp_path: Path) -> Path:
    """The attacker's run, which was copied here; its copy and its records agree."""
    del rescue  # sets up the folder
    return Path(shutil.copytree(attackers, tmp_path / "run"))


@pytest.fixture
def trusted(users: Path, rescue: Rescue, tmp_path: Path) -> Path:
    """A run of the user's own, whose file was given to a command here."""
    run = Path(shutil.copytree(users, tmp_path / "run"))
    assert rescue("plan", "-r", run / "recipe.yaml", "--with", run / "code" / "mine.py").code == 0
    assert rescue("eval", "run", "--out", "before").code == 0
    return run


def unfinished(run: Path) -> None:
    """As if it was killed: training resumes from its checkpoint."""
    RunDirectory(run).result.unlink()


def rewrite_weights(run: Path, old: str, new: str) -> None:
    """Changes the text of the recipe within the weights file."""
    file = RunDirectory(run).weights
    with safe_open(file, "pt") as content:
        metadata, names = content.metadata(), content.keys()
        tensors = {name: content.get_tensor(name) for name in names}
    assert old in metadata["recipe"]
    metadata["recipe"] = metadata["recipe"].replace(old, new)
    save_file(tensors, file, metadata)


def rewrite(run: Path, old: str, new: str) -> None:
    """Changes recipe.yaml and the recipe within the weights file."""
    text = RunDirectory(run).recipe.read_text()
    assert old in text
    RunDirectory(run).recipe.write_text(text.replace(old, new))
    rewrite_weights(run, old, new)


def digest(file: Path) -> str:
    return hashlib.sha256(file.read_bytes()).hexdigest()


def refused(ended: Ended, mark: Path, *words: str) -> None:
    assert ended.code == 2, ended.err
    assert not mark.exists(), "the code ran"
    for each in words:
        assert each in ended.err, ended.err


UNKNOWN = "code that you have not given to a command here. It runs only if you read it and say so: "


@pytest.mark.parametrize(
    "call",
    [
        ("eval", "run"),
        ("eval", "run/model.safetensors"),
        ("predict", "run", "run/curves.png"),
        ("train", "--resume", "--out", "run"),
        ("train", "--recipe", "run/recipe.yaml", "--out", "new"),
        ("plan", "--recipe", "run/recipe.yaml"),
        ("recipes", "check", "run/recipe.yaml"),
        ("seed-sweep", "--recipe", "run/recipe.yaml", "--seeds", "1"),
        ("tune", "--recipe", "run/recipe.yaml"),
        ("lr-range-test", "--recipe", "run/recipe.yaml", "--steps", "10"),
        ("train", "teacher={name: network, weights: run, temperature: 1, hard: 1, soft: 1}"),
        ("transfer", "--from", "run", "--to", "fashion-mini", "train.precision=float32"),
    ],
    ids=lambda call: " ".join(call)[:40],
)  # fmt: skip
def test_no_verb_runs_the_code_of_a_run_from_elsewhere(
    call: tuple[str, ...], foreign: Path, mark: Path, rescue: Rescue
) -> None:
    unfinished(foreign)
    refused(rescue(*call), mark, UNKNOWN + "--with ", "run/code/mine.py")


def test_what_only_reads_numbers_works_and_runs_nothing(
    foreign: Path, mark: Path, rescue: Rescue
) -> None:
    shutil.copytree(foreign, foreign.with_name("other"))
    assert rescue("compare", "run", "other").code == 0
    assert rescue("report", "run", "other", "--out", "page.html").code == 0
    assert rescue("recipes", "show", "run/recipe.yaml").code == 0
    assert not mark.exists()


def test_it_runs_where_the_user_gives_it_and_from_then_on(
    foreign: Path, mark: Path, rescue: Rescue
) -> None:
    assert rescue("eval", "run", "--with", foreign / "code" / "mine.py").code == 0
    assert mark.exists(), "the mark is a test of the attacks"
    mark.unlink()
    assert rescue("eval", "run").code == 0
    assert mark.exists()


@pytest.mark.parametrize(
    "call", [("eval", "run"), ("predict", "run", "run/curves.png"), ("train", "--dry-run")],
    ids=lambda call: call[0],
)  # fmt: skip
def test_a_file_that_is_not_used_is_refused(
    call: tuple[str, ...], trusted: Path, rescue: Rescue
) -> None:
    shutil.copy(trusted / "code" / "mine.py", "other.py")
    ended = rescue(*call, "--with", "other.py")
    of_run = " (its code: mine.py)" if "run" in call else ""
    assert (ended.code, ended.notes[-1]) == (
        2,
        f"error: --with: other.py: the recipe names nothing in that file{of_run}, so it would not "
        "be used. Remove it; a recipe names it as model.name=other.py:NAME.",
    )


def test_a_recipe_alone_runs_no_file_beside_it(mark: Path, rescue: Rescue, tmp_path: Path) -> None:
    file = write_ingredients(tmp_path, more=HARM)
    assert rescue("recipes", "copy", "quickstart", "own.yaml").code == 0
    recipe = tmp_path / "own.yaml"
    text = recipe.read_text().replace("name: resnet9,", "name: ./mine.py:Net,")
    recipe.write_text(text.replace(", logit_scale: 0.125", ""))
    refused(rescue("train", "--recipe", "own.yaml"), mark, "Give the file: --with mine.py")
    recipe.write_text(f"{recipe.read_text()}code: {{mine.py: {digest(file)}}}\n")
    refused(rescue("train", "--recipe", "own.yaml"), mark, "Give it: --with mine.py")
    refused(rescue("train", NET.replace("./", f"{tmp_path}/")), mark, "--with mine.py")
    assert not list(tmp_path.glob("runs/*/*"))


def test_a_study_runs_no_code(mark: Path, rescue: Rescue, tmp_path: Path) -> None:
    write_ingredients(tmp_path, more=HARM)
    (tmp_path / "study.yaml").write_text(
        "name: study\npaper: {title: T, url: https://example.org}\ncolumns: {what: name}\n"
        f'set: ["{NET}"]\ncells:\n  - {{recipe: quickstart, set: [], label: [a]}}\n'
    )
    refused(rescue("study", "study.yaml", "--plan"), mark, "--with mine.py")
    refused(rescue("study", "study.yaml"), mark, "--with mine.py")


def put_other_code(run: Path, attackers: Path) -> None:
    shutil.copy(attackers / "code" / "mine.py", run / "code" / "mine.py")


def put_link(run: Path, attackers: Path) -> None:
    (run / "code" / "mine.py").unlink()
    (run / "code" / "mine.py").symlink_to(attackers / "code" / "mine.py")


def put_link_to_folder(run: Path, attackers: Path) -> None:
    shutil.rmtree(run / "code")
    (run / "code").symlink_to(attackers / "code")


def put_pipe(run: Path, attackers: Path) -> None:
    del attackers
    (run / "code" / "mine.py").unlink()
    os.mkfifo(run / "code" / "mine.py")


def put_code_and_record(run: Path, attackers: Path) -> None:
    before = digest(run / "code" / "mine.py")
    put_other_code(run, attackers)
    rewrite(run, before, digest(run / "code" / "mine.py"))


def put_path_outside(run: Path, attackers: Path) -> None:
    rewrite(run, digest(run / "code" / "mine.py"), digest(attackers / "code" / "mine.py"))
    rewrite(run, "mine.py:Net", f"{attackers}/code/mine.py:Net")


def put_path_in_record(run: Path, attackers: Path) -> None:
    del attackers
    rewrite(run, "code: {mine.py:", "code: {../../evil.py:")


def put_no_hash(run: Path, attackers: Path) -> None:
    put_other_code(run, attackers)
    rewrite(run, "code: {mine.py: ", "code: {mine.py: x")


def put_function_of_an_import(run: Path, attackers: Path) -> None:
    del attackers
    rewrite(run, "mine.py:Net", "mine.py:system")


ATTACKS: dict[str, tuple[Callable[[Path, Path], None], str]] = {
    "the copy is another file": (put_other_code, "run/code/mine.py has "),
    "the copy is a link": (put_link, "run/code/mine.py has "),
    "the folder is a link": (put_link_to_folder, "run/code"),
    "the copy is a pipe": (put_pipe, "it is not here"),
    "the copy and the records are others": (put_code_and_record, UNKNOWN),
    "the name is a path to another file": (put_path_outside, "it is not here"),
    "the record is a path": (put_path_in_record, "code.../../evil.py:"),
    "the record is no hash": (put_no_hash, "is not the SHA-256 of a file of that name"),
    "what the file imports": (put_function_of_an_import, "defines no class or function"),
}


@pytest.mark.parametrize(("attack", "message"), ATTACKS.values(), ids=ATTACKS.keys())
def test_a_changed_run_of_the_users_own_runs_nothing_else(
    attack: Callable[[Path, Path], None],
    message: str,
    attackers: Path,
    trusted: Path,
    mark: Path,
    rescue: Rescue,
) -> None:
    attack(trusted, attackers)
    refused(rescue("eval", "run"), mark, message)
    unfinished(trusted)
    refused(rescue("train", "--resume", "--out", "run"), mark, message)


def test_a_changed_seed_of_a_sweep_is_not_trained(
    attackers: Path, mark: Path, rescue: Rescue, tmp_path: Path
) -> None:
    file = write_ingredients(tmp_path)
    words = ("seed-sweep", "--with", file, "--out", "sweep", NET, *SMALL, "train.epochs=1")
    assert rescue(*words, "--seeds", "2").code == 0
    run = tmp_path / "sweep" / "seed-1"
    put_code_and_record(run, attackers)
    unfinished(run)
    refused(rescue(*words, "--seeds", "2"), mark, "SHA-256")


def test_a_folder_that_others_may_write_to_says_nothing_of_trust(
    trusted: Path, rescue: Rescue, tmp_path: Path, mark: Path
) -> None:
    del trusted
    folder = tmp_path / ".state" / "rescue" / "trusted"
    assert rescue("eval", "run").code == 0
    folder.chmod(0o777)
    refused(rescue("eval", "run"), mark, UNKNOWN)


def test_a_copy_is_not_written_through_a_link(
    trusted: Path, rescue: Rescue, tmp_path: Path, mark: Path
) -> None:
    unfinished(trusted)
    (tmp_path / "elsewhere").mkdir()
    shutil.move(trusted / "code" / "mine.py", tmp_path / "mine.py")
    (trusted / "code").rmdir()
    (trusted / "code").symlink_to(tmp_path / "elsewhere")
    ended = rescue("train", "--resume", "--out", "run", "--with", "mine.py")
    refused(ended, mark, "run/code: is a link. Remove it.")
    assert not list((tmp_path / "elsewhere").iterdir())


def test_weights_alone_need_the_file_again(
    trusted: Path, rescue: Rescue, tmp_path: Path, mark: Path
) -> None:
    alone = tmp_path / "weights" / "model.safetensors"
    alone.parent.mkdir()
    shutil.move(trusted / "model.safetensors", alone)
    refused(rescue("eval", alone), mark, "it is not here. Give it: --with mine.py")
    words = ("--to", "fashion-mini", "--epochs", "1", "train.precision=float32", *SMALL[:1])
    refused(rescue("transfer", "--from", alone, *words), mark, "--with mine.py")
    ended = rescue("eval", alone, "--with", trusted / "code" / "mine.py", "--json")
    assert ended.code == 0, ended.err
    assert json.loads(ended.out)["count"] == 100
