"""Ten steps of a shipped recipe against the same steps written out after its authors' code.

In float64, from the same initial weights, on the same augmented images: what is compared is every
weight, buffer and average after every step. Networks are narrow, batches small, and the steps are
those at which something happens: schedules have the lengths that are shipped.
"""

import ast
import functools
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from rescue_cli import recipe as recipes
from rescue_cli.batch import Batch
from rescue_cli.build.feeds import Machine, build_normalise
from rescue_cli.build.networks import build_network
from rescue_cli.build.step import build_step
from rescue_cli.sections.data import FACTS, Images
from rescue_cli.sections.mix import MixContext, beta_quantile, cutmix_box
from rescue_cli.sections.model import Whitening
from tests import restated
from tests.helpers.processes import random_dataset
from tests.restated import MicroBatch, Restated, Weights, airbench, imagenet, myrtle, smith
from tests.restated.plain import floats
from tests.test_golden import drawn_in_float64, files

TOLERANCE = 1e-7
IMAGES = 64


@dataclass(frozen=True)
class Family:
    """A recipe made small, its restatement, the steps to take, and constants to get wrong."""

    restated: Callable[[Weights], Restated]
    small: list[str]
    steps: Sequence[int]
    wrong: list[str]
    head_scale: float = 1.0  # of the last layer's initial weights


