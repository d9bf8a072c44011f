"""Ingredients from the user's own files, through the command: what runs, resumes and is refused."""

import shutil
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.torch import load_file

import rescue_cli as rescue_package
from rescue_cli.recipe import own, recipe_in
from rescue_cli.rundir import RunDirectory, read_result
from tests.conftest import Rescue
from tests.helpers.own_code import NET, NET_LOSS_NOISE, SMALL, write_ingredients
from tests.helpers.processes import assert_same, group_of, start, trained


def weights_of(run: Path) -> dict[str, Any]:
    return {name: tensor.numpy() for name, tensor in load_file(RunDirectory(run).weights).items()}


def assert_equal_weights(a: Path, b: Path) -> None:
    first, second = weights_of(a), weights_of(b)
    assert first.keys() == second.keys()
    for name, values in first.items():
        np.testing.assert_array_equal(values, second[name])


def test_a_net_a_loss_and_an_augmentation_train_and_are_evaluated_without_being_given_again(
    rescue: Rescue, tmp_path: Path
) -> None:
    file = write_ingredients(tmp_path)
    ended = rescue("train", "--with", file, "--out", "run", *NET_LOSS_NOISE, *SMALL)
    assert ended.code == 0, ended.err
    recipe = recipe_in(tmp_path / "run")
    digest = recipe.code["mine.py"]
    assert f"code of your own: mine.py (SHA-256 {digest[:12]})" in ended.out
    assert (tmp_path / "run" / "code" / "mine.py").read_bytes() == file.read_bytes()
    result = read_result(RunDirectory(tmp_path / "run"))
    assert result["code"] == f"mine.py (SHA-256 {digest[:12]})"

    file.unlink()  # what follows uses the run's copy
    ended = rescue("eval", "run", "--out", "evaluated")
    assert ended.code == 0, ended.err
    assert read_result(RunDirectory(tmp_path / "evaluated"))["top1"] == result["top1"]
    assert rescue("predict", "run", "run/curves.png").code == 0
    words = ("--to", "fashion-mini", "--out", "moved", "train.precision=float32", *SMALL)
    ended = rescue(
        "transfer", "--recipe", "transfer", "--from", "run", *words
    )  # another recipe with the same network
    assert ended.code == 0, ended.err
    (moved,) = (tmp_path / "moved").rglob("recipe.yaml")
    assert recipe_in(moved.parent).code == recipe.code
    assert rescue("report", "run", "--out", "page.html").code == 0
    assert digest in (tmp_path / "page.html").read_text()
    assert "mine.py (SHA-256" in rescue("plan", "--recipe", "run/recipe.yaml").out


def test_each_kind_of_ingredient_can_be_of_ones_own(rescue: Rescue, tmp_path: Path) -> None:
    file = write_ingredients(tmp_path)
    ended = rescue(
        "train", "--with", file, "--out", "run", *NET_LOSS_NOISE,
        "data={name: ./mine.py:Stripes, noise: 20}", "eval.sizes=[12]", "train.batch_size=32",
        "optim={name: ./mine.py:Sign, lr: 0.01, weight_decay: 1e-4, no_decay: [biases]}",
        "schedule={name: ./mine.py:halving, times: 4}", "train.epochs=8", "train.log_every=1",
        "train.device_batch_size=32",
    )  # fmt: skip
    assert ended.code == 0, ended.err
    run = rescue_package.open_run("run")
    assert run.result["top1"] == 100.0
    rates = run.metrics()["lr"]
    np.testing.assert_allclose(np.unique(rates), [0.00125, 0.0025, 0.005, 0.01])
    assert "horizontal" in rescue("predict", "run", "run/curves.png").out
    # A subset and held-out images are taken of it as of any set
    words = ("--out", "held", "data.holdout=32", "data.subset=[32,10]", "train.epochs=1")
    assert rescue("train", "--recipe", "run/recipe.yaml", *words).code == 0
    assert read_result(RunDirectory(tmp_path / "held"))["count"] == 10


