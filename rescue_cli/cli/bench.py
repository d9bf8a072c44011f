"""`rescue bench`: speed as a ratio, measured within one run."""

from typing import Annotated, Any

import typer

from rescue_cli.cli import common
from rescue_cli.cli.command import SingleProcess, example_and_next
from rescue_cli.cli.common import Device, Json, NamedRecipe, Overrides, RecipeName, Workers
from rescue_cli.errors import UsageError
from rescue_cli.recipe import Recipe
from rescue_cli.runs.console import note
from rescue_cli.runs.environment import note_precision, select_device

app = common.verb(no_args_is_help=True)
MOST_SPREAD = 1.5  # of the highest round's ratio to the lowest's, on a machine that is free


@app.callback(
    epilog=example_and_next(
        "rescue bench step --recipe quickstart",
        "rescue plan --recipe quickstart --images-per-second SPEED",
    )
)
def group() -> None:
    """Measure speed relative to timm or a plain PyTorch loop, in one run."""


Steps = typer.Option(help="Steps per round.", min=1)
Rounds = Annotated[int, typer.Option(help="Rounds; the order alternates.", min=1)]
Against = Annotated[str, typer.Option(help="What to compare with: timm.")]


@app.command(cls=SingleProcess)
def step(
    overrides: Overrides = None,
    recipe: RecipeName = None,
    against: Annotated[
        str,
        typer.Option(help="bare: a loop on ready tensors; plain: the network in plain PyTorch."),
    ] = "bare",
    steps: Annotated[int, Steps] = 20,
    rounds: Rounds = 7,
    host: Annotated[
        bool,
        typer.Option("--host", help="Time what the host does in a step, part by part, instead."),
    ] = False,
    as_json: Json = False,
    device: Device = None,
    workers: Workers = None,
) -> None:
    """Time the training step against a bare loop, or against plain PyTorch.

    Against plain PyTorch, it prints what each optimisation gains. With --host, it prints
    microseconds of one core per step beside network and optimizer, measured without data or GPU.
    """
    from rescue_cli import recipe as recipes
    from rescue_cli.build.check import check_recipe

    if against not in ("bare", "plain"):
        raise UsageError(f"--against: '{against}' is not known. Use bare or plain.")
    where = select_device(device)
    resolved = recipes.load(common.named_or_default(recipe), overrides or [])
    check_recipe(resolved)
    resolved.demand_classification("bench")
    if host:
        _print_host(resolved, rounds, as_json=as_json)
        return
    note_precision([resolved.train.precision], where)
    if against == "plain":
        result = _time_against_plain(resolved, where, steps, rounds)
    else:
        result = _time_against_bare(resolved, where, steps, rounds, workers)
        _warn_of_spread(result)
    if as_json:
        common.print_json(result)
    elif against == "plain":
        _print_gains(result)
    else:
        _print_step(result)


def _print_host(recipe: Recipe, rounds: int, *, as_json: bool) -> None:
    from rescue_cli.bench.host import host

    result = host(recipe, rounds=rounds)
    if as_json:
        common.print_json(result)
        return
    rows = [[name, f"{time:.1f}"] for name, time in result["parts"].items()]
    rows.append(["total", f"{result['total']:.1f}"])
    rows += [[f"{name} (in a thread)", f"{time:.1f}"] for name, time in result["beside"].items()]
    print(f"{result['what']}, augmented {result['steps_at_once']} steps at once")
    common.console().print(common.table(("part", "us/step"), rows, words=["part"]))


def _time_against_bare(
    recipe: Recipe, device: str, steps: int, rounds: int, workers: int | None
) -> dict[str, Any]:
    from rescue_cli import estimate
    from rescue_cli.bench.step import step as measure

    size, channels = estimate.train_size(recipe), estimate.channels(recipe)
    flops = estimate.flops(estimate.network_of(recipe), size, channels)
    return measure(
        recipe,
        device,
        flops.multiply_adds,
        steps=steps,
        rounds=rounds,
        workers=1 if workers is None else workers,
    )


def _time_against_plain(recipe: Recipe, device: str, steps: int, rounds: int) -> dict[str, Any]:
    from rescue_cli.bench.plain import against_plain
    from rescue_cli.runs import allocator

    settings = allocator.SETTINGS if device == "cpu" and allocator.available() else None
    return against_plain(recipe, device, settings, steps=steps, rounds=rounds)


def _warn_of_spread(result: dict[str, Any]) -> None:
    spread = result["ratio_high"] / result["ratio_low"]
    if spread > MOST_SPREAD:
        note(
            f"warning: the rounds' ratios differ by a factor of {spread:.1f}: the machine was too "
            "busy for these figures to mean anything. Repeat it when nothing else runs."
        )