WIDTHS = ["model.widths=[8,12,16]", "train.batch_size=16", "train.device_batch_size=16"]
RESNET = [
    "data.train_size=64", "train.batch_size=16", "train.device_batch_size=4",
    "train.steps_per_epoch=1", "model.name=test_resnet",
]  # fmt: skip
WARMED_UP_COSINE = [0, 1, 2, 4, 5, 6, 150, 151, 298, 299]
FAMILIES = {
    "airbench94": Family(
        airbench.Airbench94,
        [*WIDTHS, "train.steps_per_epoch=48"],
        # the first, averages, the peak, the whitening bias's last, the end
        [0, 1, 4, 9, 108, 109, 143, 144, 474, 475],
        [
            "optim.0.momentum=0.86",
            "optim.0.lr=0.00147",
            "optim.0.weight_decay=1.37",
            "optim.1.lr=0.0939",
            "optim.1.weight_decay=0.0214",
            "optim.2.weight_decay=2",  # of a bias that is near 0
            "optim.2.schedule.until=2",
            "schedule.factors=[0.21,1,0.07]",
            "schedule.factors=[0.2,1,0.08]",
            "schedule.epochs=[0,2.25,9.91666667]",
            "averaging.decay=0.96",
            "averaging.every=4",
            "averaging.power=2",
            "loss.label_smoothing=0.21",
            "model.logit_scale=0.112",
            "model.norm_momentum=0.41",
            "model.norm_eps=1e-5",
            "model.activation=silu",
        ],
    ),
    "airbench94-muon": Family(
        airbench.MuonAndSgd,
        [*WIDTHS, "train.steps_per_epoch=25"],
        [0, 1, 2, 73, 74, 75, 76, 150, 198, 199],
        [
            "optim.0.lr=0.241",
            "optim.0.momentum=0.61",
            "optim.0.nesterov=false",
            "optim.0.weight_decay=0.001",
            "optim.0.steps=4",
            "optim.0.coefficients=[3.4445,-4.7750,2.0316]",
            "optim.0.renormalise_every=2",
            "optim.1.lr=0.671",
            "optim.1.weight_decay=0.006",
            "optim.2.lr=0.054",
            "optim.2.momentum=0.86",
            "optim.3.schedule.epochs=[0,4]",
            "schedule.epochs=[0,8.1]",
            "loss.label_smoothing=0.21",
            "model.logit_scale=0.0039",
        ],
    ),
    "hiverge94": Family(
        airbench.Hiverge,
        [*WIDTHS, "train.steps_per_epoch=32"],
        range(10),
        [
            "optim.0.lr=0.206",
            "optim.0.momentum=0.656",
            "optim.0.weight_decay=0.00161",
            "optim.0.coefficients=[3.4576,-4.7391,2.0844]",
            "optim.1.momentum=0.826",
            "optim.1.lr=0.5416",
            "optim.2.weight_decay=0.028",
            "optim.3.schedule.epochs=[0,0.25]",
            "schedule.epochs=[0,7.59]",
            "loss.label_smoothing=0.1",
            "model.activation=gelu",
            "model.norm_momentum=0.4435",
        ],
    ),
    "hiverge94 in 40 steps": Family(
        functools.partial(airbench.Hiverge, steps=40),
        [*WIDTHS, "train.steps_per_epoch=32", "train.epochs=1.25", "schedule.epochs=[0,1.25]"],
        range(10),  # filters are renormalised after 2, 5 and 10, as in the whole training's 243
        ["optim.0.renormalise_every=2", "optim.0.renormalise_every=null"],
    ),
    "hlb": Family(
        airbench.Hlb,
        [*WIDTHS, "train.steps_per_epoch=48"],
        # the average begins after 100, the peak is at 132.6, patches begin at 336
        [0, 1, 99, 104, 132, 335, 336, 339, 579, 580],
        [
            "optim.0.lr=1.49e-3",
            "optim.0.weight_decay=1.37",
            "optim.0.momentum=0.86",
            "optim.1.lr=0.0954",
            "optim.1.weight_decay=0.0215",
            "schedule.epochs=[0,2.783,12.1]",
            "schedule.factors=[0,1,0.1]",
            "averaging.start=0",
            "averaging.power=2",
            "averaging.decay=0.951",
            "mix.size=4",
            "mix.from_epoch=6",
            "loss.label_smoothing=0.21",
        ],
    ),
    "myrtle": Family(
        myrtle.Myrtle,
        [
            "model.width=4",
            "model.ghost=2",
            "train.batch_size=32",
            "train.device_batch_size=32",
            "train.steps_per_epoch=97",
        ],
        [0, 4, 5, 9, 10, 193, 194, 774, 775, 969],
        [
            "optim.0.lr=0.00196",
            "optim.0.momentum=0.91",
            "optim.0.weight_decay=0.257",
            "optim.1.lr=0.126",
            "optim.1.weight_decay=0.0041",
            "optim.1.nesterov=false",
            "schedule.first_step=0",
            "schedule.epochs=[0,2,9]",
            "schedule.factors=[0,1,0]",
            "averaging.decay=0.95",
            "averaging.every=4",
            "loss.label_smoothing=0.21",
            "model.celu=0.31",
            "model.ghost=4",
            "model.logit_scale=0.063",
        ],
    ),
    "1cycle-3layer": Family(
        smith.ThreeLayers,
        ["train.batch_size=8", "train.device_batch_size=2", "train.steps_per_epoch=390"],
        # up, down, the second and lower dip of the momentum
        [0, 1, 2145, 4289, 4290, 4291, 8579, 8580, 8581, 9749],
        [
            "optim.0.lr=5.1e-3",
            "optim.0.weight_decay=3.1e-3",
            "optim.1.lr=5e-3",
            "optim.2.weight_decay=0.76",
            "optim.3.lr=5e-3",
            "optim.3.weight_decay=3e-3",
            "schedule.stepsize_epochs=11.1",
            "schedule.base_factor=0.11",
            "schedule.momentum=[0.95,0.86]",
            "schedule.tail_momentum=hold",
            "loss.label_smoothing=0.01",
        ],
    ),
    "a2": Family(
        imagenet.a2,
        RESNET,
        WARMED_UP_COSINE,
        [
            "optim.lr=5.1e-3",
            "optim.weight_decay=0.021",
            "optim.no_decay=[norms]",
            "optim.max_grad_norm=null",
            "optim.betas=[0.91,0.999]",
            "optim.eps=1e-5",
            "schedule.warmup_epochs=6",
            "schedule.warmup_lr=1.1e-4",
            "schedule.min_lr=2e-6",
            "schedule.warmup_prefix=true",
            "loss.targets=soft",
            "loss.label_smoothing=0.01",
            "model.drop_path=0.2",
        ],
        head_scale=30,  # so that LAMB's limit of the gradients' norm, 1, is passed: about 10
    ),
    "deit": Family(
        imagenet.deit,
        RESNET,
        WARMED_UP_COSINE,
        [
            "optim.lr=1.01e-3",
            "optim.weight_decay=0.051",
            "optim.no_decay=[]",
            "optim.eps=1e-7",
            "schedule.warmup_lr=2e-6",
            "schedule.min_lr=1.1e-5",
            "loss.label_smoothing=0.11",
            "model.drop_path=0.3",
        ],
    ),
    "bot-baseline": Family(
        imagenet.Baseline,
        RESNET,
        [0, 1, 2, 29, 30, 59, 60, 89, 90, 119],
        [
            "optim.lr=0.101",
            "optim.momentum=0.91",
            "optim.nesterov=false",
            "optim.weight_decay=1.1e-4",
            "optim.no_decay=[norms]",
            "schedule.milestones=[31,60,90]",
            "schedule.factor=0.11",
            "loss.label_smoothing=0.01",
            "~model.stride_in",
        ],
    ),
}


