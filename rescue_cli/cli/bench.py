"""`rescue bench`: what the loop costs, as a ratio measured in one run."""

import json as json_module
from typing import Annotated, Any

import typer
from rich.table import Table

from rescue_cli.cli import common
from rescue_cli.cli.common import Device, Json, Overrides, RecipeName, Workers
from rescue_cli.cli.help import then
from rescue_cli.errors import UsageError
from rescue_cli.recipe import Recipe

app = common.verb(no_args_is_help=True)


@app.callback(
    epilog=then(
        "rescue bench step --recipe quickstart",
        "rescue plan --recipe quickstart --images-per-second FOUND",
    )
)
def group() -> None:
    """Measure speed, as ratios within one run."""


@app.command()
def step(
    overrides: Overrides = None,
    recipe: RecipeName = None,
    against: Annotated[
        str,
        typer.Option(
            help="bare: a loop on ready tensors; plain: the network written straight down."
        ),
    ] = "bare",
    steps: Annotated[int, typer.Option(help="Steps a round.", min=1)] = 20,
    rounds: Annotated[int, typer.Option(help="Rounds of each, in turn.", min=1)] = 7,
    json: Json = False,
    device: Device = None,
    workers: Workers = None,
) -> None:
    """Time the engine's step against a bare PyTorch loop, or what each of its measures gains."""
    from rescue_cli import recipe as recipes
    from rescue_cli.build.check import check_recipe

    if against not in ("bare", "plain"):
        raise UsageError(f"--against: '{against}' is not known. Use bare or plain.")
    where = common.device(device)
    resolved = recipes.load(common.named_or_default(recipe), overrides or [])
    check_recipe(resolved)
    resolved.demand_classification("bench")
    for warning in common.check_precision(resolved, where):
        common.note(f"warning: {warning}")
    if against == "plain":
        found, show = _against_plain(resolved, where, steps, rounds), _print_gains
    else:
        found, show = _against_bare(resolved, where, steps, rounds, workers), _print_step
    if json:
        print(json_module.dumps(found))
    else:
        show(found)


def _against_bare(
    recipe: Recipe, device: str, steps: int, rounds: int, workers: int | None
) -> dict[str, Any]:
    from rescue_cli import estimate
    from rescue_cli.bench.step import step as measure

    for line in common.allocator_notes():
        common.note(line)
    size, channels = estimate.train_size(recipe), estimate.channels(recipe)
    counted = estimate.flops(estimate.network_of(recipe), size, channels)
    return measure(
        recipe,
        device,
        counted.multiply_adds,
        steps=steps,
        rounds=rounds,
        workers=1 if workers is None else workers,
    )


def _against_plain(recipe: Recipe, device: str, steps: int, rounds: int) -> dict[str, Any]:
    from rescue_cli.bench.plain import against_plain
    from rescue_cli.runs import allocator

    settings = allocator.SETTINGS if device == "cpu" and allocator.available() else None
    return against_plain(recipe, device, settings, steps=steps, rounds=rounds)


def _print_step(found: dict[str, Any]) -> None:
    print(
        f"{found['what']}: ours {found['ours']:.1f}, bare loop {found['theirs']:.1f} "
        f"{found['unit']}; "
        f"ratio of times {found['ratio']:.3f} "
        f"(rounds {found['ratio_low']:.3f} to {found['ratio_high']:.3f})\n"
        f"matrix peak: {found['gigaflops']:.0f} of {found['peak_gigaflops']:.0f} GFLOP/s, "
        f"{100 * found['peak_share']:.1f} % (convolutions and products, forward and backward as "
        "three forward passes)\n"
        f"input: {100 * found['input_share']:.1f} % of a step gathers, augments and mixes its "
        f"images, {100 * found['waiting']:.1f} % waits for them"
    )


def _print_gains(found: dict[str, Any]) -> None:
    table = Table(box=None, pad_edge=False, header_style="bold")
    for heading in ("what was done", "images/s", "times as fast", "rounds"):
        table.add_column(heading, justify="left" if heading == "what was done" else "right")
    for what, gain in found["gains"].items():
        rounds = f"{gain['low']:.2f} to {gain['high']:.2f}"
        table.add_row(what, f"{gain['images_per_second']:.0f}", f"{gain['times']:.2f}", rounds)
    print(found["what"])
    common.console().print(table)
    tuned, compiled = found["with_settings"], found["with_compile"]
    print(
        f"ours {found['ours']:.0f} images/s, plain {found['theirs']:.0f}; times as fast: "
        f"{1 / found['ratio']:.2f} as the recipe has it, "
        f"{1 / found['without_settings']:.2f} without the allocator's settings"
        + (f", {1 / tuned:.2f} with them" if tuned else "")
        + (f", {1 / compiled:.2f} compiled" if compiled else "; torch cannot compile it here")
    )


@app.command()
def optimizer(
    model: Annotated[str, typer.Option(help="A network of timm's.")] = "resnet50",
    against: Annotated[str, typer.Option(help="timm, whose LAMB is the one to beat.")] = "timm",
    steps: Annotated[int, typer.Option(help="Steps a round.", min=1)] = 4,
    rounds: Annotated[int, typer.Option(help="Rounds of each, in turn.", min=1)] = 9,
    json: Json = False,
    device: Device = None,
) -> None:
    """Time LAMB's step over a network's parameters against timm's."""
    import torch

    from rescue_cli.bench.optimizer import against_timm
    from rescue_cli.errors import UsageError

    if against != "timm":
        raise UsageError(f"--against: '{against}' is not known. Use timm.")
    where = torch.device(common.device(device))
    found = against_timm(model, where, calls=steps, rounds=rounds)
    if json:
        print(json_module.dumps(found))
        return
    print(
        f"{found['what']}: ours {found['ours']:.1f}, timm {found['theirs']:.1f} {found['unit']} "
        f"a step; ratio of times {found['ratio']:.3f} "
        f"(rounds {found['ratio_low']:.3f} to {found['ratio_high']:.3f}); "
        f"dispatched operations {found['operations']}, timm {found['operations_theirs']}"
    )


