"""Weights without a recipe: which network they are, and by whose word they see images."""

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from safetensors.torch import save_file

from rescue_cli import recipe as recipes
from rescue_cli.batch import Measurement
from rescue_cli.build.check import check_ingredients
from rescue_cli.build.evaluation import describe_protocol
from rescue_cli.build.weights import Source, find_weights
from rescue_cli.errors import DataError, UsageError
from rescue_cli.sections.model import weights

KEYS = ("mean", "std", "size", "crop", "interpolation")
Write = Callable[..., str]


@pytest.fixture
def write(tmp_path: Path) -> Write:
    """Writes a file with this metadata and returns its path."""

    def file(**metadata: str) -> str:
        path = tmp_path / "weights.safetensors"
        save_file({"fc.bias": torch.zeros(1000)}, path, metadata)
        return str(path)

    return file


def seen(source: Source) -> dict[str, Any]:
    """What the recipe shows the network."""
    data, evaluation = source.recipe.data.options, source.recipe.eval
    return {
        "mean": data["mean"],
        "std": data["std"],
        "size": evaluation.sizes,
        "crop": evaluation.crops,
        "interpolation": evaluation.interpolation,
    }


def refusal(given: str, *changes: str, error: type[Exception] = UsageError, **named: Any) -> str:
    with pytest.raises(error) as raised:
        find_weights(given, changes, **named)
    return str(raised.value)


def test_an_evaluation_calls_the_weights_of_a_fitted_head_what_the_training_called_them() -> None:
    trained = recipes.load("transfer-probe")
    for recipe in (trained, trained.with_overrides("~model.frozen")):  # as `find_weights` has it
        protocol = describe_protocol(recipe, "val", Measurement(224, 0.875, "none"), False)
        assert protocol["weights"] == "fitted classifier"


# --- preprocessing: the user, the file, timm ---


def test_timms_configuration_fills_what_the_file_leaves_open(write: Write) -> None:
    file = write(crop="0.9", input="3,240,240")
    source = find_weights(file, [], model="resnet50.a2_in1k")
    assert seen(source) == {
        "mean": [0.485, 0.456, 0.406],
        "std": [0.229, 0.224, 0.225],
        "size": [240],
        "crop": [0.9],
        "interpolation": "bicubic",
    }
    origins = dict(zip(KEYS, ("timm", "timm", "metadata", "metadata", "timm"), strict=True))
    assert source.protocol == {
        "weights": file,
        "model": "resnet50.a2_in1k",
        "preprocessing": origins,
    }
    assert source.notes == (
        "preprocessing of resnet50.a2_in1k: size 240, crop 0.9 (by the file's metadata); "
        "mean 0.485 0.456 0.406, std 0.229 0.224 0.225, interpolation bicubic (by timm)",
        "timm also tests it at a larger size: --sizes 288 --crops 1",
    )
    recipe = source.recipe
    assert (recipe.name, recipe.model.name) == ("resnet50", "resnet50")
    assert recipe.model.options["weights"] == file
    assert (recipe.data.name, recipe.train.precision) == ("imagenet", "float32")
    check_ingredients(recipe)
    assert recipes.from_text(recipe.to_yaml(), "its own text").tree == recipe.tree


def test_the_file_goes_before_timm_and_the_user_before_both(write: Write) -> None:
    file = write(
        architecture="tf_efficientnet_lite0",
        mean="0.1, 0.2, 0.3",
        std="[0.4, 0.5, 0.6]",
        input="200",
        crop="1.0",
        interpolation="bilinear",
    )
    by_file = seen(find_weights(file, []))
    assert by_file == {
        "mean": [0.1, 0.2, 0.3],
        "std": [0.4, 0.5, 0.6],
        "size": [200],
        "crop": [1.0],
        "interpolation": "bilinear",
    }
    changes = ["eval.sizes=[64, 96]", "data.std=[1.0, 1.0, 1.0]", "eval.interpolation=bicubic"]
    source = find_weights(file, changes)
    assert seen(source) == {
        **by_file,
        "size": [64, 96],
        "std": [1.0, 1.0, 1.0],
        "interpolation": "bicubic",
    }
    assert source.protocol["preprocessing"] == {
        "mean": "metadata",
        "std": "given",
        "size": "given",
        "crop": "metadata",
        "interpolation": "given",
    }


def test_a_section_given_whole_keeps_what_the_file_says_of_the_rest(write: Write) -> None:
    file = write(architecture="resnet18", mean="0.1,0.2,0.3", std="1,1,1", crop="0.9")
    changes = ["data={name: imagenette, root: DIR}", "eval={sizes: [32]}", "model.name=resnet34"]
    source = find_weights(file, changes)
    assert source.recipe.data.options == {
        "root": "DIR",
        "mean": [0.1, 0.2, 0.3],
        "std": [1.0, 1.0, 1.0],
    }
    assert (source.recipe.eval.sizes, source.recipe.eval.crops) == ([32], [0.9])
    assert source.recipe.model.name == "resnet34"
    assert source.recipe.model.options["weights"] == file


