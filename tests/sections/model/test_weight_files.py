"""Weights as people have them: every common format and name, and files that are something else."""

import argparse
import gzip
import io
import json
import os
import pickle
import re
import subprocess
import tarfile
import warnings
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
from PIL import Image
from safetensors.torch import save_file
from torch import Tensor, nn

from rescue_cli.build.weights import find_weights
from rescue_cli.errors import DataError, RescueError, UsageError
from rescue_cli.inference import predict_images
from rescue_cli.sections.model import load_weights, weights
from rescue_cli.sections.model.dense_prediction import create_backbone
from tests.conftest import Rescue

NAME = "test_resnet"
State = dict[str, Tensor]


@pytest.fixture(scope="module")
def state() -> State:
    """A small network's tensors, of 1,000 classes, none of them as it begins."""
    torch.manual_seed(3)
    drawn = timm.create_model(NAME, num_classes=1000).state_dict()
    return {k: v + torch.rand(v.shape) if v.is_floating_point() else v for k, v in drawn.items()}


def before(prefix: str, tensors: Mapping[str, Tensor]) -> State:
    return {prefix + key: tensor for key, tensor in tensors.items()}


def moved(tensors: Mapping[str, Tensor]) -> State:
    """Other weights of the same names."""
    return {k: v + 1 if v.is_floating_point() else v for k, v in tensors.items()}


def loaded(source: object, classes: int = 1000, name: str = NAME, **options: Any) -> Any:
    """The network with the weights, and what was said, less the file's name."""
    network = timm.create_model(name, num_classes=classes, **options)
    message = load_weights(network, str(source), name, head=classes == 1000)
    return network.state_dict(), message and message.partition(f"{source}: ")[2]


def same(found: Mapping[str, Tensor], wanted: Mapping[str, Tensor]) -> bool:
    return all(torch.equal(found[key], tensor) for key, tensor in wanted.items())


# --- what is understood ---


@pytest.mark.parametrize("ending", [".pth", ".pt", ".bin", ".pth.tar", ".safetensors"])
@pytest.mark.parametrize("zipped", [True, False])
def test_files_of_torch_are_read_whatever_they_are_called(
    state: State, tmp_path: Path, ending: str, zipped: bool
) -> None:
    file = tmp_path / f"w{ending}"
    torch.save(state, file, _use_new_zipfile_serialization=zipped)
    found, message = loaded(file)
    assert same(found, state)
    assert message is None
    assert find_weights(str(file), [], model=NAME).name == "w"


PREFIXES = {
    "module.": "prefix 'module.' removed",
    "model.": "prefix 'model.' removed",
    "backbone.": "prefix 'backbone.' removed",
    "module.model.encoder.": "prefix 'module.model.encoder.' removed",
    "_orig_mod.": "'_orig_mod.' removed from names",
    "module._orig_mod.": "'_orig_mod.' removed from names; prefix 'module.' removed",
}


@pytest.mark.parametrize(("prefix", "message"), PREFIXES.items())
def test_a_common_prefix_is_removed_and_said(
    state: State, tmp_path: Path, prefix: str, message: str
) -> None:
    file = tmp_path / "w.safetensors"
    save_file(before(prefix, state), file)
    for classes in (1000, 10):
        found, output = loaded(file, classes)
        assert same(found, {k: v for k, v in state.items() if classes == 1000 or "fc" not in k})
        assert output == message


def test_layers_that_were_compiled_or_sharded_alone_are_known(state: State, tmp_path: Path) -> None:
    file = tmp_path / "w.pt"
    torch.save({re.sub(r"^layer1\.", "layer1._orig_mod.", k): v for k, v in state.items()}, file)
    found, message = loaded(file)
    assert same(found, state)
    assert message == "'_orig_mod.' removed from names"


