"""Test-time augmentation against what the published code computes, written out; several at once."""

from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional

from rescue_cli import recipe as recipes
from rescue_cli.batch import Measurement, View
from rescue_cli.engine.evaluate import EvalSet, Evaluator
from rescue_cli.errors import UsageError
from rescue_cli.rundir import RunDirectory, read_json, read_metrics
from rescue_cli.sections.augment.pipeline import Normalise
from rescue_cli.sections.data import FileNames, Files, Images
from rescue_cli.sections.data.memory import MemoryEvalFeed
from rescue_cli.sections.data.stream_eval import EvalSamples, FileEvalFeed
from rescue_cli.sections.task.classification import Classification
from rescue_cli.sections.tta import TTAS, least_confident
from tests.helpers.processes import start

CPU = torch.device("cpu")
CLASSES = 10
COUNT = 103  # a quarter of them is 25, which no batch below divides
MEAN, STD = (0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)


class Counting(nn.Module):
    """A small network that sees where things lie, and how many images it was shown."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.convolution = nn.Conv2d(3, 8, 3, stride=2)
        self.head = nn.Linear(8 * 15 * 15, CLASSES)
        self.shown = 0
        self.double()

    def forward(self, images: Tensor) -> Tensor:
        self.shown += len(images)
        logits: Tensor = self.head(self.convolution(images).relu().flatten(1))
        return logits


@pytest.fixture
def network() -> Counting:
    return Counting().eval()


def images(count: int = COUNT) -> Tensor:
    generator = torch.Generator().manual_seed(5)
    coarse = torch.rand((count, 3, 8, 8), generator=generator)
    fine = functional.interpolate(coarse, (32, 32), mode="bilinear")
    return (255 * fine).to(torch.uint8)


def normalised(pixels: Tensor) -> Tensor:
    return Normalise(MEAN, STD, CPU, torch.float64, False)(pixels)


def mirrored_too(model: nn.Module, x: Tensor) -> Tensor:
    """The mean logits of images and their mirror images."""
    logits: Tensor = 0.5 * model(x) + 0.5 * model(x.flip(3))
    return logits


def corners(x: Tensor) -> tuple[Tensor, Tensor]:
    """The upper left and the lower right 32 x 32 pixels of the images padded by 1."""
    padded = np.pad(x.numpy(), [(0, 0), (0, 0), (1, 1), (1, 1)], mode="reflect")
    whole = torch.from_numpy(padded)
    return whole[:, :, 0:32, 0:32], whole[:, :, 2:34, 2:34]


def airbench(model: nn.Module, x: Tensor) -> Tensor:
    """Level 2: half of it the image in its place, half the mean of the two that are moved."""
    moved = [mirrored_too(model, corner) for corner in corners(x)]
    return 0.5 * mirrored_too(model, x) + 0.5 * (moved[0] + moved[1]) / 2


def mean_of_six(model: nn.Module, x: Tensor) -> Tensor:
    views = [view for base in (x, *corners(x)) for view in (base, base.flip(3))]
    return torch.stack([model(view) for view in views]).sum(0) / 6


def only_the_uncertain(model: nn.Module, x: Tensor) -> Tensor:
    """The mean of six for the quarter whose highest probability is lowest."""
    logits: Tensor = model(x).clone()
    highest = logits.exp().amax(1) / logits.exp().sum(1)
    places = highest.topk(len(x) // 4, largest=False).indices
    logits[places] = mean_of_six(model, x[places])
    return logits


PUBLISHED = {
    "none": lambda model, x: model(x),
    "flip": mirrored_too,
    "flip-translate": airbench,
    "flip-translate-mean": mean_of_six,
    "flip-translate-uncertain": only_the_uncertain,
}


def evaluator(ttas: Sequence[str]) -> Evaluator:
    return Evaluator(
        task=Classification(len),  # type: ignore[arg-type]
        ttas={name: TTAS[name] for name in ttas},
        while_training="none",
        normalise=Normalise(MEAN, STD, CPU, torch.float64, False),
        autocast=nullcontext,
        device=CPU,
    )


def evaluate(
    network: nn.Module, ttas: Sequence[str], batch_size: int, sizes: Sequence[int] = (32,)
) -> dict[Measurement, Any]:
    split = Images(images().numpy(), np.arange(COUNT) % CLASSES)
    views = [View(size, 1.0) for size in sizes]
    feed = MemoryEvalFeed(split, views, batch_size, "bilinear", CPU)
    return evaluator(ttas)(network, {"test": EvalSet(feed)}, lambda: None)["test"]


def test_every_one_has_its_formula_here() -> None:
    assert set(PUBLISHED) == set(TTAS)


@pytest.mark.parametrize("name", [name for name in TTAS if name != "flip-translate-uncertain"])
def test_logits_are_the_published_ones(name: str, network: Counting) -> None:
    x = normalised(images(7))
    torch.testing.assert_close(
        TTAS[name](network, x), PUBLISHED[name](network, x), rtol=0, atol=1e-13
    )


@pytest.mark.parametrize("batch_size", [7, 40, 200])
@pytest.mark.parametrize("name", TTAS)
@torch.inference_mode()
def test_an_evaluation_is_the_published_one_in_batches_of_any_size(
    name: str, batch_size: int, network: Counting
) -> None:
    logits = PUBLISHED[name](network, normalised(images()))
    labels = torch.arange(COUNT) % CLASSES
    (found,) = evaluate(network, [name], batch_size).values()
    losses = functional.cross_entropy(logits, labels, reduction="none")
    np.testing.assert_allclose(found.losses, losses, rtol=0, atol=1e-12)
    np.testing.assert_array_equal(found.top, logits.topk(5, 1).indices)
    np.testing.assert_allclose(found.probabilities, logits.softmax(1).amax(1), rtol=0, atol=1e-12)


def test_together_they_say_the_same_and_show_each_variant_once(network: Counting) -> None:
    names = list(TTAS)
    alone = {name: evaluate(network, [name], 40)[Measurement(32, 1.0, name)] for name in names}
    network.shown = 0
    together = evaluate(network, names, 40)
    assert network.shown == 6 * COUNT + 6 * (COUNT // 4), "and the six of a quarter once more"
    assert [measurement.tta for measurement in together] == names
    for measurement, found in together.items():
        np.testing.assert_array_equal(found.losses, alone[measurement.tta].losses)
    losses = np.array([found.losses for found in together.values()])
    assert len(np.unique(losses, axis=0)) == len(names), "no two are alike"


def test_the_uncertain_cost_a_quarter_of_the_six(network: Counting) -> None:
    found = evaluate(network, ["flip-translate-uncertain", "none"], 40)
    assert network.shown == COUNT + 6 * (COUNT // 4)
    uncertain, none = found.values()
    assert (uncertain.losses != none.losses).sum() == COUNT // 4


def test_each_view_has_a_quarter_of_its_own() -> None:
    class Shrunk(Counting):
        def forward(self, images: Tensor) -> Tensor:
            return super().forward(functional.interpolate(images, (32, 32)))

    shrunk, name = Shrunk().eval(), "flip-translate-uncertain"
    both = evaluate(shrunk, [name], 40, sizes=(32, 24))
    for size in (32, 24):
        (alone,) = evaluate(shrunk, [name], 40, sizes=(size,)).values()
        np.testing.assert_array_equal(both[Measurement(size, 1.0, name)].losses, alone.losses)


@pytest.mark.parametrize("workers", [0, 2])
def test_files_that_are_decoded_twice_give_what_memory_gives(
    workers: int, network: Counting, tmp_path: Path
) -> None:
    pixels, names = images().permute(0, 2, 3, 1).numpy(), [f"{n}.png" for n in range(COUNT)]
    for name, image in zip(names, pixels, strict=True):
        Image.fromarray(image).save(tmp_path / name)
    files = Files(FileNames.of(tmp_path, names), np.arange(COUNT) % CLASSES)
    samples = EvalSamples(files, [View(32, 1.0)], "bilinear", "pil")
    feed = FileEvalFeed(samples, 40, workers, CPU)
    ttas = ["flip-translate-uncertain", "flip"]
    streamed: Any = evaluator(ttas)(network, {"test": EvalSet(feed)}, lambda: None)["test"]
    for measurement, found in evaluate(network, ttas, 40).items():
        np.testing.assert_array_equal(streamed[measurement].losses, found.losses)
        np.testing.assert_array_equal(streamed[measurement].labels, np.arange(COUNT) % CLASSES)


def test_of_equally_confident_images_the_first_are_taken() -> None:
    probabilities = np.array([0.5, 0.2, 0.5, 0.9, 0.2, 0.5, 0.5, 0.9, 0.9])
    assert least_confident(probabilities, 1 / 2).tolist() == [0, 1, 2, 4]
    assert least_confident(probabilities, 1 / 4).tolist() == [1, 4]
    assert least_confident(probabilities[:3], 1 / 4).tolist() == []


# --- through the command ---

TINY = (
    "data.subset=[64, 53]", "model.width=4", "train.batch_size=32", "train.device_batch_size=32",
    "train.epochs=1", "eval.batch_size=10",
)  # fmt: skip


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of four steps that is measured with and without mirror images."""
    folder = tmp_path_factory.mktemp("tta")
    words = ["train", "--recipe", "quickstart", "--out", folder / "run", *TINY]
    start([*words, "eval.tta=[flip, none]"], folder / "told").ends(0)
    return folder / "run"


