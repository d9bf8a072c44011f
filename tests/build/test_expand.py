"""`--model` and `--epochs`: the overrides that they stand for."""

import json
from typing import Annotated, Any

import pytest
import torch
from annotated_types import Ge

from rescue_cli.build import expand as options
from rescue_cli.build.check import check_recipe
from rescue_cli.build.expand import expand_options
from rescue_cli.build.networks import build_network
from rescue_cli.build.optimizers import build_schedules
from rescue_cli.errors import UsageError
from rescue_cli.recipe import Recipe, architectures, from_tree, load, names
from rescue_cli.recipe.schema import Epochs, InEpochs, PositiveInt
from rescue_cli.sections.schedule import SCHEDULES, Rates, Schedule, ScheduleContext
from tests.conftest import Rescue

ROWS: list[dict[str, Any]] = architectures.table()["architectures"]


def with_model(recipe: str, name: str, *overrides: str) -> Recipe:
    base = load(recipe)
    return base.with_overrides(*overrides, *options.model_overrides(base, name, overrides))


# --- the network ---


@pytest.mark.parametrize("row", ROWS, ids=[row["name"] for row in ROWS])
def test_each_of_the_25_networks_trains_by_a3_at_the_tables_sizes(row: dict[str, Any]) -> None:
    recipe = with_model("a3", row["name"])
    check_recipe(recipe)
    train_size, test_size = row["sizes"]["a3"]
    assert recipe.model.name == row["name"]
    assert recipe.data.options["train_size"] == train_size
    assert recipe.eval.sizes == [test_size]


@pytest.mark.parametrize(
    ("recipe", "name", "expected"),
    [
        ("a1", "efficientnetv2_rw_s", ["data.train_size=288", "eval.sizes=[384]"]),
        ("a3", "efficientnet_b2", ["data.train_size=192", "eval.sizes=[256]"]),
        (
            "a3",
            "vit_tiny_patch16_224",
            ["data.train_size=160", "eval.sizes=[224]", "model.img_size=160",
             "model.dynamic_img_size=true"],
        ),
        (
            "a2",
            "vit_tiny_patch16_224",
            ["data.train_size=224", "eval.sizes=[224]", "model.img_size=224"],
        ),
        (
            "pytorch",
            "efficientnet_b0",
            ["data.train_size=224", "eval.sizes=[224]", "~model.zero_init_last"],
        ),
        ("a3", "convnext_tiny", []),
        ("a1", "vgg11", ["~model.drop_path"]),
        ("myrtle-baseline", "resnet18", ["~model.width", "~model.logit_scale"]),
        ("a1", "resnet9", ["~model.drop_path"]),
    ],
)  # fmt: skip
def test_model_stands_for_name_sizes_and_the_removal_of_what_the_network_lacks(
    recipe: str, name: str, expected: list[str]
) -> None:
    assert options.model_overrides(load(recipe), name, []) == [f"model.name={name}", *expected]


def test_a_transformer_trained_at_160_px_sees_224() -> None:
    recipe = with_model("a3", "vit_tiny_patch16_224")
    network = build_network(recipe, 10, torch.device("cpu")).eval()
    assert network.pos_embed.shape == (1, 1 + 10 * 10, 192)
    with torch.inference_mode():
        for size in (160, *recipe.eval.sizes):
            assert network(torch.zeros(1, 3, size, size)).shape == (1, 10)


def test_the_sizes_of_a_copy_with_another_name_are_known_by_its_own() -> None:
    copied = from_tree({**load("a3").tree, "name": "mine"})
    assert "data.train_size=320" in options.model_overrides(copied, "efficientnet_b4", [])
    changed = copied.with_overrides("data.train_size=128")
    assert options.model_overrides(changed, "efficientnet_b4", []) == ["model.name=efficientnet_b4"]


def test_what_the_user_set_stays() -> None:
    recipe = with_model("a3", "vit_tiny_patch16_224", "data.train_size=128", "eval.sizes=[128]")
    assert (recipe.data.options["train_size"], recipe.eval.sizes) == (128, [128])
    assert recipe.model.options["img_size"] == 128
    assert "dynamic_img_size" not in recipe.model.options
    kept = with_model("pytorch", "efficientnet_b0", "model.zero_init_last=false")
    with pytest.raises(UsageError, match="has no key 'zero_init_last'"):
        check_recipe(kept)


