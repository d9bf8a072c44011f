"""`rescue transfer` through the command, and the three ways to train what others have learned."""

import json
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from PIL import Image
from safetensors.torch import load_file

from rescue_cli import recipe as recipes
from rescue_cli.build.check import check_recipe
from rescue_cli.build.networks import build_network
from rescue_cli.build.optimizers import build_optimizers
from rescue_cli.errors import DataError, UsageError
from rescue_cli.recipe import DataKeys
from rescue_cli.sections.data import load
from rescue_cli.sections.data.datasets import CIFAR10
from tests.conftest import Rescue

TINY = (
    "model.width=4", "data.subset=[256,200]", "train.batch_size=32",
    "train.device_batch_size=32", "train.epochs=1",
)  # fmt: skip
SHORT = ("train.batch_size=16", "train.device_batch_size=16", "train.precision=float32")
SEEN = ("data.train_size=64", "eval.sizes=[64]", "eval.interpolation=bilinear")


@pytest.fixture
def pets(tmp_path: Path) -> Path:
    """A folder of one's own: three classes, told apart by their brightness."""
    rng = np.random.default_rng(0)
    for split, count in (("train", 8), ("val", 4)):
        for number, name in enumerate(("cat", "dog", "owl")):
            folder = tmp_path / "pets" / split / name
            folder.mkdir(parents=True)
            for i in range(count):
                pixels = rng.integers(80 * number, 80 * number + 40, (70, 80, 3), np.uint8)
                Image.fromarray(pixels).save(folder / f"{i}.png")
    return tmp_path / "pets"


def test_weights_and_a_start_from_scratch_are_compared_on_a_folder(
    rescue: Rescue, pets: Path, weights: Path, tmp_path: Path
) -> None:
    call = (
        "transfer", "--from", weights, "--from", f"scratch:{weights}", "--to", pets, "--epochs",
        "2", "--seeds", "2", "--out", "out", *SHORT, *SEEN, "optim.lr=0.01",
    )  # fmt: skip
    ended = rescue(*call, "--json")
    assert ended.code == 0, ended.err
    found = json.loads(ended.out)
    assert [side["n"] for side in found["sides"]] == [2, 2]
    assert [Path(side["name"]).name for side in found["sides"]] == ["small", "scratch-small"]
    assert found["pairs"][0]["how"].startswith(
        "Welch's t-test (equal seeds do not share their random draws"
    )
    recipe = recipes.recipe_in(tmp_path / "out" / "small" / "seed-1")
    assert recipe.model.name == "test_resnet"
    assert recipe.model.options["weights"] == str(weights.resolve())
    assert recipe.schedule.options["warmup_epochs"] == 0.01  # 5 of 1,000 epochs
    again = rescue(*call)
    assert "4 of 4 runs finished" in again.err
    assert "small" in again.out
    other = rescue(*call, "optim.weight_decay=0.0")
    assert other.code == 2
    assert "holds a run of another recipe: optim.weight_decay" in other.err


def test_a_frozen_network_keeps_its_weights_and_its_head_learns(
    rescue: Rescue, pets: Path, weights: Path, tmp_path: Path
) -> None:
    call = (
        "transfer", "--recipe", "transfer-linear", "--from", weights, "--to", pets, "--out", "out",
        *SHORT, *SEEN, "--epochs", "30", "optim.lr=0.01",
    )  # fmt: skip
    assert rescue(*call).code == 0
    run = tmp_path / "out" / "small" / "seed-0"
    before, after = load_file(weights), load_file(run / "model.safetensors")
    kept = [name for name in before if not name.startswith("fc.")]
    assert all(torch.equal(before[name], after[name]) for name in kept)
    assert after["fc.weight"].shape == (3, before["fc.weight"].shape[1])
    result = json.loads((run / "result.json").read_text())
    assert result["protocol"]["decoder"] == "pil"
    measured = rescue("eval", run, f"data.root={pets}", "--json")
    assert measured.code == 0, measured.err
    assert json.loads(measured.out)["top1"] == pytest.approx(result["top1"])
    assert json.loads(measured.out)["loss"] == pytest.approx(result["loss"], rel=1e-4)
    assert rescue("eval", run, f"data.root={pets}", "--crops", "0.875,1.0").code == 0


