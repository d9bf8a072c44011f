"""The shipped recipes: valid, complete, and equal to what was published."""

from pathlib import Path
from typing import Any

import pytest
import torch

from rescue_cli.build.check import check_recipe
from rescue_cli.build.expand import count_processes, epochs_overrides
from rescue_cli.build.optimizers import build_schedules
from rescue_cli.errors import RescueError, UsageError
from rescue_cli.recipe import Recipe, find, from_text, load, names, recipes_folder, yaml
from rescue_cli.recipe.changes import differences
from rescue_cli.runs.environment import check_precision

SHIPPED = sorted(names())
NOT_RECIPES = {"studies", "records"}


@pytest.fixture(params=SHIPPED)
def recipe(request: pytest.FixtureRequest) -> Recipe:
    return load(request.param)


def refusal(*overrides: str, name: str = "quickstart") -> str:
    with pytest.raises(UsageError) as refused:
        check_recipe(load(name, overrides))
    return str(refused.value)


def test_every_file_in_the_folders_is_a_recipe_of_its_own_name() -> None:
    shipped = [f for f in recipes_folder().glob("*/*") if f.parent.name not in NOT_RECIPES]
    files = [file for file in shipped if file.suffix == ".yaml"]
    assert [f.name for f in shipped if f not in files] == ["architectures.json"]
    assert sorted(file.stem for file in files) == SHIPPED
    assert {"quickstart", "myrtle-baseline", "pytorch"} <= set(SHIPPED)


def test_a_shipped_recipe_is_valid(recipe: Recipe) -> None:
    check_recipe(recipe)
    assert recipe.name == find(recipe.name).stem


def test_a_shipped_recipe_begins_with_its_command(recipe: Recipe) -> None:
    first = find(recipe.name).read_text().splitlines()[0]
    verb = "transfer" if find(recipe.name).parent.name == "transfer" else "train"
    assert first.startswith(f"# rescue {verb} --recipe {recipe.name}")


def test_a_recipe_of_a_paper_carries_its_claim(recipe: Recipe) -> None:
    tree = recipe.tree
    if "paper" not in tree:
        ours = {
            "quickstart",
            "rescue94",
            "imagenette-5",
            "imagenette-20",
            "transfer-linear",
            "transfer-layerwise",
            "transfer-probe",
        }
        assert recipe.name in ours, "ours, of no paper"
        return
    assert set(tree["paper"]) == {"title", "url", "table"}
    assert tree["paper"]["url"].startswith("https://")
    expect = tree.get("expect", {})
    assert 50 < expect["top1"] < 100 if expect else "expect.top1" in tree["unknown"]
    assert expect.get("std", 0) < 1
    told_in_full = recipe.name == "hiverge94"  # whose authors published the script and its runs
    assert bool(tree["unknown"]) != told_in_full, "no paper says everything"


def test_a_recipe_reads_back_from_what_it_writes(recipe: Recipe) -> None:
    again = from_text(recipe.to_yaml(), "recipe.yaml")
    assert again == recipe
    assert list(again.tree) == list(recipe.tree)


def test_a_recipe_is_the_same_by_name_and_by_path(recipe: Recipe, tmp_path: Path) -> None:
    file = tmp_path / "mine.yaml"
    file.write_text(find(recipe.name).read_text())
    assert load(str(file)) == recipe


def test_quickstart_is_what_a_newcomer_can_run_anywhere() -> None:
    tree = load("quickstart").tree
    assert tree["data"] == {"name": "fashion-mini"}
    assert tree["train"]["precision"] == "float32"
    assert tree["train"]["seed"] == 0
    assert tree["model"]["name"] == "resnet9"