def checkpoints(state: State) -> dict[str, tuple[Any, str]]:
    """What trainings leave, each with what is said of it; `state` is what is to be taken."""
    other = moved(state)
    loop = {"epoch": 3, "optimizer": {"state": {0: {"exp_avg": torch.zeros(2)}}}}
    head = {k: v for k, v in state.items() if k.startswith("fc.")}
    body = {k: v for k, v in state.items() if k not in head}
    return {
        "pytorch's example": (
            {**loop, "state_dict": before("module.", state), "best_acc1": torch.tensor(71.5)},
            "'state_dict' is used; 3 not used (best_acc1, epoch, optimizer); "
            "prefix 'module.' removed",
        ),
        "timm": (
            {
                "state_dict": other,
                "state_dict_ema": state,
                "args": argparse.Namespace(lr=0.1, out=Path("x")),
                "metric": np.float64(71.5),
            },
            "'state_dict_ema', the average, is used (for the others give FILE#state_dict); "
            "2 not used (args, metric)",
        ),
        "deit": (
            {"model": other, "model_ema": before("module.", state)},
            "'model_ema', the average, is used (for the others give FILE#model); "
            "prefix 'module.' removed",
        ),
        "the average alone": ({"model_ema": state}, "'model_ema', the average, is used"),
        "composer": (
            {"state": {"model": before("module.", state)}},
            "'state.model' is used; prefix 'module.' removed",
        ),
        "a teacher alone": (
            {"teacher": before("backbone.", state)},
            "'teacher' is used; prefix 'backbone.' removed",
        ),
        "a student's average": (
            {"student": other, "teacher": other, "ema": state},
            "'ema', the average, is used (for the others give FILE#student); "
            "1 not used (teacher)",
        ),
        "an average of parameters": (
            {"model": state, "ema": {k: v for k, v in other.items() if "running_" not in k}},
            "'ema' is not a complete network; 'model' is used",
        ),
        "an average's decay": (
            {"state_dict": state, "ema": {"decay": torch.tensor(0.99)}},
            "'state_dict' is used; 1 not used (ema)",
        ),
        "an average's decays": (
            {"state_dict": state, "ema": {"decay": torch.tensor([0.99])}},
            "'ema' is not a complete network; 'state_dict' is used",
        ),
        "an average within": (
            {"state_dict": other, "model_ema": {"num_updates": torch.tensor(3), "module": state}},
            "'model_ema.module', the average, is used (for the others give FILE#state_dict)",
        ),
        "a decay beside tensors": (
            {**state, "ema": {"decay": torch.tensor(0.99)}},
            "1 not used (ema)",
        ),
        "decays beside tensors": (
            {**state, "ema": {"decay": torch.tensor([0.99])}},
            "'ema' is not a complete network",
        ),
        "a number beside an unknown name": (
            {"mine": state, "best": torch.tensor(71.5)},
            "'mine' is used; 1 not used (best)",
        ),
        "torch's average": (
            {**before("module.", state), "n_averaged": torch.tensor(3)},
            "prefix 'module.' removed; 1 not used (n_averaged)",
        ),
        "a head beside a backbone": (
            {**before("backbone.", body), **head, "criterion.weight": torch.ones(3)},
            "prefix 'backbone.' removed; 1 not used (criterion.weight)",
        ),
        "an unknown name": ({"mine": state, "note": "x"}, "'mine' is used; 1 not used (note)"),
    }  # fmt: skip


@pytest.mark.parametrize("kind", checkpoints({}))
def test_the_weights_in_a_checkpoint_are_found_and_named(
    state: State, tmp_path: Path, kind: str
) -> None:
    content, wanted = checkpoints(state)[kind]
    file = tmp_path / "w.pth.tar"
    torch.save(content, file)
    found, message = loaded(file)
    assert same(found, state)
    assert message == wanted.replace("FILE", str(file))