def stored(run: Path, name: str) -> dict[str, NDArray[Any]]:
    with np.load(RunDirectory(run).predictions(name)) as file:
        return dict(file)


def by_tta(result: dict[str, Any]) -> dict[str, tuple[float, float, float]]:
    return {e["protocol"]["tta"]: (e["top1"], e["top5"], e["loss"]) for e in result["sets"]}


def test_a_run_has_both_and_reports_the_first(run: Path) -> None:
    result = read_json(RunDirectory(run).result)
    assert list(by_tta(result)) == ["flip", "none"]
    first, second = result["sets"]
    assert result["protocol"] == first["protocol"]
    assert (result["top1"], result["loss"]) == (first["top1"], first["loss"])
    assert first["loss"] != second["loss"]
    assert {k: v for k, v in first["protocol"].items() if k != "tta"} == {
        k: v for k, v in second["protocol"].items() if k != "tta"
    }
    lines = [line for line in read_metrics(RunDirectory(run).metrics) if line["kind"] == "eval"]
    assert [(line["tta"], line["loss"]) for line in lines] == [
        (tta, loss) for tta, (_, _, loss) in by_tta(result).items()
    ]
    for tta in ("flip", "none"):
        losses = stored(run, f"test-{tta}")["losses"]
        assert losses.mean() == by_tta(result)[tta][2]
        assert (run / "predictions" / f"test-{tta}.png").exists()
    assert not RunDirectory(run).predictions("test").exists()