Against = Annotated[str, typer.Option(help="What to compare with: timm.")]
Data = Annotated[str | None, typer.Option("--data", help="Folder of the images.")]
Rounds = Annotated[int, typer.Option(help="Rounds of each, in turn.", min=1)]


@app.command()
def input(
    data: Annotated[str, typer.Option("--data", help="Folder of class folders of images.")],
    overrides: Overrides = None,
    recipe: RecipeName = "a2",
    against: Against = "timm",
    steps: Annotated[int, typer.Option(help="Our steps a round.", min=1)] = 3,
    rounds: Rounds = 3,
    json: Json = False,
) -> None:
    """Time a recipe's input pipeline against timm's loader, in CPU seconds, on one worker each.

    Files are listed until a step asks for none twice. Mixing is left out on both sides.
    """
    from pathlib import Path

    from rescue_cli import recipe as recipes
    from rescue_cli.bench.input import against_timm
    from rescue_cli.build.check import check_ingredients

    _only_timm(against)
    resolved = recipes.load(recipe or "a2", overrides or [])
    check_ingredients(resolved)
    resolved.demand_classification("bench")
    found = against_timm(resolved, Path(data), steps=steps, rounds=rounds)
    if json:
        print(json_module.dumps(found))
        return
    print(
        f"{found['what']}\n"
        f"views/s a core: ours {found['ours']:.0f}, timm {found['theirs']:.0f}; "
        f"{found['ratio']:.2f} times as fast (a view is one crop of an image)\n"
        f"  each image decoded for one view: {found['alone']:.0f}; "
        f"{found['ratio_alone']:.2f} times as fast\n"
        f"CPU ms a view: worker {found['worker_ms']:.2f}, loading {found['loading_ms']:.2f}, "
        f"device side {found['device_ms']:.2f}\n"
        f"  in all {found['total_ms']:.2f}, timm {found['theirs_total_ms']:.2f}; "
        f"ratio of times {found['total_ratio']:.2f}"
    )


@app.command()
def train(
    overrides: Overrides = None,
    recipe: RecipeName = None,
    data: Data = None,
    against: Against = "timm",
    steps: Annotated[int, typer.Option(help="Steps a round.", min=1)] = 10,
    rounds: Rounds = 9,
    json: Json = False,
) -> None:
    """Time training against a loop of timm's parts, and what both add to a bare loop.

    Without --recipe: resnet18 on CIFAR-10's class folders, batch 256, RandAugment, mixup and
    cutmix, in the precision that this processor computes fastest.
    """
    from rescue_cli.bench.train import against_timm, measured_recipe
    from rescue_cli.build.check import check_recipe

    _only_timm(against)
    root = [] if data is None else [f"data.root={data}"]
    resolved = measured_recipe(recipe, [*root, *(overrides or [])])
    check_recipe(resolved)
    resolved.demand_classification("bench")
    for warning in common.check_precision(resolved, "cpu"):
        common.note(f"warning: {warning}")
    for line in common.allocator_notes():
        common.note(line)
    found = against_timm(resolved, steps=steps, rounds=rounds)
    if json:
        print(json_module.dumps(found))
        return
    print(
        f"{found['what']}\n"
        f"images/s: ours {found['ours']:.0f}, timm {found['theirs']:.0f}, "
        f"bare loop {found['bare']:.0f}; {found['speed_ratio']:.2f} times as fast as timm\n"
        f"added to the bare loop, ms an image: ours {1e3 * found['ours_adds']:.3f}, "
        f"timm {1e3 * found['theirs_adds']:.3f}; ratio of times {found['ratio']:.2f}"
    )


@app.command()
def inference(
    model: Annotated[str, typer.Option("--model", help="Architecture: a timm name.")],
    size: Annotated[int | None, typer.Option(help="Side of the images in pixels.", min=1)] = None,
    batch_size: Annotated[int, typer.Option(help="Images at a time.", min=1)] = 128,
    precision: Annotated[
        str | None, typer.Option(help="float16 (on CUDA the default), bfloat16, float32.")
    ] = None,
    channels_last: Annotated[bool, typer.Option(help="Memory format.")] = True,
    batches: Annotated[int, typer.Option(help="Batches a round.", min=1)] = 5,
    rounds: Rounds = 3,
    json: Json = False,
    device: Device = None,
) -> None:
    """Time a network that predicts: images/s, beside the paper's where its table has it."""
    import torch

    from rescue_cli.bench.inference import inference as measure

    where = common.device(device)
    found = measure(
        model,
        torch.device(where),
        size=size,
        batch_size=batch_size,
        precision=precision or ("float16" if where == "cuda" else "float32"),
        channels_last=channels_last,
        batches=batches,
        rounds=rounds,
    )
    if json:
        print(json_module.dumps(found))
        return
    paper = found["paper_v100_float16"]
    print(
        f"{found['what']}: {found['ours']:.1f} images/s "
        f"(rounds {found['low']:.1f} to {found['high']:.1f})"
        + (f"; paper, on a V100 in float16: {paper:.1f}" if paper else "")
    )


def _only_timm(against: str) -> None:
    if against != "timm":
        raise UsageError(f"--against: '{against}' is not known. Use timm.")