def test_a_part_of_a_file_is_named_after_a_hash(state: State, tmp_path: Path) -> None:
    file = tmp_path / "w.pth"
    torch.save({"state_dict": state, "state_dict_ema": moved(state)}, file)
    assert same(loaded(f"{file}#state_dict")[0], state)
    assert same(loaded(f"{file}#state_dict_ema")[0], moved(state))
    source = find_weights(f"{file}#state_dict", [], model=NAME)
    assert source.recipe.model.options["weights"] == f"{file.resolve()}#state_dict"
    assert source.name == "w-state_dict"
    with pytest.raises(
        UsageError, match=r"contains no part 'ema'\. It has: state_dict, state_dict_e"
    ):
        weights.read_weights(f"{file}#ema")
    pair = {**before("module.q.", state), **before("module.k.", moved(state))}
    torch.save({"state_dict": pair}, file)
    with pytest.raises(UsageError) as raised:
        loaded(file)
    choices = f"{file}#module.k or {file}#module.q"
    assert str(raised.value) == f"model.weights: {file} contains the network twice. Give {choices}."
    assert same(loaded(f"{file}#module.q")[0], state)
    assert same(loaded(f"{file}#state_dict.module.k")[0], moved(state))
    torch.save({"a": state, "b": state}, file)
    with pytest.raises(UsageError, match=f"Give {file}#a or {file}#b"):
        loaded(file)
    torch.save({"student": moved(state), "teacher": before("backbone.", state)}, file)
    with pytest.raises(UsageError) as raised:
        loaded(file)
    choices = f"{file}#student or {file}#teacher"
    assert str(raised.value) == f"{file}: contains several networks. Give {choices}."
    assert same(loaded(f"{file}#teacher")[0], state)
    hashed = tmp_path / "w#1.pth"
    torch.save(state, hashed)
    assert same(loaded(hashed)[0], state)


def test_an_index_of_shards_is_read_whole(state: State, tmp_path: Path) -> None:
    names = {key: f"model-{i % 2}.safetensors" for i, key in enumerate(state)}
    index = tmp_path / "model.safetensors.index.json"
    index.write_text(json.dumps({"metadata": {}, "weight_map": names}))
    for shard in ("model-0.safetensors", "model-1.safetensors"):
        with pytest.raises(
            DataError, match=rf"of 2 weight files, of which \d are missing beside it \({shard}\)"
        ):
            weights.read_weights(index)
        save_file({k: v for k, v in state.items() if names[k] == shard}, tmp_path / shard)
    assert same(loaded(index)[0], state)
    assert same(loaded(tmp_path)[0], state), "the folder of such files"


def test_a_folder_of_the_hub_says_its_network_and_preprocessing(
    state: State, tmp_path: Path
) -> None:
    torch.save(state, tmp_path / "pytorch_model.bin")
    shown = {"mean": [0.1, 0.2, 0.3], "std": [1, 1, 1], "input_size": [3, 96, 96],
             "crop_pct": 0.9, "interpolation": "bilinear"}  # fmt: skip
    output = {"architecture": NAME, "num_classes": 1000, "pretrained_cfg": shown}
    (tmp_path / "config.json").write_text(json.dumps(output))
    recipe = find_weights(str(tmp_path), []).recipe
    assert (recipe.model.name, recipe.eval.sizes, recipe.eval.crops) == (NAME, [96], [0.9])
    assert recipe.data.options["mean"] == [0.1, 0.2, 0.3]


def test_a_link_of_the_hubs_cache_is_not_followed(state: State, tmp_path: Path) -> None:
    blobs, snapshot = tmp_path / "blobs", tmp_path / "snapshot"
    blobs.mkdir()
    snapshot.mkdir()
    for name in ("model-0.safetensors", "model.safetensors.index.json"):
        (snapshot / name).symlink_to(blobs / name.upper())
    save_file(state, blobs / "MODEL-0.SAFETENSORS")
    index = {"weight_map": dict.fromkeys(state, "model-0.safetensors")}
    (blobs / "MODEL.SAFETENSORS.INDEX.JSON").write_text(json.dumps(index))
    place = weights.resolve_source(str(snapshot))
    assert place == str(snapshot.resolve() / "model.safetensors.index.json")
    assert same(loaded(place)[0], state)


def test_the_architecture_that_a_checkpoint_names_is_taken(state: State, tmp_path: Path) -> None:
    file = tmp_path / "w.pth.tar"
    torch.save({"arch": NAME, "state_dict": state}, file)
    assert find_weights(str(file), []).recipe.model.name == NAME
    torch.save({"arch": "mine", "state_dict": state}, file)
    with pytest.raises(UsageError, match="names no architecture"):
        find_weights(str(file), [])