# torch's elastic agent leaves the log files of its processes to the garbage collector
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_eval_by_a_list_agrees_with_the_run_on_any_number_of_processes(
    run: Path, tmp_path: Path
) -> None:
    names = ["none", "flip", "flip-translate-uncertain"]
    results = []
    for procs in (1, 2):
        out = tmp_path / str(procs)
        words = ["eval", run, "--tta", ",".join(names), "--out", out, "--json"]
        command = start(
            [*words, *(["--procs", 2] if procs == 2 else [])], tmp_path / "told", cores=procs
        )
        command.ends(0)
        results.append(by_tta(command.result()))
    assert results[0] == results[1]
    assert list(results[0]) == names
    assert {tta: results[0][tta] for tta in ("flip", "none")} == by_tta(
        read_json(RunDirectory(run).result)
    )
    for tta in names:
        one, two = (stored(tmp_path / procs, f"test-{tta}") for procs in ("1", "2"))
        assert {k: v.tobytes() for k, v in one.items()} == {k: v.tobytes() for k, v in two.items()}
    apart = stored(tmp_path / "1", "test-flip-translate-uncertain")["losses"]
    assert (apart != stored(tmp_path / "1", "test-none")["losses"]).sum() == 53 // 4


def test_the_table_has_a_row_for_each(run: Path, tmp_path: Path) -> None:
    command = start(["eval", run, "--tta", "none,flip-translate"], tmp_path / "told")
    command.ends(0)
    heading, *rows = command.stdout.read_text().splitlines()[:3]
    assert heading.split()[3] == "TTA"
    assert [row.split()[3] for row in rows] == ["none", "flip-translate"]


def test_one_by_its_name_is_a_list_of_one() -> None:
    one = recipes.load("quickstart", ["eval.tta=flip"])
    listed = recipes.load("quickstart", ["eval.tta=[flip, flip]"])
    assert one.eval.ttas == listed.eval.ttas == ("flip",)
    assert recipes.load("quickstart").eval.ttas == ("none",)


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("eval.tta=[]", "eval.tta: an empty list. Give at least one, or none by its name."),
        ("eval.tta=[none, 5]", "eval.tta[1]: 5 is not a string."),
        ("eval.tta=5", "eval.tta: 5 is not a string or a list (a string each)."),
    ],
)
def test_what_is_no_list_of_names_is_refused(override: str, message: str) -> None:
    with pytest.raises(UsageError) as error:
        recipes.load("quickstart", [override])
    assert str(error.value) == message