# "How to train your ResNet 8", its baseline with preprocessing on the GPU, and its notebook:
# mean and deviation of 255, lr and weight decay for a loss that is summed over 512 images
MYRTLE: dict[str, Any] = {
    "task": {"name": "classification"},
    "data": {
        "name": "cifar10",
        "root": None,
        "mean": [0.49141, 0.48216, 0.44655],
        "std": [0.24702, 0.24349, 0.26157],
    },
    "augment": [
        {"name": "pad-crop", "pad": 4, "mode": "reflect"},
        {"name": "flip", "p": 0.5},
        {"name": "cutout", "size": 8},
    ],
    "model": {"name": "resnet9", "width": 64, "logit_scale": 0.125},
    "loss": {"name": "cross-entropy", "label_smoothing": 0.0, "reduction": "sum"},
    "optim": {
        "name": "sgd-velocity",
        "lr": 0.4 / 512,
        "momentum": 0.9,
        "nesterov": True,
        "weight_decay": 5e-4 * 512,
    },
    "schedule": {
        "name": "piecewise",
        "epochs": [0, 5, 24],
        "factors": [0, 1, 0],
        "first_step": 1,
    },
    "eval": {"sizes": [32], "crops": [1.0], "interpolation": "bilinear"},
    "train": {
        "epochs": 24,
        "batch_size": 512,
        "device_batch_size": 512,
        "precision": "float16",
        "channels_last": True,
        "seed": 0,
    },
}
# "ResNet strikes back", Table 2, column PyTorch; 8 GPUs of 32 images as torchvision's script has it
PYTORCH: dict[str, Any] = {
    "task": {"name": "classification"},
    "data": {
        "name": "imagenet",
        "root": None,
        "train_size": 224,
        "train_interpolation": "bilinear",
        "exif": "ignored",
    },
    "augment": [
        {"name": "random-resized-crop", "scale": [0.08, 1.0], "ratio": [3 / 4, 4 / 3]},
        {"name": "flip", "p": 0.5},
    ],
    "model": {"name": "resnet50", "zero_init_last": False},
    "loss": {"name": "cross-entropy", "label_smoothing": 0.0, "reduction": "mean"},
    "optim": {
        "name": "sgd",
        "lr": 0.1,
        "momentum": 0.9,
        "nesterov": False,
        "weight_decay": 1e-4,
    },
    "schedule": {"name": "step", "milestones": [30, 60], "factor": 0.1},
    "eval": {"sizes": [224], "crops": [0.875], "interpolation": "bilinear"},
    "train": {
        "epochs": 90,
        "batch_size": 256,
        "device_batch_size": 32,
        "precision": "float32",
        "channels_last": True,
        "seed": 0,
    },
}


@pytest.mark.parametrize(
    ("name", "published", "top1"),
    [("myrtle-baseline", MYRTLE, 94.1), ("pytorch", PYTORCH, 76.1)],
)
def test_a_recipe_is_what_was_published_to_the_last_constant(
    name: str, published: dict[str, Any], top1: float
) -> None:
    tree = dict(load(name).tree)
    header = {key: tree.pop(key) for key in ("name", "paper", "expect", "unknown", "sources")}
    assert differences(published, tree) == {}
    assert tree == published
    assert header["expect"]["top1"] == top1


@pytest.mark.parametrize("name", [name for name in SHIPPED if name.startswith("myrtle")])
def test_myrtles_pixel_statistics_are_the_notebooks_of_255(name: str) -> None:
    """davidcpage/cifar10-fast f79e8b8, torch_backend.py."""
    data = load(name).data.options
    assert data["mean"] == [round(level / 255, 5) for level in (125.31, 122.95, 113.87)]
    assert data["std"] == [round(level / 255, 5) for level in (62.99, 62.09, 66.70)]


def test_hiverges_claim_is_the_mean_of_the_published_runs() -> None:
    """hiverge/cifar10-speedrun 5cd49b1: ten logs of 200 runs, as p-value.ipynb adds them up."""
    assert load("hiverge94").tree["expect"] == {"top1": 94.008, "std": 0.132, "n": 2000}