@pytest.mark.parametrize("override", ["model.name=resnet34", "model={name: resnet34}"])
def test_two_names_of_a_network_are_refused(override: str) -> None:
    with pytest.raises(UsageError) as refused:
        options.model_overrides(load("a3"), "resnet18", [override])
    assert str(refused.value) == "--model and model.name set the same thing. Give only one."


def test_an_unknown_network_and_one_that_sees_one_size_are_refused() -> None:
    with pytest.raises(
        UsageError, match=r"'resnet51' is not a model of rescue or timm. Did you mean"
    ):
        options.model_overrides(load("a3"), "resnet51", [])
    with pytest.raises(UsageError) as refused:
        options.model_overrides(load("a3"), "mixer_b16_224", [])
    assert str(refused.value) == (
        "model (mixer_b16_224): takes images of one size; training has 160 px and "
        "eval.sizes is [224]. Set eval.sizes=[160]."
    )


def test_the_papers_micro_batches_are_said_where_they_differ() -> None:
    _, notes = expand_options(load("a3"), [], "regnety_320", None)
    assert notes[1:] == [
        "the paper trained RegNetY-32GF on 16 GPUs with 128 images each; for the same "
        "micro-batches, give train.device_batch_size=128"
    ]
    assert len(expand_options(load("a3"), [], "regnety_040", None)[1]) == 1
    smaller = ["train.device_batch_size=64"]
    assert len(expand_options(load("a3"), smaller, "regnety_320", None)[1]) == 1


# --- epochs ---


@pytest.mark.parametrize(
    ("recipe", "epochs", "expected"),
    [
        ("a2", 30, ["train.epochs=30", "schedule.warmup_epochs=0.5"]),
        ("a3", 10, ["train.epochs=10", "schedule.warmup_epochs=0.5"]),
        ("pytorch", 9, ["train.epochs=9", "schedule.milestones=[3,6]"]),
        ("quickstart", 3, ["train.epochs=3", "schedule.epochs=[0,0.75,3]"]),
        ("quickstart", 9.9, ["train.epochs=9.9", "schedule.epochs=[0,2.475,9.9]"]),
    ],
)
def test_epochs_scales_what_is_counted_in_epochs(
    recipe: str, epochs: float, expected: list[str]
) -> None:
    assert options.epochs_overrides(load(recipe), epochs, []) == expected


@pytest.mark.parametrize("recipe", names())
def test_half_the_epochs_run_through_the_same_rates(recipe: str) -> None:
    whole = load(recipe)
    half = whole.with_overrides(*options.epochs_overrides(whole, whole.train.epochs / 2, []))
    if "per" in whole.schedule.options:
        whole, half = (each.with_overrides("schedule.per=step") for each in (whole, half))
    for (schedule, ratio), (scaled, same) in zip(
        build_schedules(whole, 100), build_schedules(half, 200), strict=True
    ):
        assert ratio == same
        for step in range(0, int(100 * whole.train.epochs), 37):
            assert scaled(step).lr == pytest.approx(schedule(step).lr, rel=1e-9, abs=1e-12)


def test_a_key_set_by_the_user_and_a_section_replaced_stay() -> None:
    assert options.epochs_overrides(load("a2"), 30, ["schedule.warmup_epochs=3"]) == [
        "train.epochs=30"
    ]
    given = "schedule={name: step, milestones: [1, 2], factor: 0.1}"
    assert options.epochs_overrides(load("a2", [given]), 30, [given]) == ["train.epochs=30"]
    with pytest.raises(UsageError) as refused:
        options.epochs_overrides(load("a2"), 30, ["train.epochs=3"])
    assert str(refused.value) == "--epochs and train.epochs set the same thing. Give only one."


def test_schedules_of_optimizer_items_scale_and_are_addressed_by_group() -> None:
    item = "momentum: 0.9, nesterov: false, weight_decay: 0"
    optim = (
        f"optim=[{{name: sgd, params: biases, lr: 1.0, {item}, "
        "schedule: {name: step, milestones: [4, 5], factor: 0.1}}, "
        f"{{name: sgd, params: filters+norms+head+rest, lr: 1.0, {item}}}]"
    )
    recipe = from_tree(load("quickstart", [optim]).tree)
    assert options.epochs_overrides(recipe, 3, []) == [
        "train.epochs=3", "optim.biases.schedule.milestones=[2,2.5]", "schedule.epochs=[0,0.75,3]",
    ]  # fmt: skip
    for way in ("optim.biases.schedule.milestones", "optim.0.schedule", "optim.biases"):
        found = options.epochs_overrides(recipe, 3, [f"{way}=[1]"])
        assert found == ["train.epochs=3", "schedule.epochs=[0,0.75,3]"]