def test_functions_that_do_what_ours_do_train_the_same_weights(
    rescue: Rescue, tmp_path: Path
) -> None:
    (tmp_path / "ours.py").write_text("""
from rescue_cli.sections.augment import AUGMENTATIONS
from rescue_cli.sections.model import MODELS
from rescue_cli.sections.optim import OPTIMIZERS
from rescue_cli.sections.schedule import Rates

def net(classes, channels, *, width: int):
    return MODELS["resnet9"](classes, channels, width=width, logit_scale=0.125)

def sgd(params, *, lr: float, weight_decay: float):
    return OPTIMIZERS["sgd"](params, lr=lr, weight_decay=weight_decay, momentum=0.9, nesterov=True)

def halving(step, lr, steps_per_epoch):
    return Rates(lr * 0.5 ** (step / steps_per_epoch // 1))

def flip(*, p: float):
    return AUGMENTATIONS["flip"](p=p)
""")
    shipped = (
        "model.width=4", "augment=[{name: flip, p: 0.5}]", "optim.no_decay=[norms, biases]",
        "schedule={name: step, milestones: [1], factor: 0.5}", *SMALL,
    )  # fmt: skip
    mine = (
        "model={name: ours.py:net, width: 4}", "augment=[{name: ours.py:flip, p: 0.5}]",
        "optim={name: ours.py:sgd, lr: 0.4, weight_decay: 5e-4, no_decay: [norms, biases]}",
        "schedule={name: ours.py:halving}", *SMALL,
    )  # fmt: skip
    assert rescue("train", "--out", "shipped", *shipped).code == 0
    ended = rescue("train", "--with", "ours.py", "--out", "mine", *mine)
    assert ended.code == 0, ended.err
    assert_equal_weights(tmp_path / "mine", tmp_path / "shipped")


def test_a_killed_run_resumes_from_its_copy_bit_for_bit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    file = write_ingredients(tmp_path)
    longer = ("train.epochs=8", "train.log_every=1", "train.checkpoint_epochs=0.5")
    words = (*NET_LOSS_NOISE, *SMALL, *longer)
    whole, run = tmp_path / "whole", tmp_path / "run"
    start(["train", "--with", file, "--out", whole, *words], tmp_path / "first").ends(0)

    command = start(["train", "--with", file, "--out", run, *words], tmp_path / "second")
    command.until(trained(run, 9))
    command.kill()
    assert not RunDirectory(run).result.exists()
    file.write_text("raise SystemExit('this is another file')")
    start(["train", "--resume", "--out", run], tmp_path / "third").ends(0)
    assert_same(run, whole)


def test_a_sweep_trains_in_processes_of_its_own_and_adds_seeds(
    rescue: Rescue, tmp_path: Path
) -> None:
    file = write_ingredients(tmp_path)
    words = ("seed-sweep", "--with", file, "--out", "sweep", "--jobs", "2", *NET_LOSS_NOISE, *SMALL)
    assert rescue(*words, "--seeds", "2").code == 0
    before = (tmp_path / "sweep" / "seed-0" / "result.json").stat().st_mtime
    ended = rescue(*words, "--seeds", "3")
    assert ended.code == 0, ended.err
    assert (tmp_path / "sweep" / "seed-0" / "result.json").stat().st_mtime == before
    write_ingredients(tmp_path, more="# changed")  # its seeds would be of another recipe
    ended = rescue(*words, "--seeds", "4")
    assert ended.code == 2
    assert "sweep/seed-0/recipe.yaml was made with" in ended.err
    assert not (tmp_path / "sweep" / "seed-3").exists()
    assert rescue("compare", "sweep", "90").code == 0