def test_counts_of_batches_and_a_head_may_be_missing(state: State, tmp_path: Path) -> None:
    file = tmp_path / "w.pt"
    old = {k: v for k, v in state.items() if "num_batches" not in k}
    torch.save(old, file)
    assert same(loaded(file)[0], old)
    assert loaded(file)[1] is None
    body = {k: v for k, v in old.items() if not k.startswith("fc.")}
    torch.save(body, file)
    found, message = loaded(file, 10)
    assert same(found, body)
    assert message == "fc missing, reinitialised"
    torch.save({**body, "fc.0.weight": torch.ones(3, 3)}, file)
    assert loaded(file, 10)[1] == "fc missing, reinitialised; 1 not used (fc.0.weight)"
    assert refused(file) == (
        f"model.weights: {file} does not fit {NAME}: 2 tensors are missing (fc.bias, fc.weight), "
        "1 tensors are unknown (fc.0.weight). Everything but the head fits: name the data set "
        "of their classes, or train a new head with rescue transfer."
    )


def test_positions_of_another_size_are_resampled_by_timm_and_said(tmp_path: Path) -> None:
    file = tmp_path / "w.pt"
    small = timm.create_model("test_vit", num_classes=1000, img_size=64).state_dict()
    torch.save(small, file)
    found, message = loaded(file, 10, name="test_vit", img_size=96)
    assert message == "names and shapes converted by timm"
    assert found["pos_embed"].shape != small["pos_embed"].shape
    assert same(found, {k: v for k, v in small.items() if k != "pos_embed" and "head" not in k})


def test_weights_that_must_fit_whole_are_reshaped_and_never_resampled(tmp_path: Path) -> None:
    file = tmp_path / "w.pt"
    state = timm.create_model("test_vit", num_classes=1000, img_size=64).state_dict()
    kernel = "patch_embed.proj.weight"
    torch.save({**state, kernel: state[kernel].flatten(1)}, file)  # as linear layers have it
    found, message = loaded(file, name="test_vit", img_size=64)
    assert message == "names and shapes converted by timm"
    assert same(found, state)
    assert refused(file, name="test_vit", img_size=96).startswith(
        f"model.weights: {file} does not fit test_vit: 2 tensors are of another shape "
    )
    torch.save(state, file)
    assert refused(file, name="test_vit", img_size=96) == (
        f"model.weights: {file} does not fit test_vit: 1 tensors are of another shape (pos_embed "
        "(1, 17, 64), not (1, 37, 64)). Give their architecture with model.name or "
        "--model."
    )


def test_a_backbone_takes_a_classifiers_weights_of_any_name(state: State, tmp_path: Path) -> None:
    file = tmp_path / "w.pth"
    torch.save({"state_dict": before("module.", state)}, file)
    backbone = create_backbone(NAME, 3, "trained")
    assert backbone.load(str(file), NAME) == (
        f"weights of {file}: 'state_dict' is used; prefix 'module.' removed"
    )
    own = {k: v for k, v in backbone.body.state_dict().items() if "num_batches" not in k}
    assert own
    assert same(state, own)


# --- what is refused ---


def refused(source: object, classes: int = 1000, **options: Any) -> str:
    with pytest.raises(RescueError) as raised:
        loaded(source, classes, **options)
    return str(raised.value)


def test_other_misfits_name_tensors_shapes_and_the_cure(state: State, tmp_path: Path) -> None:
    file = tmp_path / "w.pt"
    torch.save(timm.create_model(NAME, num_classes=7).state_dict(), file)
    assert refused(file) == (
        f"model.weights: {file} does not fit {NAME}: 2 tensors are of another shape (fc.bias (7,), "
        "not (1000,), fc.weight (7, 96), not (1000, 96)). Everything but the head fits: name the "
        "data set of their classes, or train a new head with rescue transfer."
    )
    torch.save(timm.create_model(NAME, num_classes=1000, in_chans=1).state_dict(), file)
    assert refused(file) == (
        f"model.weights: {file} does not fit {NAME}: 1 tensors are of another shape "
        "(conv1.0.weight (16, 1, 3, 3), not (16, 3, 3, 3)). They take images with 1 channel(s): "
        "set data.channels=1."
    )
    torch.save({**state, "conv1.0.weight": torch.ones(())}, file)
    assert "1 tensors are of another shape (conv1.0.weight (), not" in refused(file)
    torch.save({**state, "layer9.weight": torch.ones(1)}, file)
    for classes in (1000, 10):
        assert "1 tensors are unknown (layer9.weight)" in refused(file, classes)
    assert "Give their architecture" in refused(file)