def test_a_crop_that_timm_would_not_make_is_a_warning(write: Write) -> None:
    source = find_weights(write(), [], model="coat_lite_medium_384.in1k")
    assert source.notes[1] == (
        "warning: timm crops this network's images in the mode 'squash'; this evaluation takes "
        "their centre."
    )


def test_a_network_of_one_size_is_asked_for_no_other(write: Write) -> None:
    file = write()
    assert seen(find_weights(file, [], model="vit_tiny_patch16_224"))["size"] == [224]
    assert refusal(file, "eval.sizes=[224, 288]", model="vit_tiny_patch16_224") == (
        "eval.sizes: 288: vit_tiny_patch16_224 takes images of 224 px only. Use eval.sizes=[224]."
    )


@pytest.mark.parametrize(
    ("key", "value", "option"),
    [
        ("mean", "a,b,c", "data.mean"),
        ("std", "", "data.std"),
        ("input", "large", "eval.sizes"),
        ("crop", "87.5%", "eval.crops"),
    ],
)
def test_metadata_that_are_no_numbers_are_refused(
    write: Write, key: str, value: str, option: str
) -> None:
    file = write(architecture="resnet18", **{key: value})
    assert refusal(file, error=DataError) == (
        f"{file}: {key} in its metadata is '{value}', not numbers. Give {option}=VALUE."
    )


def test_numbers_that_cannot_be_are_refused_as_in_a_recipe(write: Write) -> None:
    file = write(architecture="resnet18", crop="1.5")
    assert refusal(file) == "eval.crops: [1.5]: a crop ratio is at most 1."
    file = write(architecture="resnet18", std="0,1,1")
    with pytest.raises(UsageError, match=r"data\.std: .* must be above 0"):
        check_ingredients(find_weights(file, []).recipe)


def test_a_net_of_our_own_needs_every_number(write: Write) -> None:
    file = write(architecture="resnet9", mean="0.5", std="0.5", input="28")
    changes = ["data.name=fashion-mini", "model.width=4", "model.logit_scale=0.125"]
    assert refusal(file, *changes) == (
        f"{file}: neither its metadata nor timm's configuration of resnet9 says eval.crops. "
        "Give eval.crops=VALUE."
    )
    source = find_weights(file, [*changes, "eval.crops=[1.0]", "eval.interpolation=bilinear"])
    check_ingredients(source.recipe)
    assert source.recipe.eval.sizes == [28]


# --- which network ---


def test_a_file_that_says_nothing_needs_a_name(write: Write) -> None:
    file = write()
    assert refusal(file) == (
        f"{file}: contains no recipe and names no architecture. Give the architecture with "
        "--model NAME, or a recipe with --recipe NAME."
    )
    assert find_weights(file, [], recipe="pytorch").recipe.model.name == "resnet50"
    assert find_weights(file, [], recipe="pytorch").protocol == {"weights": file}


def test_names_that_timm_does_not_know_are_refused_with_the_nearest(write: Write) -> None:
    file = write()
    assert refusal(file, model="resnett50").startswith(
        "--model: 'resnett50' is not a model of rescue or timm. Did you mean 'resnet"
    )
    assert refusal(file, model="resnet50.a22_in1k") == (
        "timm has no weights called 'resnet50.a22_in1k'. Did you mean 'resnet50.a2_in1k'?"
    )
    assert refusal("timm:resnet50.a22_in1k") == refusal(file, model="resnet50.a22_in1k")
    assert refusal("timm:resnetv2_50d") == (
        "timm has no weights called 'resnetv2_50d'. It has no weights of this architecture."
    )


def test_one_word_on_the_architecture_is_enough(write: Write) -> None:
    assert refusal("timm:resnet50.a2_in1k", model="resnet18") == (
        "--model: timm:resnet50.a2_in1k already names the architecture. Remove --model resnet18."
    )
    file = write(recipe=recipes.load("quickstart").to_yaml())
    assert refusal(file, model="resnet18") == (
        f"--model: the recipe in {file} already names the architecture. Remove --model resnet18."
    )
    assert refusal(file, model="resnet18", recipe="pytorch") == (
        "--model: --recipe pytorch already names the architecture. Remove --model resnet18."
    )
    assert find_weights(file, []).recipe.name == "quickstart"
    assert find_weights(file, []).protocol == {}