class Ours:
    """The recipe's own step, from the project's build, with what flows through it kept."""

    def __init__(self, name: str, changes: Sequence[str], folder: Path) -> None:
        small = ["train.precision=float64", *FAMILIES[name].small]
        recipe = recipes.load(name.split()[0], [*small, *changes])
        known, cpu = FACTS[recipe.data.name], torch.device("cpu")
        self.data = (
            random_dataset(known.channels, known.size, IMAGES) if known.size else files(folder)
        )
        self.recipe = recipe
        self.network = build_network(recipe, len(self.data.classes), cpu)
        with torch.no_grad():
            (*_, head) = (m for m in self.network.modules() if isinstance(m, nn.Linear))
            head.weight.mul_(FAMILIES[name].head_scale)
        self.updates = build_step(recipe, self.network, self.data, Machine(cpu, 0, folder), print)
        self.micro_batches: list[MicroBatch] = []
        self.updates.mix = self._kept(self.updates.mix)

    def weights(self) -> Weights:
        return floats(self.network.state_dict())

    def reported(self) -> Weights:
        return floats(self.updates.average.model.state_dict())

    def step(self, number: int) -> list[MicroBatch]:
        self.micro_batches = []
        self.updates.feed.start(number)
        self.updates(number)
        return self.micro_batches

    def _kept(self, mix: Callable[[Batch], Batch]) -> Callable[[Batch], Batch]:
        def mixed(batch: Batch) -> Batch:
            plain, generator = batch.images.clone(), torch.get_rng_state()
            found = mix(batch)
            share, corners = self._mixture(batch)
            images = found.images.clone()
            self.micro_batches.append(
                MicroBatch(plain, images, batch.targets, share, corners, generator)
            )
            return found

        return mixed

    def _mixture(self, batch: Batch) -> tuple[float | None, restated.Box | None]:
        """The share that this micro-batch's draws ask for, and the box where it is pasted."""
        if self.recipe.mix.name != "mixup-or-cutmix":
            return None, None
        keys = self.recipe.mix.options
        mixing = MixContext(len(self.data.classes), self.recipe.train.seed, 1)
        which, share, row, column = mixing.draws(batch)
        if which >= keys["switch"]:
            return beta_quantile(share, keys["mixup"]), None
        height, width = batch.images.shape[-2:]
        lam = beta_quantile(share, keys["cutmix"])
        return lam, cutmix_box(height, width, lam, int(row * height), int(column * width))