def _print_step(result: dict[str, Any]) -> None:
    print(
        f"{result['what']}: ours {result['ours']:.1f}, bare loop {result['theirs']:.1f} "
        f"{result['unit']}; "
        f"ratio of times {result['ratio']:.3f} "
        f"(rounds {result['ratio_low']:.3f} to {result['ratio_high']:.3f})\n"
        f"matrix peak: {result['gigaflops']:.0f} of {result['peak_gigaflops']:.0f} GFLOP/s, "
        f"{100 * result['peak_share']:.1f} % (convolutions and matrix products; forward and "
        "backward count as 3 forward passes)\n"
        f"input: {100 * result['input_share']:.1f} % of a step is spent on its images (loading, "
        f"augmenting, mixing), {100 * result['waiting']:.1f} % on waiting for workers"
    )


def _print_gains(result: dict[str, Any]) -> None:
    rows = [
        [
            name,
            f"{gain['images_per_second']:.0f}",
            f"{gain['times']:.2f}",
            f"{gain['low']:.2f} to {gain['high']:.2f}",
        ]
        for name, gain in result["gains"].items()
    ]
    headings = ("optimisation", "images/s", "speedup", "rounds")
    print(result["what"])
    common.console().print(common.table(headings, rows, words=["optimisation"]))
    tuned, compiled = result["with_settings"], result["with_compile"]
    print(
        f"ours {result['ours']:.0f} images/s, plain {result['theirs']:.0f}; speedup "
        f"{1 / result['ratio']:.2f} with the recipe's settings, "
        f"{1 / result['without_settings']:.2f} without the allocator's settings"
        + (f", {1 / tuned:.2f} with them" if tuned else "")
        + (f", {1 / compiled:.2f} compiled" if compiled else "; torch.compile does not work here")
    )


@app.command()
def optimizer(
    model: Annotated[str, typer.Option(help="timm name of the network.")] = "resnet50",
    against: Against = "timm",
    steps: Annotated[int, Steps] = 4,
    rounds: Rounds = 9,
    as_json: Json = False,
    device: Device = None,
) -> None:
    """Time LAMB's step over a network's parameters against timm's."""
    import torch

    from rescue_cli.bench.optimizer import against_timm

    _check_against(against)
    where = torch.device(select_device(device))
    result = against_timm(model, where, calls=steps, rounds=rounds)
    if as_json:
        common.print_json(result)
        return
    print(
        f"{result['what']}: ours {result['ours']:.1f}, timm {result['theirs']:.1f} "
        f"{result['unit']} per step; ratio of times {result['ratio']:.3f} "
        f"(rounds {result['ratio_low']:.3f} to {result['ratio_high']:.3f}); "
        f"dispatched operations: ours {result['operations']}, timm {result['operations_theirs']}"
    )


@app.command()
def input(
    data: Annotated[str, typer.Option("--data", help="Folder of class folders of images.")],
    overrides: Overrides = None,
    recipe: NamedRecipe = "a2",
    against: Against = "timm",
    steps: Annotated[int, typer.Option(help="Our steps per round.", min=1)] = 3,
    rounds: Rounds = 3,
    as_json: Json = False,
) -> None:
    """Time a recipe's input pipeline against timm's loader, in CPU seconds.

    One worker each, without mixing. Files are listed repeatedly if a step needs more.
    """
    from pathlib import Path

    from rescue_cli import recipe as recipes
    from rescue_cli.bench.input import against_timm
    from rescue_cli.build.check import check_ingredients

    _check_against(against)
    resolved = recipes.load(recipe or "a2", overrides or [])
    check_ingredients(resolved)
    resolved.demand_classification("bench")
    result = against_timm(resolved, Path(data), steps=steps, rounds=rounds)
    if as_json:
        common.print_json(result)
        return
    print(
        f"{result['what']}\n"
        f"views/s per core: ours {result['ours']:.0f}, timm {result['theirs']:.0f}; "
        f"speedup {result['ratio']:.2f} (a view is one crop of an image)\n"
        f"  with each image decoded for one view: {result['alone']:.0f}; "
        f"speedup {result['ratio_alone']:.2f}\n"
        f"CPU ms per view: worker {result['worker_ms']:.2f}, loading {result['loading_ms']:.2f}, "
        f"device side {result['device_ms']:.2f}\n"
        f"  in total {result['total_ms']:.2f}, timm {result['theirs_total_ms']:.2f}; "
        f"ratio of times {result['total_ratio']:.2f}"
    )