def test_fixres_is_trained_as_long_as_the_table_says_and_as_its_authors_do() -> None:
    """c9be6ac of facebookresearch/FixRes: 120 epochs of 5,005 updates, a tenth every 30."""
    per_epoch = 1_281_167 // 512
    for epochs, updates, fall in ((120, 300_000, 75_075), (240, 600_600, 150_150)):
        recipe = load("fixres")
        recipe = recipe.with_overrides(*epochs_overrides(recipe, epochs, []))
        assert recipe.train.epochs * per_epoch == pytest.approx(updates, rel=1e-3)
        (schedule, _), *_ = build_schedules(recipe, per_epoch)
        rates = [schedule(round(number * fall * 1.01)).lr for number in range(4)]
        assert rates == pytest.approx([0.2, 0.02, 0.002, 0.0002])
        before = [schedule(round(number * fall * 0.99)).lr for number in (1, 2, 3)]
        assert before == pytest.approx([0.2, 0.02, 0.002])


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (
            ["train.batch_size=1000", "train.device_batch_size=512"],
            "train.batch_size: 1000 does not divide into micro-batches of 512. "
            "Use 1024 or set train.device_batch_size=500.",
        ),
        (
            ["train.batch_size=7", "train.device_batch_size=512"],
            "train.batch_size: 7 does not divide into micro-batches of 512. "
            "Use 512 or set train.device_batch_size=7.",
        ),
        (
            ["train.batch_size=5001"],
            "train.batch_size: 5001 does not divide into micro-batches of 128. Use 4992.",
        ),
        (
            ["data.subset=100000"],
            "data (fashion-mini).subset: 100000 is not a list of 2 items (an integer at least 1 "
            "each) or null.",
        ),
        (["train.epochs=0"], "train.epochs: 0 must be above 0 and at most 1000000."),
        (["train.batch_size=0"], "train.batch_size: 0 must be between 1 and 1000000."),
        (["train.seed=-1"], "train.seed: -1 must be between 0 and 9223372036854775807."),
        (
            ["train.precision=float8"],
            "train.precision: 'float8' is not one of float16, bfloat16, float32, float64.",
        ),
        (["~train.epochs"], "train: missing key 'epochs' (a number above 0 and at most 1000000). "
         "Add epochs: to the section."),
        (["~optim"], "recipe: missing section 'optim'. Add it."),
        (["train=3"], "train: 3 is not a mapping. Write train: {key: value}."),
        (["augment={name: flip}"], "augment: {'name': 'flip'} is not a list. "
         "Write augment: [{name: ...}]."),
        (["optim=[]"], "optim: an empty list. Give at least one optimizer."),
        (["augment=[{p: 0.5}]"], "augment[0]: missing key 'name' (a string). Name an ingredient."),
        (["augment.flip.p=1.5"], "augment (flip).p: 1.5 must be between 0 and 1."),
        (["augment.flip.q=1"], "augment (flip): unknown key 'q'. Known: p."),
        (["schedule.name=cosin"], "schedule.name: 'cosin' is not known. Did you mean 'cosine'?"),
        (["data.name=cifar"], "data.name: 'cifar' is not known. Did you mean 'cifar10'?"),
        (["data.mean=[0.5, 0.5, 0.5]"], "data.mean: 3 values for 1 channels. Give one for each."),
        (["data.std=[0.0]"], "data.std: [0.0] must be above 0."),
        (
            ["model.name=resnet50"],
            "model (resnet50): unknown key 'width'. Known: drop_path, dropout, dynamic_img_size, "
            "first_norm, frozen, img_size, init, new_head, norm_momentum, pooling, stride_in, "
            "weights, zero_init_last.",
        ),
        (
            ["model.name=resnet5O"],  # nor has any network of timm the key width
            "model.name: 'resnet5O' is not a model of rescue or timm. Did you mean 'resnet50'?",
        ),
        (
            ["model={name: resnet18, img_size: 64}"],
            "model (resnet18): has no key 'img_size'. Remove it with ~model.img_size.",
        ),
        (
            ["model={name: vgg11, drop_path: 0.1}"],
            "model (vgg11): has no key 'drop_path'. Remove it with ~model.drop_path.",
        ),
        (["eval.crops=[1.5]"], "eval.crops: [1.5]: a crop ratio is at most 1."),
        (
            ["eval.sizes=[]"],
            "eval.sizes, eval.crops: an empty list. Give at least one of each.",
        ),
        (["eval.tta=flop"], "eval.tta: 'flop' is not known. Did you mean 'flip'?"),
        (["optim.no_decay=[norm]"], "optim[0].no_decay: 'norm' is not a group. "
         "Did you mean 'norms'?"),
        (
            ["schedule.factors=[0, 1]"],
            "schedule (piecewise): 3 epochs and 2 factors. "
            "Give one factor for each knot, and at least two knots.",
        ),
    ],
)  # fmt: skip
def test_a_recipe_that_cannot_run_is_refused_with_key_value_rule_and_cure(
    overrides: list[str], message: str
) -> None:
    assert refusal(*overrides) == message


def test_a_net_too_large_for_any_memory_is_a_usage_error() -> None:
    assert refusal("model.width=1000000000000").startswith("model (resnet9): cannot be built (")


def test_a_crop_of_files_comes_first_in_the_list() -> None:
    crop = "{name: random-resized-crop, scale: [0.1, 1], ratio: [1, 1]}"
    assert refusal(f"augment=[{{name: flip, p: 0.5}}, {crop}]", name="pytorch") == (
        "augment: random-resized-crop must come first in the list."
    )


def test_an_optimizer_item_may_carry_its_own_schedule() -> None:
    own = "{name: step, milestones: [1, 2], factor: 0.1}"
    check_recipe(load("quickstart", [f"optim.schedule={own}"]))
    assert refusal("optim.schedule={name: stepp}") == (
        "schedule.name: 'stepp' is not known. Did you mean 'step'?"
    )