def distance(mine: Weights, theirs: Weights) -> float:
    """The largest difference of any element of tensors of the same names; infinite where NaN."""
    assert mine.keys() == theirs.keys()
    found = torch.stack([(mine[name] - theirs[name]).abs().max() for name in mine])
    return float(found.nan_to_num(nan=torch.inf).max())


@functools.cache
@drawn_in_float64()
def followed(name: str) -> tuple[list[float], list[tuple[Weights, Weights]]]:
    """After each step: how far the two are apart; the restatement's weights and averages."""
    family = FAMILIES[name]
    apart, path = [], []
    with tempfile.TemporaryDirectory() as folder:
        ours = Ours(name, [], Path(folder))
        theirs = family.restated(ours.weights())
        for number in family.steps:
            theirs.step(number, ours.step(number))
            path.append((dict(theirs.weights), dict(theirs.reported)))
            apart.append(
                max(
                    distance(ours.weights(), theirs.weights),
                    distance(ours.reported(), theirs.reported),
                )
            )
    return apart, path


def filters(name: str, images: Tensor) -> Tensor:
    """The whitening filters that the authors' code takes from these images."""
    if name == "myrtle":
        return myrtle.whitened(images)
    return airbench.whitened(images, 1e-2 if name == "hlb" else 5e-4, centred=name == "hlb")


@pytest.mark.parametrize("name", ["airbench94", "airbench94-muon", "hiverge94", "hlb", "myrtle"])
@drawn_in_float64()
def test_images_are_whitened_as_by_the_authors_code(name: str, tmp_path: Path) -> None:
    """Myrtle's divides a variance by one patch less, of 57,600 here and of 9,000,000 as shipped."""
    ours = Ours(name, [], tmp_path)
    (layer,) = (m for m in ours.network.modules() if isinstance(m, Whitening))
    assert isinstance(ours.data.train, Images)
    images = build_normalise(ours.recipe, torch.device("cpu"))(
        torch.from_numpy(ours.data.train.pixels)
    )
    expected = filters(name, images).flatten(1)
    found = layer.weight.detach().flatten(1)
    signs = (found * expected).sum(1, keepdim=True).sign()
    torch.testing.assert_close(
        found, signs * expected, rtol=0, atol=2e-5 * (name == "myrtle") + 1e-10
    )


RESTATED = sorted(Path(restated.__file__).parent.glob("*.py"))


@pytest.mark.parametrize("file", RESTATED, ids=lambda file: file.stem)
def test_a_restatement_imports_nothing_of_ours(file: Path) -> None:
    for node in ast.walk(ast.parse(file.read_text())):
        names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
        if isinstance(node, ast.ImportFrom):
            assert node.level == 0
            names = [str(node.module)]
        for name in names:
            assert not name.startswith("rescue_cli"), name
            assert not name.startswith("tests") or name.startswith("tests.restated"), name


@pytest.mark.parametrize("name", FAMILIES)
def test_ten_steps_are_those_of_the_authors_code(name: str) -> None:
    apart, path = followed(name)
    largest = max(apart)
    print(f"{name}: at most {largest:.1e} apart after {len(apart)} steps")
    assert len(apart) >= 10
    assert all(bool(w.isfinite().all()) for w in path[-1][0].values())
    assert largest < TOLERANCE, [f"{a:.1e}" for a in apart]


MISTAKES = [(name, change) for name, family in FAMILIES.items() for change in family.wrong]


@pytest.mark.slow
@pytest.mark.parametrize(("name", "change"), MISTAKES)
@drawn_in_float64()
def test_a_wrong_constant_is_seen(name: str, change: str, tmp_path: Path) -> None:
    _, path = followed(name)
    ours = Ours(name, [change], tmp_path)
    for number, (weights, averages) in zip(FAMILIES[name].steps, path, strict=True):
        ours.step(number)
        apart = max(distance(ours.weights(), weights), distance(ours.reported(), averages))
        if apart > TOLERANCE:
            return
    pytest.fail(f"{change}: {apart:.1e} apart after the last step")
