"""`rescue bench`: what the loop costs, as a ratio measured in one run."""

import json as json_module
from typing import Annotated

import typer

from rescue_cli.cli import common
from rescue_cli.cli.common import Device, Json, Overrides, RecipeName

app = common.verb(no_args_is_help=True)


@app.callback()
def group() -> None:
    """Measure speed, as ratios within one run."""


@app.command()
def step(
    overrides: Overrides = None,
    recipe: RecipeName = None,
    steps: Annotated[int, typer.Option(help="Steps a round.", min=1)] = 20,
    rounds: Annotated[int, typer.Option(help="Rounds of each, in turn.", min=1)] = 7,
    json: Json = False,
    device: Device = None,
) -> None:
    """Time the engine's step against a bare PyTorch loop written out by hand."""
    from rescue_cli import build
    from rescue_cli import recipe as recipes
    from rescue_cli.bench.step import step as measure

    where = common.device(device)
    resolved = recipes.load(common.named_or_default(recipe), overrides or [])
    build.check(resolved)
    for warning in common.check_precision(resolved, where):
        common.note(f"warning: {warning}")
    found = measure(resolved, where, steps, rounds)
    if json:
        print(json_module.dumps(found))
        return
    print(
        f"{found['what']}: ours {found['ours']:.1f}, bare loop {found['theirs']:.1f} "
        f"{found['unit']}; "
        f"ratio of times {found['ratio']:.3f} "
        f"(rounds {found['ratio_low']:.3f} to {found['ratio_high']:.3f})"
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
