"""`rescue bench` compares equal work: same files, same augmentation, consistent sums."""

import itertools
import json
import shutil
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from rescue_cli import estimate
from rescue_cli import recipe as recipes
from rescue_cli.bench import plain, timm_pipeline
from rescue_cli.bench.peak_flops import matrix_peak
from rescue_cli.bench.plain_optim import LR, plain_optimizers
from rescue_cli.bench.train import measured_recipe
from rescue_cli.build.networks import build_network
from rescue_cli.build.optimizers import build_optimizers
from rescue_cli.cli import bench, main
from rescue_cli.errors import UsageError
from rescue_cli.sections.optim import OPTIMIZERS
from tests.conftest import Rescue
from tests.helpers import shards

CPU = torch.device("cpu")
TINY = ("model.width=4", "train.batch_size=32", "train.device_batch_size=16")


def run_bench(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> int:
    monkeypatch.setattr(sys, "argv", ["rescue", "bench", *arguments])
    with pytest.raises(SystemExit) as ended:
        main()
    assert isinstance(ended.value.code, int)
    return ended.value.code


def test_a2s_input_as_timms_options() -> None:
    mean, std = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
    assert timm_pipeline.options(recipes.load("a2")) == {
        "scale": (0.08, 1.0),
        "ratio": (0.75, 1.3333333333333333),
        "hflip": 0.5,
        "auto_augment": "rand-m7-n2-p0.5-mstd0.5-inc1",
        "color_jitter": None,
        "interpolation": "bicubic",
        "mean": mean,
        "std": std,
    }


def test_timm_reads_these_options_as_the_recipe_means_them() -> None:
    from timm.data.transforms_factory import create_transform

    given = timm_pipeline.options(recipes.load("a3"))
    steps = create_transform(160, is_training=True, use_prefetcher=True, **given).transforms
    crop, flip, augment, _ = steps
    assert (crop.size, tuple(crop.scale), flip.p) == ((160, 160), (0.08, 1.0), 0.5)
    assert crop.interpolation.value == "bicubic"
    assert augment.num_layers == 2
    assert {(op.magnitude, op.prob, op.magnitude_std) for op in augment.ops} == {(6, 0.5, 0.5)}
    assert "PosterizeIncreasing" in {op.name for op in augment.ops}


def test_an_augmentation_that_timm_lacks_is_refused() -> None:
    jittered = recipes.load("a2", ["augment=[{name: pca-lighting, std: 0.1}]"])
    with pytest.raises(UsageError) as error:
        timm_pipeline.options(jittered)
    assert str(error.value) == (
        "augment (pca-lighting): timm's loader has no such augmentation. "
        "Leave it out of the comparison with ~augment.pca-lighting."
    )


def test_another_against_is_refused(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run_bench(monkeypatch, "train", "--against", "dali") == 2
    assert "--against: 'dali' is not known. Use timm." in capsys.readouterr().err


def test_bench_step_prints_its_share_of_the_matrix_peak(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    options = ("--recipe", "quickstart", "--device", "cpu", "--steps", "4", "--rounds", "1")
    monkeypatch.setattr(torch.backends.cudnn, "benchmark", False)
    assert run_bench(monkeypatch, "step", *options, "--json", *TINY) == 0
    assert torch.backends.cudnn.benchmark, "as in training"
    found = json.loads(capsys.readouterr().out)
    recipe = recipes.load("quickstart", TINY)
    multiply_adds = estimate.flops(estimate.network_of(recipe), 28, 1).multiply_adds
    assert found["gigaflops"] == pytest.approx(6e-9 * found["ours"] * multiply_adds)
    assert found["peak_share"] == pytest.approx(found["gigaflops"] / found["peak_gigaflops"])
    assert 0 < found["peak_share"] < 1
    assert 0 < found["input_share"] < 1
    assert found["ratio"] == pytest.approx(found["theirs"] / found["ours"])
    assert run_bench(monkeypatch, "step", *options, *TINY) == 0
    speed, peak, share = capsys.readouterr().out.splitlines()
    assert speed.startswith("step of quickstart on cpu, float32, batch 32: ours ")
    assert peak.startswith("matrix peak: ")
    assert share.endswith(
        " % of a step is spent on its images (loading, augmenting, mixing), 0.0 % on waiting for "
        "workers"
    )


@pytest.mark.parametrize(("high", "is_warned"), [(1.4, False), (1.6, True)])
def test_figures_of_a_busy_machine_are_called_meaningless(
    high: float, is_warned: bool, capsys: pytest.CaptureFixture[str]
) -> None:
    bench._warn_of_spread({"ratio_low": 1.0, "ratio_high": high})
    assert ("differ by a factor of 1.6: the machine was too" in capsys.readouterr().err) is (
        is_warned
    )


def test_bench_step_reads_each_file_once_and_counts_waiting(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    from tests.test_readme import draw_images

    draw_images(tmp_path, ["cat", "dog"], ("train", "val"), 64)
    small = ("data={name: folder, root: .}", "data.train_size=32", "model={name: test_resnet}")
    whole = ("augment=[{name: flip, p: 0.5}]", "train.batch_size=2", "train.device_batch_size=2")
    options = ("--recipe", "quickstart", "--device", "cpu", "--rounds", "1", *small, *whole)
    monkeypatch.chdir(tmp_path)
    assert run_bench(monkeypatch, "step", *options, "--steps", "4", "--json", "train.epochs=3") == 0
    found = json.loads(capsys.readouterr().out)
    assert 0 < found["waiting"] < found["input_share"] < 1
    assert run_bench(monkeypatch, "step", *options, "--steps", "4", "train.epochs=1") == 2
    assert "the recipe ends after 4 steps" in capsys.readouterr().err


def test_bench_step_gives_the_hosts_time_by_part(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Without data: a2's and airbench94's are not there. The clock moves 1 ms a look at it."""
    looks = itertools.count()
    monkeypatch.setattr("time.thread_time", lambda: next(looks) / 1000)
    options = ("--host", "--rounds", "1", "--json")
    assert run_bench(monkeypatch, "step", *options, "--recipe", "airbench94") == 0
    result = json.loads(capsys.readouterr().out)
    assert result["what"] == "host of airbench94, batch 1024"
    ahead = result["steps_at_once"]
    assert ahead == 96 * 2**20 // (1024 * 3 * 32 * 32)
    assert set(result["beside"]) == {"sampler", "draws"}
    assert (
        result["parts"]["augmentation"] == result["beside"]["draws"] == pytest.approx(1e3 / ahead)
    )
    others = {"rates", "mix", "seeding", "statistics", "loss sum", "averaging"}
    assert [result["parts"][name] for name in others] == [pytest.approx(1e3 / 64)] * len(others)
    assert result["total"] == pytest.approx(sum(result["parts"].values()))

    small = ("model={name: test_resnet}", "train.batch_size=512", "train.device_batch_size=256")
    assert run_bench(monkeypatch, "step", *options, "--recipe", "a2", *small) == 0
    result = json.loads(capsys.readouterr().out)
    assert (result["steps_at_once"], result["beside"]) == (1, {})
    assert result["parts"]["draws"] == pytest.approx(1e3)


def test_bench_step_prints_the_hosts_time(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run_bench(monkeypatch, "step", "--host", "--rounds", "1", "--recipe", "myrtle") == 0
    printed = capsys.readouterr().out
    assert printed.startswith("host of myrtle, batch 512, augmented 64 steps at once\n")
    assert "draws (in a thread)" in printed


def test_the_matrix_peak_is_that_of_its_precision(monkeypatch: pytest.MonkeyPatch) -> None:
    """By a clock on which float64 takes twice as long as float32 at 10 GFLOP/s, and 1 ms to start.

    It stands still but for the products, so that no load is measured.
    """
    multiply, now = torch.mm, [0.0]

    def timed(a: torch.Tensor, b: torch.Tensor, *, out: torch.Tensor) -> torch.Tensor:
        assert a.dtype == b.dtype == out.dtype
        now[0] += 1e-3 + 2 * len(a) ** 3 / 1e10 * (2 if a.dtype == torch.float64 else 1)
        return multiply(a[:1], b, out=out[:1])

    monkeypatch.setattr(torch, "mm", timed)
    monkeypatch.setattr("time.perf_counter", lambda: now[0])
    assert matrix_peak(torch.float32, CPU) == pytest.approx(1e10, rel=0.01)
    assert matrix_peak(torch.float64, CPU) == pytest.approx(5e9, rel=0.01)


PLAIN_FORMS = {
    "sgd": "optim={name: sgd, lr: 1.0e-4, momentum: 0.9, nesterov: true, weight_decay: 0.1}",
    "sgd-velocity": "optim={name: sgd-velocity, lr: 1.0e-4, momentum: 0.9, nesterov: true, "
    "weight_decay: 0.1, no_decay: [biases]}",
    "adamw": "optim={name: adamw, lr: 1.0e-4, weight_decay: 0.1, no_decay: [norms]}",
    "lamb": "optim={name: lamb, lr: 1.0e-4, weight_decay: 0.1, max_grad_norm: 1.0}",
    "muon": "optim=[{name: muon, params: filters, lr: 1.0e-4, momentum: 0.6, nesterov: true, "
    "weight_decay: 0.1, steps: 3, coefficients: [3.4445, -4.775, 2.0315], iterate: bfloat16, "
    "renormalise_every: 2}, {name: sgd, params: norms+biases+head+rest, lr: 1.0e-4, "
    "momentum: 0.9, nesterov: true, weight_decay: 0.1}]",
}


def moved(network: nn.Module, update: Any) -> dict[str, torch.Tensor]:
    """The parameters after three updates with gradients that are the same for every network."""
    draws = torch.Generator().manual_seed(3)
    for _ in range(3):
        for p in network.parameters():
            p.grad = torch.empty_like(p).copy_(torch.randn(p.shape, generator=draws))
        update()
    return {name: p.detach() for name, p in network.named_parameters()}


@pytest.mark.parametrize("name", sorted(PLAIN_FORMS))
def test_the_plain_optimizers_move_weights_as_ours_do(name: str) -> None:
    if name not in OPTIMIZERS:
        pytest.skip(f"{name} is not there yet")
    recipe = recipes.load("quickstart", [PLAIN_FORMS[name], "train.precision=float64", *TINY])
    mine, theirs = (build_network(recipe, 10, CPU) for _ in range(2))
    ours = build_optimizers(recipe, mine, 10, torch.amp.GradScaler("cpu", enabled=False))
    for rated in ours.rated:
        rated.group["lr"] = LR
    plainly = plain_optimizers(recipe, theirs)

    def update() -> None:
        for optimizer in plainly:
            optimizer.step()

    start = {n: p.detach().clone() for n, p in build_network(recipe, 10, CPU).named_parameters()}
    after, wanted = moved(mine, ours.step), moved(theirs, update)
    for key, weight in after.items():
        step = weight - start[key]
        assert step.abs().max() > LR / 10
        assert torch.allclose(step, wanted[key] - start[key], rtol=1e-6, atol=1e-12), key


def test_an_optimizer_without_plain_form_is_refused() -> None:
    recipe = recipes.load("quickstart", [PLAIN_FORMS["sgd"]])
    network = build_network(recipe, 10, CPU)
    unknown = replace(recipe, optim=(replace(recipe.optim[0], name="shampoo"),))
    with pytest.raises(UsageError, match=r"does not support optim \(shampoo\)\. Use one of sgd, "):
        plain_optimizers(unknown, network)


def test_gains_are_medians_of_ratios_within_a_round() -> None:
    names = [way for pair in plain.OPTIMISATIONS.values() for way in pair]
    rounds = dict(
        zip(
            dict.fromkeys(names),
            ([9, 9], [6, 8], [6, 6], [5, 5], [4, 5], [2, 4], [1, 4]),
            strict=True,
        )
    )
    found = plain._figures(rounds, plain.TUNED, 12, has_settings=True)
    assert (found["ours"], found["theirs"]) == (4, pytest.approx(12 / 7))
    assert [gain["times"] for gain in found["gains"].values()] == [
        pytest.approx((9 / 6 + 9 / 8) / 2),
        pytest.approx((6 / 6 + 8 / 6) / 2),
        pytest.approx((6 / 5 + 6 / 5) / 2),
        pytest.approx((5 / 4 + 5 / 5) / 2),
        pytest.approx((4 / 2 + 5 / 4) / 2),
        pytest.approx((2 / 1 + 4 / 4) / 2),
    ]
    assert found["ratio"] == found["with_settings"] == pytest.approx(1 / 2.5)
    assert found["without_settings"] == pytest.approx(1 / 1.55)
    assert found["with_compile"] == pytest.approx(1 / 4)
    alone = {(name, False): times for (name, _), times in rounds.items()}
    bare = plain._figures(alone, plain.TUNED, 12, has_settings=False)
    assert "allocator: settings" not in bare["gains"]
    assert bare["with_settings"] is None
    rounds.pop(plain.COMPILED)
    eager = plain._figures(rounds, plain.TUNED, 12, has_settings=True)
    assert list(eager["gains"]) == list(plain.OPTIMISATIONS)[:-1]
    assert eager["with_compile"] is None


@pytest.mark.long
def test_bench_step_against_plain_shows_what_each_optimisation_gains(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    options = ("--recipe", "quickstart", "--device", "cpu", "--steps", "2", "--rounds", "1")
    assert run_bench(monkeypatch, "step", *options, "--against", "plain", "--json", *TINY) == 0
    found = json.loads(capfd.readouterr().out)
    assert found["what"] == ("step of quickstart on cpu, float32, batch 32, against plain PyTorch")
    assert set(plain.OPTIMISATIONS) - {"allocator: settings"} <= set(found["gains"])
    assert found["ratio"] == pytest.approx(found["theirs"] / found["ours"])


def test_an_error_of_a_timed_process_is_the_commands_error(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    options = ("--recipe", "quickstart", "--device", "cpu", "--against", "plain")
    data = "data={name: fashion-mnist, root: " + str(tmp_path) + "}"
    assert run_bench(monkeypatch, "step", *options, data) == 3
    assert capfd.readouterr().err.startswith("error: ")
    assert run_bench(monkeypatch, "step", "--against", "timm") == 2
    assert capfd.readouterr().err == "error: --against: 'timm' is not known. Use bare or plain.\n"


@pytest.fixture
def few(imagenet_sample: Path, tmp_path: Path) -> Path:
    """32 of the photographs."""
    for folder in sorted(imagenet_sample.iterdir())[::8]:
        shutil.copytree(folder, tmp_path / "few" / folder.name)
    return tmp_path / "few"


def test_bench_input_gives_the_cost_per_view(
    few: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    sizes = ("train.batch_size=48", "train.device_batch_size=12", "data.train_size=64")
    options = ("--recipe", "a2", "--data", str(few), "--against", "timm", "--rounds", "1")
    assert run_bench(monkeypatch, "input", *options, "--json", *sizes) == 0
    found: dict[str, Any] = json.loads(capsys.readouterr().out)
    assert found["what"] == (
        "worker of a2's input at 64 px, 32 images x 2, timm: rand-m7-n2-p0.5-mstd0.5-inc1"
    )
    assert found["unit"] == "views/s a core"
    assert found["ratio"] == pytest.approx(found["ours"] / found["theirs"])
    assert found["ours"] == pytest.approx(1e3 / found["worker_ms"])
    parts = found["worker_ms"] + found["loading_ms"] + found["device_ms"]
    assert found["total_ms"] == pytest.approx(parts)
    assert found["total_ratio"] == pytest.approx(parts / found["theirs_total_ms"])
    assert found["theirs_total_ms"] > 1e3 / found["theirs"]
    assert found["ours"] > found["alone"], "an image decoded for three views"


def test_without_repeats_there_is_nothing_to_share(
    few: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    sizes = ("train.batch_size=32", "train.device_batch_size=16", "data.train_size=64")
    options = ("--recipe", "a3", "--data", str(few), "--rounds", "1")
    assert run_bench(monkeypatch, "input", *options, "--json", *sizes) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["ours"] == found["alone"]
    assert run_bench(monkeypatch, "input", *options, *sizes) == 0
    _, speed, alone, cost, total = capsys.readouterr().out.splitlines()
    assert speed.startswith("views/s per core: ours ")
    assert alone.startswith("  with each image decoded for one view: ")
    assert cost.startswith("CPU ms per view: worker ")
    assert total.startswith("  in total ")


@pytest.mark.slow
def test_bench_train_times_three_loops(
    cifar_folders: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    small = ("train.batch_size=16", "train.device_batch_size=16", "train.precision=float32")
    options = ("--data", str(cifar_folders), "--against", "timm", "--steps", "2", "--rounds", "1")
    assert run_bench(monkeypatch, "train", *options, "--json", *small) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["what"] == (
        "resnet18 at 32 px, batch 16, float32: a loop of timm's parts "
        "with rand-m7-n2-p0.5-mstd0.5-inc1"
    )
    assert found["unit"] == "images/s"
    ours, theirs, bare = (1 / found[key] for key in ("ours", "theirs", "bare"))
    assert found["ours_adds"] == pytest.approx(ours - bare)
    assert found["theirs_adds"] == pytest.approx(theirs - bare)
    assert found["ratio"] == pytest.approx((ours - bare) / (theirs - bare))


def test_bench_train_needs_class_folders(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run_bench(monkeypatch, "train", "--data", str(tmp_path)) == 2
    assert capsys.readouterr().err.strip() == (
        f"error: bench train: timm's loader reads class folders, and {tmp_path}/train does not "
        "exist. Give --data DIR with folders train/ and test/."
    )


def test_bench_train_measures_a2s_ingredients_in_this_processors_precision() -> None:
    recipe = measured_recipe(None, ["data.root=/nowhere"])
    computed = torch.ops.mkldnn._is_mkldnn_bf16_supported()
    assert recipe.train.precision == ("bfloat16" if computed else "float32")
    assert (recipe.optim[0].name, recipe.mix.name, recipe.loss.name) == (
        "lamb",
        "mixup-or-cutmix",
        "binary-cross-entropy",
    )
    assert dict(recipe.mix.options) == {"mixup": 0.1, "cutmix": 1.0, "switch": 0.5}
    assert recipe.train.channels_last
    assert recipe.train.micro_batches == 1


def test_bench_inference_takes_size_and_figure_from_the_papers_table(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    quick = ("--batch-size", "2", "--batches", "1", "--rounds", "1", "--device", "cpu", "--json")
    assert run_bench(monkeypatch, "inference", "--model", "resnet18", *quick) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["what"] == "inference of resnet18 on cpu, 224 px, batch 2, float32, channels last"
    assert found["paper_v100_float16"] == 7960.5
    assert (found["theirs"], found["ratio"], found["unit"]) == (None, None, "images/s")
    # a transformer made for another size, at one where the paper has no figure
    smaller = ("--model", "vit_tiny_patch16_224", "--size", "64", "--no-channels-last")
    assert run_bench(monkeypatch, "inference", *smaller, *quick) == 0
    found = json.loads(capsys.readouterr().out)
    assert "64 px" in found["what"]
    assert "channels first" in found["what"]
    assert found["paper_v100_float16"] is None


def test_bench_inference_of_a_net_outside_the_table_has_timms_test_size(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    quick = ("--batch-size", "1", "--batches", "1", "--rounds", "1", "--device", "cpu", "--json")
    assert run_bench(monkeypatch, "inference", "--model", "mobilenetv3_small_050", *quick) == 0
    assert " 224 px" in json.loads(capsys.readouterr().out)["what"]
    assert run_bench(monkeypatch, "inference", "--model", "test_resnet", *quick) == 0
    assert " 160 px" in json.loads(capsys.readouterr().out)["what"]


def test_bench_shards_times_every_way_to_read_the_same_images(
    rescue: Rescue, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RESCUE_CACHE", str(tmp_path / "cache"))
    folder = shards.write_folder(tmp_path / "photos", train=6, val=1)
    words = ["--data", folder, "--rounds", 1, "--steps", 1, "--max-side", 32, "--json"]
    more = ["train.batch_size=16", "train.device_batch_size=8", "data.train_size=24"]
    result = json.loads(rescue("bench", "shards", *words, *more).out)
    ways = ["folder", "tar", "parquet", "tar, longer side at most 32"]
    assert list(result["ratios"])[:4] == ways
    assert result["ratios"]["folder"] == 1
    assert all(speed > 0 for speed in result["views_per_second"].values())
