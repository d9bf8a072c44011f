"""Every command of the README and the guide runs, as written or as substituted below."""

import re
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import timm
from PIL import Image
from safetensors.torch import save_file

from rescue_cli.cli import main
from rescue_cli.recipe import load, names, own
from tests.helpers import rectangles

ROOT = Path(__file__).parents[1]
PAGES = (ROOT / "README.md", ROOT / "docs" / "guide.md")
# What is written -> what is run. `make` lines are not run here; the rest is as written.
SMALL = "--smoke model.name=test_resnet data.train_size=64 eval.sizes=[64]"
SWEEP = "--seeds 2 data.subset=[256,64] train.epochs=1"
SUBSTITUTIONS = {
    "--recipe myrtle-baseline data.root=DATA": "--recipe myrtle-baseline data.root=CIFAR --smoke",
    "data.name=folder data.root=DATA --subset 100:50": f"data.name=folder data.root=FOLDER {SMALL}",
    "data.name=folder data.root=shards --subset 100:50": (
        f"data.name=folder data.root=shards {SMALL}"
    ),
    "pack DATA shards": "pack FOLDER shards",
    "data.root=DATA --gpus 4": f"data.root=IMAGENET {SMALL}",
    "data.root=DATA --dry-run": "data.root=nowhere --dry-run",  # 1,281,167 images then
    "--model regnety_040 --epochs 50 data.root=DATA": (
        "--model regnety_040 --epochs 50 data.root=nowhere train.precision=float32 --dry-run"
    ),
    "WEIGHTS --model resnet50 data.root=DATA --sizes 224,288 --crops 0.875,0.95": (
        "WEIGHTS --model test_resnet data.root=IMAGENET --sizes 64,96 --crops 0.875,0.95"
    ),
    "--rendezvous host0:29500 --gpus 8": "--rendezvous host0:29500 --procs 8 --dry-run",
    "train.device_batch_size=64 --procs 2": "train.device_batch_size=64 --procs 2 --smoke",
    "--with examples/ingredients.py": "--with examples/ingredients.py --smoke",
    "--epochs 3 optim.lr=0.2": "--epochs 3 optim.lr=0.2 --smoke",
    "tf_efficientnet_lite0 --to PHOTOS --epochs 5 --seeds 3": (
        "test_resnet --to PHOTOS --epochs 1 --seeds 2 data.train_size=64 eval.sizes=[64] "
        "train.batch_size=4 train.device_batch_size=4"
    ),
    "tf_efficientnet_lite0 --to PHOTOS": (
        "test_resnet --to PHOTOS --minutes 0.1 --out walk data.train_size=64 eval.sizes=[64]"
    ),
    "export RUN --to timm": "export RUN --to timm --subset 4",
    "export runs/quickstart/0 --to": "export runs/quickstart/0 --subset 10 --to",
    "eval RUN --sizes 160,192": "eval RUN --sizes 64,96",
    "resnet50 --to DATA --steps 60 data.holdout=100": (
        "test_resnet --to FOLDER --steps 10 --points 10 data.holdout=4 data.train_size=64 "
        "eval.sizes=[64] train.batch_size=4 train.device_batch_size=4"
    ),
    "--model resnet50 --to DATA --recipe transfer-linear train.precision=float32": (
        "--model test_resnet --to FOLDER --recipe transfer-linear --epochs 1 "
        "train.precision=float32 train.batch_size=8 train.device_batch_size=8 --out linear"
    ),
    "--model resnet50 --to DATA --recipe transfer-layerwise --seeds 3": (
        "--model test_resnet --to FOLDER --recipe transfer-layerwise --seeds 2 --epochs 1 "
        "train.precision=float32 train.batch_size=8 train.device_batch_size=8 "
        "data.train_size=64 eval.sizes=[64]"
    ),
    "--model resnet50 --to VOC --epochs 10": (
        "--model test_resnet --to VOC --epochs 1 model.min_size=48 model.max_size=64 "
        "eval.sizes=[48] --out detection"
    ),
    "--model resnet50 --to MASKS train.precision=float32": (
        "--model test_resnet --to MASKS train.precision=float32 train.epochs=1 "
        "train.batch_size=4 train.device_batch_size=4 --out segmentation"
    ),
    "lr-range-test --recipe quickstart --seeds 3": (
        "lr-range-test --recipe quickstart --seeds 1 --epochs 0.5 --points 10 data.subset=[512,64]"
    ),
    "tune --recipe quickstart --budget 0.5": (
        "tune --recipe quickstart --budget 0.5 --seeds 3 model.width=4 data.subset=[160,40] "
        "data.holdout=10 train.epochs=1 schedule.epochs=[0,0.5,1]"
    ),
    "study smith-momentum data.root=DATA --plan": "study smith-momentum --plan --only 1",
    "study examples/study.yaml --jobs 2": (
        "study examples/study.yaml --epochs 1 --seeds 2 data.subset=[256,64]"
    ),
    "seed-sweep --recipe quickstart --seeds 5": f"seed-sweep --recipe quickstart {SWEEP}",
    "seed-sweep --recipe quickstart ~augment.flip --seeds 5": (
        f"seed-sweep --recipe quickstart ~augment.flip {SWEEP}"
    ),
    "bench optimizer --model resnet50": "bench optimizer --model test_resnet --steps 1 --rounds 1",
    "bench step --recipe quickstart": (
        "bench step --recipe quickstart data.subset=[256,16] model.width=4 --steps 1 --rounds 1"
    ),
}
LONG = (
    "rescue bench step --recipe quickstart --against plain"  # run by a long test of test_bench.py
)
EXAMPLES = ("examples/own.yaml", "examples/ingredients.py", "examples/study.yaml")
CIFAR = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")