def test_a_new_ingredient_needs_no_more_than_the_mark(monkeypatch: pytest.MonkeyPatch) -> None:
    def mine(
        span: ScheduleContext,
        *,
        turns: list[tuple[Epochs, float]],
        hold: Annotated[float, Ge(0), InEpochs()] | None = 8.0,
        cycles: PositiveInt,
    ) -> Schedule:
        return lambda _: Rates(span.lr * len(turns) * cycles * (hold or 1.0))

    monkeypatch.setitem(SCHEDULES, "mine", mine)
    schedule = "schedule={name: mine, turns: [[1, 2.0]], cycles: 4}"
    recipe = from_tree(load("quickstart", [schedule]).tree)
    found = options.epochs_overrides(recipe, 12, [])
    assert found == ["train.epochs=12", "schedule.turns=[[2,2.0]]", "schedule.hold=16"]


# --- the command ---


def test_train_prints_what_the_options_set_and_shows_it_in_the_plan(rescue: Rescue) -> None:
    code, out, err = rescue(
        "train", "--recipe", "a3", "--model", "regnety_040", "--epochs", "10", "--dry-run",
        "--json", "train.precision=float32",
    )  # fmt: skip
    assert code == 0
    assert err.splitlines() == [
        "--model sets: model.name=regnety_040 data.train_size=160 eval.sizes=[224]",
        "--epochs sets: train.epochs=10 schedule.warmup_epochs=0.5",
    ]
    found = json.loads(out)
    assert found["recipe"]["model"] == {"name": "regnety_040"}
    assert found["recipe"]["schedule"]["warmup_epochs"] == 0.5
    assert found["steps"] == 6250


def test_epochs_of_the_user_outlive_smoke(rescue: Rescue) -> None:
    _, out, err = rescue(
        "train", "--recipe", "quickstart", "--epochs", "3", "--smoke", "--dry-run", "--json"
    )
    assert json.loads(out)["steps"] == 6
    assert "train.epochs" not in err.splitlines()[-1]


@pytest.mark.parametrize("value", ["0", "-1", "nan", "inf"])
def test_a_number_of_epochs_that_is_none_is_refused(rescue: Rescue, value: str) -> None:
    code, _, err = rescue("train", "--recipe", "a3", "--epochs", value)
    assert code == 2
    assert err == f"error: --epochs: {float(value)} must be above 0 and at most 1000000.\n"


def test_a_snapshot_that_would_never_be_written_is_refused(rescue: Rescue) -> None:
    words = ("train", "--out", "run", "model.width=4", "data.subset=[256, 100]", "train.epochs=1")
    code, _, err = rescue(*words, "train.snapshots=[0]")
    assert (code, "train.snapshots[0]: 0 must be at least 1." in err) == (2, True), err
    code, _, err = rescue(*words, "train.snapshots=[1, 3]")
    assert code == 2
    assert "train.snapshots: 3 is beyond the run, which has 2 steps." in err


def test_test_images_in_memory_are_as_large_as_they_are_looked_at() -> None:
    words = ["data.name=imagenette", "data.resident=true", "data.train_size=32"]
    with pytest.raises(UsageError, match=r"kept at data\.train_size, 32 px, and .* need 64 px"):
        check_recipe(load("pytorch", [*words, "eval.sizes=[64]", "eval.crops=[1.0]"]))
    check_recipe(load("pytorch", [*words, "eval.sizes=[28]", "eval.crops=[0.875]"]))


def test_resuming_with_the_same_options_is_the_same_run(rescue: Rescue) -> None:
    call = ("train", "--recipe", "quickstart", "--epochs", "0.05", "--out", "run", "--json")
    small = ("model.width=4", "data.subset=[256, 100]")
    assert rescue(*call, *small)[0] == 0
    code, _, err = rescue("train", "--out", "run", "--epochs", "0.05", "--resume", "--json")
    assert code == 0
    assert "finished already; nothing to do" in err
    for option in (["--smoke"], ["--subset", "100:50"]):
        code, _, err = rescue("train", "--out", "run", "--resume", *option)
        assert code == 2
        assert "--subset, --smoke and --lr-from: a resumed run keeps its recipe. " in err