def test_processes_that_share_a_step_load_the_copy(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(own, "REGISTRY", own.Registry())
    monkeypatch.setenv(own.TRUSTED, "")
    monkeypatch.setenv("XDG_STATE_HOME", "")
    monkeypatch.setenv("HOME", str(tmp_path / "nowhere"))
    file = write_ingredients(tmp_path)
    recipe = rescue_package.load("quickstart", [*NET_LOSS_NOISE, *SMALL], code=[file])
    file.unlink()
    for count in (1, 2):
        run = tmp_path / str(count)
        for process in group_of(count, run, recipe, tmp_path / f"told{count}"):
            process.ends(0)
    for name, values in weights_of(tmp_path / "1").items():
        np.testing.assert_allclose(values, weights_of(tmp_path / "2")[name], atol=1e-5)


def test_a_program_may_load_two_versions_of_a_file(
    rescue: Rescue, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    del rescue  # sets up the folder
    monkeypatch.setattr(own, "REGISTRY", own.Registry())
    file = write_ingredients(tmp_path)
    first = rescue_package.load("quickstart", [NET], code=[file])
    write_ingredients(tmp_path, more="\n# changed")
    second = rescue_package.load("quickstart", [NET], code=[file])
    assert first.code != second.code
    assert first.model.function is not second.model.function
    assert first.with_overrides("model.width=8").code == first.code


def test_a_package_offers_ingredients_by_its_entry_points(
    rescue: Rescue, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    site = tmp_path / "site"
    record = site / "rescue_extras-1.2.dist-info"
    record.mkdir(parents=True)
    write_ingredients(site, "extras.py")
    (record / "METADATA").write_text("Metadata-Version: 2.1\nName: rescue-extras\nVersion: 1.2\n")
    (record / "entry_points.txt").write_text("[rescue.ingredients]\nconv = extras:Net\n")
    monkeypatch.syspath_prepend(site)
    try:
        words = ("--out", "run", "model={name: rescue-extras:conv, width: 4}", *SMALL)
        ended = rescue("train", *words)
        assert ended.code == 0, ended.err
        assert "code of your own: rescue-extras 1.2" in ended.out
        assert rescue("eval", "run").code == 0
        wrong = rescue("train", "--out", "wrong", "model={name: rescue-extras:cnov}")
        assert wrong.code == 2
        assert "has no such entry point in rescue.ingredients. Did you mean 'conv'?" in wrong.err
        shutil.move(record, site / "rescue_extras-1.3.dist-info")
        metadata = site / "rescue_extras-1.3.dist-info" / "METADATA"
        metadata.write_text(metadata.read_text().replace("1.2", "1.3"))
        ended = rescue("eval", "run")
        assert ended.code == 2
        assert "made with rescue-extras 1.2, and 1.3 is installed" in ended.err
    finally:
        sys.modules.pop("extras", None)


WRONG = {
    "a misspelt key": (
        "model={name: mine.py:Net, widht: 4}",
        "model (mine.py:Net): unknown key 'widht'. Did you mean 'width'?",
    ),
    "a key of another type": (
        "model={name: mine.py:Net, width: wide}",
        "model (mine.py:Net).width: 'wide' is not an integer.",
    ),
    "a key that is typed by its default": (
        "augment=[{name: mine.py:noise, p: often}]",
        "augment (mine.py:noise).p: 'often' is not a number.",
    ),
    "a missing key": (
        "loss={name: mine.py:focal}",
        "loss (mine.py:focal): missing key 'gamma' (a number). Add gamma: to the section.",
    ),
    "a misspelt name": (
        "model={name: mine.py:Ner}",
        "model.name: mine.py defines no class or function 'Ner'. Did you mean 'Net'?",
    ),
    "what the file imports": (
        "loss={name: mine.py:functional}",
        "loss.name: mine.py defines no class or function 'functional'. Known: ",
    ),
    "another kind of ingredient": (
        "loss={name: mine.py:noise}",
        "loss (mine.py:noise): is no loss: its first parameters must be logits, targets.",
    ),
    "a section that has none": (
        "mix={name: mine.py:noise}",
        "mix.name: mine.py:noise: code of your own can stand in data, augment, model, loss, optim,",
    ),
    "a loss of the whole batch": (
        "loss={name: bad.py:mean}",
        "loss (bad.py:mean): returns losses of the shape () for logits of the shape (2, 10). "
        "Return one loss for each image.",
    ),
    "an augmentation to floats": (
        "augment=[{name: bad.py:floats}]",
        "augment (bad.py:floats): turns images (2, 1, 28, 28) uint8 into (2, 1, 28, 28) float32.",
    ),
    "an error when it is tried": (
        "loss={name: bad.py:fails}",
        "loss (bad.py:fails): fails when it is tried: KeyError: 'nothing' (bad.py, line 4, "
        "in fails, with logits (2, 10), targets (2,))",
    ),
    "a network for colour": (
        "model={name: bad.py:Colour}",
        "model (bad.py:Colour): fails on images of the shape (2, 1, 28, 28), by "
        "data.name=fashion-mini and data.train_size=28: RuntimeError: Given groups=1, weight of "
        "size [10, 3, 1, 1], expected input[2, 1, 28, 28] to have 3 channels, but got 1 "
        "channels instead (bad.py, line 14, in Colour.forward, with images (2, 1, 28, 28)). Make "
        "it take this shape (its parameter `channels` is 1 here).",
    ),
    "a network for one size": (
        ("model={name: bad.py:Fixed}", "eval.sizes=[28,32]"),
        "model (bad.py:Fixed): fails on images of the shape (2, 1, 32, 32), by "
        "data.name=fashion-mini and eval.sizes=32: RuntimeError: ",
    ),
    "a network without logits": (
        "model={name: bad.py:maps}",
        "model (bad.py:maps): returns (2, 10, 28, 28) for images of the shape (2, 1, 28, 28), "
        "and must return logits of the shape (2, 10): one for each of `classes`.",
    ),
    "a network of timm's for another size": (
        "model={name: vit_tiny_patch16_224}",
        "model (vit_tiny_patch16_224): fails on images of the shape (2, 1, 28, 28), by "
        "data.name=fashion-mini and data.train_size=28: AssertionError: Input height (28) doesn't "
        "match model (224). Use another size or model.",
    ),
    "an optimizer that takes no decay": (
        "optim={name: bad.py:undecayed, lr: 1, weight_decay: 0}",
        "optim (bad.py:undecayed): is no optimizer for recipes: it must take weight_decay.",
    ),
    "a rate that is no number": (
        "schedule={name: bad.py:words}",
        "schedule (bad.py:words): returns a list, and must return a number or Rates.",
    ),
    "a network that is none": (
        "model={name: bad.py:fails}",
        "model (bad.py:fails): is no network: it must be an nn.Module, or a function that takes",
    ),
    "a key of the section": (
        "model={name: bad.py:named}",
        "model (bad.py:named): its parameter 'weights' has the name of a key that model has.",
    ),
    "a data set that is none": (
        "data={name: bad.py:Empty}",
        "data (bad.py:Empty): is no data set: a class with classes, channels, size, images,",
    ),
}
BAD = """
def mean(logits, targets): return logits.mean()
def floats(images): return images / 255
def fails(logits, targets): return {}["nothing"]
def undecayed(params, lr: float): return None
def words(step): return ["fast"]
def named(classes, weights: str = ""): return None
class Empty: pass
from torch import nn
class Colour(nn.Conv2d):
    def __init__(self, classes):
        super().__init__(3, classes, 1)
    def forward(self, images):
        return super().forward(images).mean((2, 3))
def maps(classes): return nn.Conv2d(1, classes, 1)
class Fixed(nn.Sequential):
    def __init__(self, classes):
        super().__init__(nn.Flatten(), nn.Linear(784, classes))
    def forward(self, images):
        assert images.mean().item() < 99, "what the meta device does not know"
        return super().forward(images)
def late(logits, targets):
    return logits[:, 0] + targets.new_zeros(2)
"""


@pytest.mark.parametrize(("override", "message"), WRONG.values(), ids=WRONG.keys())
def test_mistakes_are_named_before_anything_starts(
    override: str | tuple[str, ...], message: str, rescue: Rescue, tmp_path: Path
) -> None:
    write_ingredients(tmp_path)
    (tmp_path / "bad.py").write_text(BAD)
    overrides = (override,) if isinstance(override, str) else override
    line = ("train", "--with", "mine.py", "--with", "bad.py", "--out", "run", *overrides)
    for ended in (rescue(*line, "--dry-run"), rescue(*line)):
        assert (ended.code, (tmp_path / "run").exists()) == (2, False)
        assert f"error: {message}" in ended.err


def test_what_fails_at_the_first_step_names_the_line_and_the_shapes(
    rescue: Rescue, tmp_path: Path
) -> None:
    (tmp_path / "bad.py").write_text(BAD)
    line = ("train", "--with", "bad.py", "--out", "run", "loss={name: bad.py:late}", *SMALL)
    ended = rescue(*line)
    assert (ended.code, (tmp_path / "run").exists()) == (2, False)
    assert ended.notes[-1] == (
        "error: code of your own: RuntimeError: The size of tensor a (32) must match the size of "
        "tensor b (2) at non-singleton dimension 0 (bad.py, line 23, in late, with "
        "logits (32, 10), targets (32,))"
    )


def test_the_option_for_shipped_networks_names_the_key(rescue: Rescue, tmp_path: Path) -> None:
    write_ingredients(tmp_path)
    ended = rescue("train", "--with", "mine.py", "--model", "mine.py:Net")
    assert ended.code == 2
    assert (
        "--model: mine.py:Net is code of your own, whose keys are others. Set model={" in ended.err
    )


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("import nowhere_at_all", "ModuleNotFoundError: No module named 'nowhere_at_all'. Put it"),
        ("def f(:", "SyntaxError: invalid syntax"),
        ("1 / 0", "ZeroDivisionError: division by zero"),
    ],
)
def test_a_file_that_cannot_be_imported_says_why(
    text: str, message: str, rescue: Rescue, tmp_path: Path
) -> None:
    (tmp_path / "mine.py").write_text(text)
    ended = rescue("train", "--with", "mine.py", "--out", "run", NET)
    assert (ended.code, (tmp_path / "run").exists()) == (2, False)
    assert f"error: --with: mine.py cannot be imported: {message}" in ended.err