def test_files_that_are_no_weights_are_refused(tmp_path: Path) -> None:
    absent = str(tmp_path / "absent.safetensors")
    assert refusal(absent, error=DataError, model="resnet18") == (
        f"{absent}: no such file. Give a run directory or a weight file."
    )
    run = tmp_path / "photos" / "start" / "seed-0"
    run.mkdir(parents=True)
    (run / "model.safetensors").touch()
    above = str(tmp_path / "photos")
    assert refusal(above, error=DataError) == f"{above}: holds no weights. Give {run}."
    tried = run.parent / "search" / "probe-224"
    tried.mkdir(parents=True)
    (tried / "model.safetensors").touch()
    start = str(run.parent)
    assert refusal(start, error=DataError) == f"{start}: holds no weights. Give {run}."
    assert refusal(str(tmp_path / "fotos"), error=DataError) == (
        f"{tmp_path}/fotos: no such file. Did you mean {above}?"
    )
    empty = str(run.parent.parent / "start" / "nothing")
    Path(empty).mkdir()
    assert refusal(empty, error=DataError) == (
        f"{empty}: holds no weights. Give a run directory or a weight file."
    )
    broken = tmp_path / "broken.safetensors"
    broken.write_bytes(b"not weights")
    assert refusal(str(broken), error=DataError, model="resnet18") == (
        f"{broken}: is neither a safetensors file nor one of torch.save; it begins with "
        "b'not weig'. Copy or download it again."
    )


def test_weights_of_another_network_are_refused_tensor_by_tensor(write: Write) -> None:
    import timm

    file = write()
    with pytest.raises(UsageError, match=r"does not fit resnet18: 101 tensors are missing") as e:
        weights.load_weights(timm.create_model("resnet18"), file, "resnet18", head=True)
    assert "(bn1.bias, bn1.running_mean" in str(e.value)


def test_a_path_that_yaml_would_read_otherwise_is_a_path(tmp_path: Path) -> None:
    folder = tmp_path / "a: [b] #c"
    folder.mkdir()
    file = folder / "w.safetensors"
    save_file({"a": torch.zeros(1)}, file, {"recipe": recipes.load("quickstart").to_yaml()})
    assert find_weights(str(file), []).recipe.model.options["weights"] == str(file)


# --- timm's weights ---


def test_timms_weights_without_a_network_are_refused_with_the_cure(tmp_path: Path) -> None:
    line = ["eval", "timm:resnet50.a2_in1k", f"data.test_root={tmp_path}/val"]
    (tmp_path / "val/n01440764").mkdir(parents=True)
    (tmp_path / "val/n01440764/a.png").touch()
    ended = subprocess.run(
        [sys.executable, "-m", "rescue_cli", *line],
        cwd=tmp_path,
        env={
            **os.environ,
            "HF_HUB_OFFLINE": "1",
            "RESCUE_ALLOCATOR": "off",
            "HF_HOME": str(tmp_path / "hub"),
        },
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert (ended.returncode, ended.stdout) == (3, "")
    assert ended.stderr.splitlines() == [
        "preprocessing of resnet50.a2_in1k: mean 0.485 0.456 0.406, std 0.229 0.224 0.225, "
        "size 224, crop 0.95, interpolation bicubic (by timm)",
        "timm also tests it at a larger size: --sizes 288 --crops 1",
        "val: no image of 999 of 1000 classes (goldfish, great white shark, tiger shark, "
        "hammerhead, electric ray and 994 more): recall unknown; balanced accuracy averages the "
        "other 1.",
        "error: timm:resnet50.a2_in1k: the weights could not be downloaded "
        "(HF_HUB_OFFLINE is set). On a machine with network access, download "
        "https://huggingface.co/timm/resnet50.a2_in1k/resolve/main/model.safetensors and give "
        "the file: FILE --model resnet50.a2_in1k in place of timm:resnet50.a2_in1k, or "
        "model.weights=FILE.",
    ]
    assert not list(tmp_path.glob("runs/*/*")), "an evaluation leaves a result or nothing"


def test_a_new_head_of_few_classes_begins_as_small_as_torchs_own(tmp_path: Path) -> None:
    """timm's EfficientNet begins its own within 1 / sqrt(classes), far above what features need."""
    file = tmp_path / "weights.safetensors"
    save_file(timm.create_model("test_efficientnet", num_classes=100).state_dict(), file)
    network: Any = timm.create_model("test_efficientnet", num_classes=3)
    bound = network.classifier.in_features**-0.5
    assert network.classifier.weight.abs().max() > 2 * bound
    weights.load_weights(network, str(file), "test_efficientnet")
    assert 0.9 * bound < network.classifier.weight.abs().max() <= bound