def test_each_recipe_has_its_folder_and_one_start_names_its_run(
    rescue: Rescue, pets: Path, weights: Path, tmp_path: Path
) -> None:
    for recipe in ("transfer", "transfer-linear"):
        call = ("transfer", "--recipe", recipe, "--from", weights, "--to", "pets", *SHORT, *SEEN)
        ended = rescue(*call, "--epochs", "1", "optim.lr=0.01")
        assert ended.code == 0, ended.err
        run = Path("runs", recipe, "pets", "small", "seed-0")
        assert ended.notes[-1] == str(run)
        assert recipes.recipe_in(tmp_path / run).data.options["root"] == str(pets)
        assert rescue("predict", run, pets / "val" / "cat" / "0.png").code == 0


def test_linear_probing_needs_a_net_that_ends_in_its_head(
    rescue: Rescue, pets: Path, weights: Path
) -> None:
    call = ("transfer", "--recipe", "transfer-linear", "--to", pets, *SHORT, *SEEN)
    flipped = rescue(*call, "--from", weights, "augment=[{name: flip, p: 0.5}]")
    assert flipped.code == 2
    assert "features are computed once, of one view" in flipped.err
    for other in ("eval.tta=flip", "eval.crops=[0.875,1.0]"):
        assert (
            "features are computed once, of one view" in rescue(*call, "--from", weights, other).err
        )
    random = rescue(*call, "--from", f"scratch:{weights}")
    assert random.code == 2
    assert "an untrained network has none. Use --recipe transfer." in random.err


def test_layers_learn_the_slower_the_further_below_the_head() -> None:
    recipe = recipes.load(
        "transfer-layerwise", ["model={name: resnet18}", "train.precision=float32"]
    )
    network = build_network(recipe, 5, torch.device("cpu"))
    scaler = torch.amp.GradScaler("cpu", enabled=False)
    made = build_optimizers(recipe, network, 100, scaler)
    name_of = {id(p): n for n, p in network.named_parameters()}
    ratio = {name_of[id(p)]: rated.ratio for rated in made.rated for p in rated.group["params"]}
    assert set(ratio) == {n for n, _ in network.named_parameters()}
    matcher = network.group_matcher()  # type: ignore[operator]
    order = timm.models.group_parameters(network, matcher, reverse=True)
    top = max(order.values())
    assert ratio == pytest.approx({n: 0.75 ** (top - order[n]) for n in ratio})
    assert ratio["fc.weight"] == 1.0
    assert ratio["conv1.weight"] < ratio["layer1.0.conv1.weight"] < ratio["layer4.1.conv1.weight"]


def test_a_net_without_known_layers_refuses_their_decay() -> None:
    recipe = recipes.load("quickstart", ["optim.layer_decay=0.5"])
    network = build_network(recipe, 10, torch.device("cpu"))
    known = "timm defines no layer order for resnet9"
    with pytest.raises(UsageError, match=known):
        check_recipe(recipe)
    with pytest.raises(UsageError, match=known):
        build_optimizers(recipe, network, 10, torch.amp.GradScaler("cpu", enabled=False))