@pytest.mark.parametrize(
    ("header", "message"),
    [
        ("recipee: x", "recipe: unknown section 'recipee'. Known: "),
        ("trian: {}", "recipe: unknown section 'trian'. Did you mean 'train'?"),
        ("paper: 5", "paper: 5 is not a mapping. Write paper: {key: value}."),
        ("paper: {title: a, urll: b}", "paper: unknown key 'urll'. Did you mean 'url'?"),
        ("expect: {top1: 101}", "expect.top1: 101 must be between 0 and 100."),
        ("unknown: n", "unknown: 'n' is not a list (a string each)."),
        ("sources: [x]", "sources: ['x'] is not a mapping. Write sources: {SOURCE: [KEY, ...]}."),
        ("sources: {Table 2: x}", "sources (Table 2): 'x' is not a list (a string each)."),
        ("sources: {Table 2: [1]}", "sources (Table 2)[0]: 1 is not a string."),
        (
            "sources: {Table 2: []}",
            "sources (Table 2): an empty list. Give its keys, or remove it.",
        ),
        ("sources: {' ': [loss]}", "sources: a source without a name."),
        (
            "sources: {Table 2: [trian.epochs]}",
            "sources (Table 2): unknown section 'trian'. Did you mean 'train'?",
        ),
    ],
)
def test_the_claim_of_a_recipe_is_checked_like_its_sections(header: str, message: str) -> None:
    text = f"{load('quickstart').to_yaml()}{header}\n"
    with pytest.raises(UsageError) as refused:
        from_text(text, "mine.yaml")
    assert str(refused.value).startswith(message)


@pytest.mark.parametrize("name", ["../elsewhere", "/tmp/x", "a/b", "", ".hidden", "a b"])
def test_a_recipes_name_is_fit_to_name_the_folder_of_its_runs(name: str) -> None:
    tree = {**load("quickstart").tree, "name": name}
    with pytest.raises(UsageError, match=r"^name: '.*' must be letters, digits"):
        from_text(yaml.write(tree), "mine.yaml")


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("quickstrat", "recipe: 'quickstrat' is not known. Did you mean 'quickstart'? "
         "See: rescue recipes"),
        ("no/such.yaml", "recipe: no file 'no/such.yaml'. Give a path that exists or a name."),
        ("~nobody-has-this-name/r.yaml", "recipe: no file '~nobody-has-this-name/r.yaml'. "
         "Give a path that exists or a name."),
    ],
)  # fmt: skip
def test_a_recipe_that_is_not_there_is_a_usage_error(name: str, message: str) -> None:
    with pytest.raises(UsageError) as refused:
        load(name)
    assert str(refused.value) == message


def test_processes_that_do_not_divide_the_micro_batches_are_told_which_do() -> None:
    micro_batches = load("pytorch").train.micro_batches
    assert micro_batches == 8
    with pytest.raises(UsageError) as refused:
        count_processes(micro_batches, 3, 1)
    assert str(refused.value) == (
        "--procs: 3 processes do not divide the 8 micro-batches of a step. "
        "Use 1, 2, 4, 8, or another train.device_batch_size."
    )
    counts = [count_processes(micro_batches, None, visible) for visible in (0, 1, 3, 5, 7, 8, 16)]
    assert counts == [1, 1, 2, 4, 4, 8, 8]


def test_float16_without_cuda_names_the_precision_that_fits_the_processor() -> None:
    cure = "bfloat16" if torch.ops.mkldnn._is_mkldnn_bf16_supported() else "float32"
    with pytest.raises(RescueError) as refused:
        check_precision("float16", "cpu")
    assert refused.value.exit_code == 2
    assert str(refused.value) == (
        "train.precision: float16 needs CUDA, and this run is on a CPU. "
        f"Use train.precision={cure}."
    )
    assert check_precision("float16", "cuda") == []


def test_bfloat16_warns_where_the_processor_only_emulates_it() -> None:
    warnings = check_precision("bfloat16", "cpu")
    if torch.ops.mkldnn._is_mkldnn_bf16_supported():
        assert warnings == []
    else:
        (warning,) = warnings
        assert warning.startswith("this processor only emulates bfloat16")
        assert warning.endswith("Use train.precision=float32.")


@pytest.mark.parametrize("computed", [True, False])
def test_bfloat16_warns_on_a_gpu_that_only_emulates_it(
    computed: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    def is_supported(including_emulation: bool = True) -> bool:
        return computed or including_emulation

    monkeypatch.setattr(torch.cuda, "is_bf16_supported", is_supported)
    warning = "this GPU only emulates bfloat16. Use train.precision=float16."
    assert check_precision("bfloat16", "cuda") == ([] if computed else [warning])
    assert check_precision("float32", "cuda") == []


def test_differences_show_the_order_of_augmentations_and_items_of_one_name() -> None:
    flips = [{"name": "flip", "p": 0.1}, {"name": "cutout", "size": 8}, {"name": "flip", "p": 0.2}]
    turned = [flips[1], flips[0], flips[2]]
    assert differences({"augment": flips}, {"augment": turned}) == {
        "augment": (["flip", "cutout", "flip[2]"], ["cutout", "flip", "flip[2]"])
    }
    changed = [*flips[:2], {"name": "flip", "p": 0.3}]
    assert differences({"augment": flips}, {"augment": changed}) == {
        "augment.flip[2].p": (0.2, 0.3)
    }


def test_an_absent_key_and_a_null_one_do_not_differ() -> None:
    assert differences({"data": {"root": None}}, {"data": {"name": "x"}}) == {
        "data.name": (None, "x")
    }