def commands() -> list[str]:
    """The different lines of the pages' console blocks, and the commands of the workflow."""
    text = "\n".join(page.read_text() for page in PAGES)
    blocks = re.findall(r"```console\n(.*?)```", text, re.DOTALL)
    lines = [line for block in blocks for line in block.splitlines()]
    return list(dict.fromkeys([*lines, *re.findall(r"- run: (rescue .*)", text)]))


def draw_images(root: Path, classes: Sequence[str], splits: tuple[str, ...], size: int) -> None:
    pixels = np.random.Generator(np.random.Philox(7)).integers(0, 256, (size, size, 3), np.uint8)
    for split in splits:
        for number, name in enumerate(classes):
            folder = root / split / name
            folder.mkdir(parents=True)
            for shift in range(4):
                Image.fromarray(np.roll(pixels, 16 * number + shift, 1)).save(
                    folder / f"{shift}.png"
                )


@pytest.fixture
def places(tmp_path: Path) -> dict[str, str]:
    draw_images(tmp_path / "cifar", CIFAR, ("train", "test"), 32)
    draw_images(tmp_path / "imagenet", ["n01440764", "n02102040"], ("train", "val"), 256)
    draw_images(tmp_path / "folder", ["cat", "dog"], ("train", "val"), 256)
    weights = tmp_path / "weights.safetensors"
    save_file(timm.create_model("test_resnet").state_dict(), weights)
    image = tmp_path / "image.png"
    Image.fromarray(np.zeros((28, 28), np.uint8)).save(image)
    return {
        "CIFAR": str(tmp_path / "cifar"),
        "IMAGENET": str(tmp_path / "imagenet"),
        "FOLDER": str(tmp_path / "folder"),
        "VOC": str(rectangles.voc(tmp_path / "voc")),
        "MASKS": str(rectangles.masks(tmp_path / "masks")),
        "IMAGE": str(image),
        "WEIGHTS": str(weights),
        "PHOTOS": str(tmp_path / "folder"),
        "LATER": str(tmp_path / "folder" / "val"),
        "RUN": "walk/weights/seed-0",
        **{name: str(ROOT / name) for name in EXAMPLES},
    }


def run(line: str, monkeypatch: pytest.MonkeyPatch) -> object:
    monkeypatch.setattr(sys, "argv", shlex.split(line))
    with pytest.raises(SystemExit) as ended:
        main()
    return ended.value.code


def substituted(line: str, places: dict[str, str]) -> str:
    for written, runs in SUBSTITUTIONS.items():
        if written in line:
            line = line.replace(written, runs)
            break
    for word, path in places.items():
        line = re.sub(rf"(?<![\w/]){word}(?![\w/])", path, line)
    if line == "rescue train --recipe quickstart":
        line += " --smoke"
    return line


@pytest.mark.slow
# torch's elastic agent leaves the log files of its processes to the garbage collector
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.usefixtures("forked_workers")
def test_every_command_of_the_pages_runs(
    places: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In the pages' own order, since later lines use what earlier ones made."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    monkeypatch.setenv(own.TRUSTED, "")
    lines = [line for line in commands() if line.startswith("rescue ") and line != LONG]
    failed = []
    for line in lines:
        if run(command := substituted(line, places), monkeypatch) != 0:
            failed.append(command)
    assert len(lines) > 15
    assert LONG in commands()
    assert failed == []


def test_the_python_of_the_guide_runs(
    places: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (code,) = re.findall(r"```python\n(.*?)```", PAGES[1].read_text(), re.DOTALL)
    fewer = code.replace('"optim.lr=0.3"', '"data.subset=[256,64]", "train.epochs=1"')
    assert fewer != code
    exec(compile(fewer.replace("IMAGE", places["IMAGE"]), "guide.md", "exec"), {})


def test_every_console_line_is_a_command_that_is_run_or_make() -> None:
    assert {line.split()[0] for line in commands() if line.strip()} == {"rescue", "make"}


def test_the_readme_counts_the_recipes() -> None:
    text = PAGES[0].read_text()
    assert f"[{len(names())} recipes]" in text
    published = [name for name in names() if load(name).tree.get("paper")]
    assert f"| published procedures by name | {len(published)} of {len(names())} recipes" in text


def test_the_files_that_the_guides_name_are_there() -> None:
    for guide in ("ARCHITECTURE.md", "CONTRIBUTING.md"):
        named = set(re.findall(r"`((?:\w+/)+\w+\.(?:py|toml))`", (ROOT / guide).read_text()))
        assert named
        missing = [
            name
            for name in named
            if not ((ROOT / name).exists() or (ROOT / "rescue_cli" / name).exists())
        ]
        assert missing == [], guide


@pytest.mark.parametrize(
    "page",
    sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/*.md"), ROOT / "recipes" / "README.md"]),
    ids=lambda page: page.name,
)
def test_the_links_between_the_pages_lead_somewhere(page: Path) -> None:
    for link in re.findall(r"\]\(([^)\s]+)\)", page.read_text()):
        name, _, heading = link.partition("#")
        if name.startswith("https:"):
            continue
        target = page.parent / name if name else page
        assert target.exists(), link
        headings = re.findall(r"^#+ (.*)", target.read_text(), re.MULTILINE) if heading else []
        anchors = [re.sub(r"[^a-z0-9 -]", "", text.lower()).replace(" ", "-") for text in headings]
        assert not heading or heading in anchors, link