def test_a_run_goes_to_images_in_memory_with_a_new_head(rescue: Rescue, tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    for split, count in (("train", 8), ("test", 2)):
        for number, name in enumerate(CIFAR10):
            folder = tmp_path / "cifar" / split / name
            folder.mkdir(parents=True)
            for i in range(count):
                pixels = rng.integers(20 * number, 20 * number + 40, (32, 32, 3), np.uint8)
                Image.fromarray(pixels).save(folder / f"{i}.png")
    colour = ("data.name=cifar10", "data.root=cifar", "model.width=4", "train.epochs=1")
    small = ("train.batch_size=16", "train.device_batch_size=16")
    assert rescue("train", "--out", "source", *colour, *small, "eval.sizes=[32]").code == 0
    ended = rescue(
        "transfer", "--from", "source", "--to", "fashion-mini", "--epochs", "1",
        "data.subset=[64,50]", "mix={name: none}", *SHORT, "--out", "out", "--json",
    )  # fmt: skip
    assert ended.code == 0, ended.err
    (run,) = (tmp_path / "out").glob("*/seed-0")
    recipe = recipes.recipe_in(run)
    assert recipe.data.options["channels"] == 3
    assert [item.name for item in recipe.augment] == ["pad-crop", "flip"]
    network = build_network(recipe, 10, torch.device("cpu"))
    source = load_file(tmp_path / "source" / "model.safetensors")
    own = network.state_dict()
    assert torch.equal(own["features.1.0.weight"], source["features.1.0.weight"])
    assert not torch.equal(own["head.weight"], source["head.weight"])
    data = load("fashion-mini", DataKeys(channels=3), tmp_path)
    assert data.train.pixels.shape[1] == 3  # type: ignore[union-attr]
    assert bool((data.train.pixels[:, 0] == data.train.pixels[:, 2]).all())  # type: ignore[union-attr]


@pytest.mark.parametrize(
    ("words", "code", "message"),
    [
        (("--to", "flowers102"), 2, "transfer: give --from WEIGHTS and --to DATA"),
        (("--from", "nowhere", "--to", "flowers102"), 3, "nowhere: no such file."),
        (("--from", "small.safetensors", "--to", "flowers"), 2, "Did you mean 'flowers102'?"),
        (
            ("--from", "small.safetensors", "--from", "./small.safetensors", "--to", "cifar100"),
            2, "would both be named small.",
        ),
    ],
)  # fmt: skip
def test_what_cannot_be_transferred_is_refused(
    rescue: Rescue, weights: Path, words: tuple[str, ...], code: int, message: str
) -> None:
    assert weights.name == "small.safetensors"
    ended = rescue("transfer", *words)
    assert ended.code == code, ended.err
    assert message in ended.err


# --- the sets ---


def blank(path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.zeros((8, 8, 3), np.uint8)).save(path)


def test_pets_are_read_as_torchvision_reads_them(tmp_path: Path) -> None:
    root = tmp_path / "oxford-iiit-pet"
    lists = {
        "trainval": [("Abyssinian_1", 1), ("Bengal_2", 2), ("Bengal_3", 2)],
        "test": [("Bengal_4", 2)],
    }
    for split, rows in lists.items():
        for name, _ in rows:
            blank(root / "images" / f"{name}.jpg")
        (root / "annotations").mkdir(exist_ok=True)
        text = "".join(f"{name} {label} 1 1\n" for name, label in rows)
        (root / "annotations" / f"{split}.txt").write_text(text)
    data = load("oxford-pets", DataKeys(root=str(tmp_path)), tmp_path)
    assert data.train.labels.tolist() == [0, 1, 1]
    assert list(data.tests) == ["test"]
    assert data.tests["test"].labels.tolist() == [1]
    assert data.train.names.path(2) == root / "images" / "Bengal_3.jpg"  # type: ignore[union-attr]


def test_cars_and_flowers_by_their_matlab_files(tmp_path: Path) -> None:
    from scipy.io import savemat

    cars = tmp_path / "stanford_cars"
    for split, folder in (("train", "cars_train"), ("test", "cars_test")):
        blank(cars / folder / "00001.jpg")
        rows = np.array(
            [("00001.jpg", 2), ("00002.jpg", 1)], dtype=[("fname", "O"), ("class", "O")]
        )
        place = cars / "devkit" / "cars_train_annos.mat"
        if split == "test":
            place = cars / "cars_test_annos_withlabels.mat"
        place.parent.mkdir(parents=True, exist_ok=True)
        savemat(place, {"annotations": rows})
    savemat(cars / "devkit" / "cars_meta.mat", {"class_names": np.array(["AM", "BMW"], object)})
    data = load("stanford-cars", DataKeys(root=str(tmp_path)), tmp_path)
    assert data.train.labels.tolist() == [1, 0]
    assert data.classes == ("AM", "BMW")
    assert data.tests["test"].names.name(0) == "stanford_cars/cars_test/00001.jpg"  # type: ignore[union-attr]


def test_food_by_its_lists(tmp_path: Path) -> None:
    meta = tmp_path / "food-101" / "meta"
    meta.mkdir(parents=True)
    (tmp_path / "food-101" / "images").mkdir()
    (meta / "train.json").write_text(json.dumps({"pie": ["pie/1", "pie/2"], "soup": ["soup/3"]}))
    (meta / "test.json").write_text(json.dumps({"pie": ["pie/4"], "soup": []}))
    data = load("food101", DataKeys(root=str(tmp_path)), tmp_path)
    assert data.train.labels.tolist() == [0, 0, 1]
    assert data.classes == ("pie", "soup")


def test_inaturalist_by_the_competitions_split(tmp_path: Path) -> None:
    categories = [{"id": 7, "name": "moss"}, {"id": 3, "name": "fern"}]
    for split, rows in (("train", [(0, 7), (1, 3)]), ("val", [(5, 3)])):
        tree = {
            "images": [{"id": i, "file_name": f"{split}_val2019/{i}.jpg"} for i, _ in rows],
            "annotations": [{"image_id": i, "category_id": c} for i, c in rows],
            "categories": categories,
        }
        (tmp_path / f"{split}2019.json").write_text(json.dumps(tree))
    data = load("inaturalist2019", DataKeys(root=str(tmp_path)), tmp_path)
    assert data.classes == ("fern", "moss")
    assert data.train.labels.tolist() == [1, 0]
    assert data.tests["val"].labels.tolist() == [0]


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("stanford-cars", "can no longer be downloaded"),
        ("stanford-cars", "stanford_cars/devkit/cars_train_annos.mat and cars_meta.mat"),
        ("inaturalist2019", "iNaturalist 2019 needs train2019.json"),
    ],
)
def test_a_set_that_is_not_there_says_what_belongs_where(
    name: str, message: str, tmp_path: Path
) -> None:
    with pytest.raises(DataError, match=message.replace(".", r"\.")):
        load(name, DataKeys(root=str(tmp_path)), tmp_path)


def test_the_classes_of_places_are_counted(tmp_path: Path) -> None:
    for split in ("train", "val"):
        blank(tmp_path / split / "abbey" / "1.png")
    with pytest.raises(DataError, match="1 class folders, not 365"):
        load("places365", DataKeys(root=str(tmp_path)), tmp_path)


def test_a_range_test_of_a_transfer_begins_with_its_weights(
    rescue: Rescue, pets: Path, weights: Path, tmp_path: Path
) -> None:
    words = ("--recipe", "transfer-layerwise", *SHORT, *SEEN, "--steps", "10", "--points", "10")
    call = ("lr-range-test", *words, "--out", "out", "--json")
    ended = rescue(*call, "--from", weights, "--to", pets)
    assert ended.code == 0, ended.err
    recipe = recipes.recipe_in(tmp_path / "out" / "seed-0")
    assert recipe.model.options["weights"] == str(weights.resolve())
    assert recipe.data.options["root"] == str(pets)
    lonely = rescue(*call, "--from", weights)
    assert lonely.code == 2
    assert lonely.notes[-1].startswith("error: --from and --to: a transfer needs both.")
    assert rescue(*call, "--model", "resnet18").notes[-1].startswith("error: --model: needs --from")