class Runs:
    """A pickle of it runs a command where it is read."""

    def __reduce__(self) -> Any:
        return os.system, (f"touch {os.environ['RESCUE_TEST_RAN']}",)


@pytest.mark.parametrize("how", ["zip", "old", "pickle"])
def test_no_code_of_a_file_is_run(
    state: State, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, how: str
) -> None:
    ran, file = tmp_path / "ran", tmp_path / "w.pth"
    monkeypatch.setenv("RESCUE_TEST_RAN", str(ran))
    content = {"state_dict": state, "args": Runs()}
    if how == "pickle":
        file.write_bytes(pickle.dumps(content))
    else:
        torch.save(content, file, _use_new_zipfile_serialization=how == "zip")
    message = refused(file)
    assert not ran.exists()
    assert "convert it once: python -c" in message
    if how != "pickle":
        assert message.startswith(f"{file}: contains more than tensors (posix.system); reading it")


def test_the_line_that_converts_a_file_converts_it(
    state: State, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    network: nn.Module = timm.create_model(NAME, num_classes=1000)
    network.load_state_dict(state)
    mixed = {"model": network, "config": type(network), "step": 3}
    for content, name in ((network, "w"), (mixed, 'it\'s "$HOME" `é`')):
        torch.save(content, f"{name}.pth")
        convert(refused(f"{name}.pth"))
        assert same(loaded(f"{name}.weights.pth")[0], state)
    Path("w.pkl").write_bytes(pickle.dumps({"model": {k: v.numpy() for k, v in state.items()}}))
    convert(refused("w.pkl"))
    assert same(loaded("w.pkl.weights.pth")[0], state)
    jit: Any = torch.jit
    with pytest.warns((FutureWarning, DeprecationWarning)):
        scripted = jit.trace(network.eval(), torch.zeros(1, 3, 64, 64))
    scripted.save("s.pt")
    message = refused("s.pt")
    assert message.startswith("s.pt: is a TorchScript program")
    convert(message)
    assert same(loaded("s.weights.pth")[0], {k: v for k, v in state.items() if "num_b" not in k})


def convert(message: str) -> None:
    """Runs the line that a message gives, as a shell hands it on."""
    _, _, line = message.partition("python -c ")
    code = subprocess.check_output(["sh", "-c", f"printf %s {line}"], text=True)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that jit is deprecated
        exec(code, {})


def cut(kind: str) -> Callable[[Path, State], None]:
    def write(file: Path, state: State) -> None:
        if kind == "safetensors":
            save_file(state, file)
        else:
            torch.save(state, file, _use_new_zipfile_serialization=kind == "zip")
        content = file.read_bytes()
        file.write_bytes(content[: len(content) // 2])

    return write


def tarred(file: Path, state: State) -> None:
    torch.save(state, file.with_suffix(".inner"))
    with tarfile.open(file, "w") as archive:
        archive.add(file.with_suffix(".inner"), "w.pth")


POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a2146\nsize 12345\n"
OTHERS: dict[str, tuple[Callable[[Path, State], Any], str]] = {
    "pointer": (
        lambda file, _: file.write_bytes(POINTER),
        r"is a git-lfs pointer, not the weights \(\d+ bytes\)\. Run 'git lfs pull'\.",
    ),
    "page": (
        lambda file, _: file.write_text("\n<!DOCTYPE html><html>Sign in</html>"),
        r"is a web page, not the weights\. Download the file itself",
    ),
    "empty": (lambda file, _: file.touch(), r"is empty\. Copy or download it again\."),
    "half a safetensors": (
        cut("safetensors"), r"is truncated: ([\d,]+) of ([\d,]+) bytes\. Copy it again\."
    ),
    "half a zip": (cut("zip"), r"is truncated: [\d,]+ bytes\. Copy it again\."),
    "half an old file": (cut("old"), r"is truncated or damaged \(.*\)\. Copy it again\."),
    "gzip": (
        lambda file, _: file.write_bytes(gzip.compress(b"weights")),
        r"is compressed with gzip \(\d+ bytes\)\. Unpack it with gunzip\.",
    ),
    "tar": (tarred, r"is a tar archive\. Unpack it with tar -xf, and give a file in it\."),
    "keras": (
        lambda file, _: file.write_bytes(b"\x89HDF\r\n\x1a\n" + bytes(99)),
        r"is an HDF5 file, as written by Keras",
    ),
    "numpy": (
        lambda file, _: file.write_bytes(npz()),
        r"is a zip archive that torch\.save did not write \(a\.npy\)",
    ),
    "a zip with names that are no text": (
        lambda file, _: file.write_bytes(misnamed()), r"is truncated or damaged \(.*\)"
    ),
    "json": (lambda file, _: file.write_text('{"a": 1}'), r"is JSON, but not an index"),
    "one tensor": (
        lambda file, _: torch.save(torch.zeros(3), file),
        r"holds one Tensor, not weights by name\. Save the state_dict\.",
    ),
    "no tensors": (
        lambda file, _: torch.save({"epoch": 3}, file),
        r"contains no weights\. Give a file with a state_dict\.",
    ),
}  # fmt: skip


def npz() -> bytes:
    file = io.BytesIO()
    np.savez(file, a=np.zeros(3))
    return file.getvalue()


def misnamed() -> bytes:
    """An archive that says of a name's bytes that they are UTF-8."""
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("é", b"")
    return file.getvalue().replace("é".encode(), b"\xe9\xe9")


@pytest.mark.parametrize("kind", OTHERS)
def test_files_that_are_something_else_say_what_they_are(
    state: State, tmp_path: Path, kind: str
) -> None:
    write, message = OTHERS[kind]
    file = tmp_path / "w.bin"
    write(file, state)
    assert re.match(re.escape(f"{file}: ") + message, refused(file))


# --- the verbs ---


def test_predict_reads_a_checkpoint_and_says_so(state: State, tmp_path: Path) -> None:
    torch.save({"state_dict": before("module.", state)}, tmp_path / "w.pth.tar")
    save_file(state, tmp_path / "w.safetensors")
    image = tmp_path / "i.png"
    Image.fromarray(np.arange(3 * 96 * 80, dtype=np.uint8).reshape(96, 80, 3)).save(image)
    notes: list[str] = []
    found = [
        predict_images(tmp_path / name, [image], 3, "cpu", model=NAME, note=notes.append)
        for name in ("w.pth.tar", "w.safetensors")
    ]
    assert found[0] == found[1]
    output = [note for note in notes if note.startswith("weights of")]
    where = (tmp_path / "w.pth.tar").resolve()
    assert output == [f"weights of {where}: 'state_dict' is used; prefix 'module.' removed"]


def test_a_head_is_trained_on_features_of_a_checkpoint(rescue: Rescue, tmp_path: Path) -> None:
    """Two heads of one network, whose features are read once, by the command."""
    rng = np.random.default_rng(0)
    for split in ("train", "val"):
        for number, name in enumerate(("cat", "dog")):
            folder = tmp_path / "pets" / split / name
            folder.mkdir(parents=True)
            for i in range(4):
                pixels = rng.integers(80 * number, 80 * number + 40, (40, 40, 3), np.uint8)
                Image.fromarray(pixels).save(folder / f"{i}.png")
    torch.manual_seed(0)
    source = timm.create_model("repvit_m0_9", num_classes=20).state_dict()
    torch.save({"arch": "repvit_m0_9", "model_ema": before("module.", source)}, "w.pth.tar")
    ended = rescue(
        "train", "--recipe", "transfer-linear", "--out", "out", "--epochs", "1",
        "model={name: repvit_m0_9, frozen: true, weights: w.pth.tar}", "data.name=folder",
        "data.root=pets", "train.batch_size=8", "train.device_batch_size=8",
        "train.precision=float32", "data.train_size=32", "eval.sizes=[32]",
    )  # fmt: skip
    assert ended.code == 0, ended.err
    assert "'model_ema', the average, is used; 1 not used (arch); prefix 'module.'" in ended.err
    trained = weights.read_weights(tmp_path / "out").tensors
    heads = {key for key in source if key.startswith("head.") and ".l." in key}
    assert len(heads) == 4
    assert {trained[key].shape[0] for key in heads} == {2}
    kept = {k: v for k, v in source.items() if k not in heads and "num_batches" not in k}
    assert same(trained, kept)