@app.command()
def shards(
    data: Annotated[str, typer.Option("--data", help="Folder of class folders of images.")],
    overrides: Overrides = None,
    recipe: NamedRecipe = "a3",
    max_side: Annotated[int, typer.Option(help="Of the resized shards, in pixels.", min=16)] = 400,
    steps: Annotated[int, typer.Option(help="Steps per round.", min=1)] = 2,
    rounds: Rounds = 3,
    as_json: Json = False,
) -> None:
    """Time reading from tar, parquet and resized shards against the folder and WebDataset.

    CPU seconds of one worker. The shards are made for it, and deleted; webdataset is left out where
    it is not installed.
    """
    import tempfile
    from pathlib import Path

    from rescue_cli import recipe as recipes
    from rescue_cli.bench.shards import compare_storage
    from rescue_cli.build.check import check_ingredients

    resolved = recipes.load(recipe or "a3", overrides or [])
    check_ingredients(resolved)
    resolved.demand_classification("bench")
    with tempfile.TemporaryDirectory(prefix="rescue-shards-") as scratch:
        result = compare_storage(
            resolved, Path(data), Path(scratch), max_side=max_side, steps=steps, rounds=rounds
        )
    if as_json:
        common.print_json(result)
        return
    print(result["what"])
    for name, value in result["views_per_second"].items():
        print(f"  {name}: {value:.0f} {result['unit']}, {result['ratios'][name]:.2f} of the folder")


@app.command(cls=SingleProcess)
def train(
    overrides: Overrides = None,
    recipe: NamedRecipe = None,
    data: Annotated[str | None, typer.Option("--data", help="Folder of the images.")] = None,
    against: Against = "timm",
    steps: Annotated[int, Steps] = 10,
    rounds: Rounds = 9,
    as_json: Json = False,
) -> None:
    """Time training against a loop of timm's parts, and both against a bare loop.

    Without --recipe: resnet18 on CIFAR-10's class folders, batch size 256, RandAugment, mixup and
    cutmix, in the precision that is fastest on this processor.
    """
    from rescue_cli.bench.train import against_timm, measured_recipe
    from rescue_cli.build.check import check_recipe

    _check_against(against)
    root = [] if data is None else [f"data.root={data}"]
    resolved = measured_recipe(recipe, [*root, *(overrides or [])])
    check_recipe(resolved)
    resolved.demand_classification("bench")
    note_precision([resolved.train.precision], "cpu")
    result = against_timm(resolved, steps=steps, rounds=rounds)
    if as_json:
        common.print_json(result)
        return
    print(
        f"{result['what']}\n"
        f"images/s: ours {result['ours']:.0f}, timm {result['theirs']:.0f}, "
        f"bare loop {result['bare']:.0f}; speedup over timm {result['speed_ratio']:.2f} "
        f"(rounds {result['speed_ratio_low']:.2f} to {result['speed_ratio_high']:.2f})\n"
        f"added to the bare loop, ms per image: ours {1e3 * result['ours_adds']:.3f} "
        f"(rounds {1e3 * result['ours_adds_low']:.3f} to {1e3 * result['ours_adds_high']:.3f}), "
        f"timm {1e3 * result['theirs_adds']:.3f}; ratio of times {result['ratio']:.2f}"
    )


@app.command(cls=SingleProcess)
def inference(
    model: Annotated[str, typer.Option("--model", help="timm name of the network.")],
    size: Annotated[int | None, typer.Option(help="Image size in pixels.", min=1)] = None,
    batch_size: Annotated[int, typer.Option(help="Batch size.", min=1)] = 128,
    precision: Annotated[
        str | None, typer.Option(help="float16 (default on CUDA), bfloat16 or float32.")
    ] = None,
    channels_last: Annotated[bool, typer.Option(help="Memory format (default: last).")] = True,
    batches: Annotated[int, typer.Option(help="Batches per round.", min=1)] = 5,
    rounds: Rounds = 3,
    as_json: Json = False,
    device: Device = None,
) -> None:
    """Time inference of a network in images/s, and print the paper's if it has one."""
    import torch

    from rescue_cli.bench.inference import inference as measure

    where = select_device(device)
    result = measure(
        model,
        torch.device(where),
        size=size,
        batch_size=batch_size,
        precision=precision or ("float16" if where == "cuda" else "float32"),
        channels_last=channels_last,
        batches=batches,
        rounds=rounds,
    )
    if as_json:
        common.print_json(result)
        return
    paper = result["paper_v100_float16"]
    print(
        f"{result['what']}: {result['ours']:.1f} images/s "
        f"(rounds {result['low']:.1f} to {result['high']:.1f})"
        + (f"; paper (V100, float16): {paper:.1f}" if paper else "")
    )


def _check_against(against: str) -> None:
    if against != "timm":
        raise UsageError(f"--against: '{against}' is not known. Use timm.")
