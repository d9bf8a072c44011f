"""`report.html`: runs, sweeps and studies on one page that needs nothing beside itself."""

import json
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from rescue_cli import recipe as recipes
from rescue_cli.plans import differences
from rescue_cli.recipe import Recipe, recipe_in
from rescue_cli.report import gaps, study_page, sweeps
from rescue_cli.report.markup import folded, head, image, shown_seconds, table, text
from rescue_cli.report.measurements import measurements
from rescue_cli.report.pictures import by_class, curves_of, figure_of, samples_of
from rescue_cli.report.sweep_pictures import figures_of
from rescue_cli.results import RunDirectory, label, read_json, read_metrics, score

SHOWN_ENVIRONMENT = (
    "device_name", "cores", "threads", "cpu_capability", "torch", "torchvision", "timm", "python",
    "rescue", "commit",
)  # fmt: skip
SHOWN_CLASSES = 40


def page(paths: Sequence[Path]) -> str:
    """The whole page; every path is a run, a sweep or a study that has results."""
    title = ", ".join(path.name or str(path) for path in paths)
    parts = [
        head(title),
        "<h1>Results</h1>",
        table(*results(paths)),
        "<p class=dim>In percent, of the last epoch: top-1, of detectors AP50, of segmentation "
        "mIoU. Paper: what the recipe's source claims. Measured: mean and standard deviation over "
        "seeds where there are several.</p>",
    ]
    before = None
    for path in paths:
        if study_page.is_study(path):
            parts.append(study_page.section(path))
            continue
        parts.append(_run(path) if _is_run(path) else _sweep(sweeps.read(path)))
        if before is not None:
            parts.append(_neighbour(before, path))
        before = path
    if (figure := gaps.figure_of_runs([path for path in paths if _is_run(path)])) is not None:
        parts.append(f"<h2>Logits</h2>{image(figure)}")
    return "\n".join([*parts, "</html>"]) + "\n"


def results(paths: Sequence[Path]) -> tuple[list[str], list[list[str]]]:
    """Headings and rows of the table: one for a run, a sweep's measurement, a study's row."""
    headings = ["", "recipe", "set", "paper", "measured", "std", "runs", "seconds"]
    rows = []
    for path in paths:
        if _is_run(path):
            rows += [_row(path, entry) for entry in read_json(RunDirectory(path).result)["sets"]]
            continue
        if study_page.is_study(path):
            rows += study_page.results(path)
            continue
        sweep = sweeps.read(path)
        recipe = recipe_of(path)
        summary = sweeps.summary(sweep)
        seconds = [float(r["seconds_train"]) for r in sweep.results.values()]
        for name, row in summary["sets"].items():
            rows.append(
                [
                    str(path), recipe.name, name, _claim(recipe), f"{row['mean']:.2f}",
                    "-" if row["std"] is None else f"{row['std']:.2f}", str(summary["n"]),
                    shown_seconds(sum(seconds) / len(seconds)),
                ]
            )  # fmt: skip
    return headings, rows


def recipe_of(path: Path) -> Recipe:
    """The recipe of a run, or of a sweep's runs."""
    if _is_run(path):
        return recipe_in(path)
    return recipe_in(next(p for p in sorted(path.glob("*")) if RunDirectory(p).recipe.is_file()))


def _is_run(path: Path) -> bool:
    return RunDirectory(path).recipe.is_file()


def _row(path: Path, entry: Mapping[str, Any]) -> list[str]:
    recipe, result = recipe_in(path), read_json(RunDirectory(path).result)
    return [
        str(path), recipe.name, label(entry, result["sets"]), _claim(recipe),
        f"{score(entry):.2f}", "-", "1", shown_seconds(result["seconds_train"]),
    ]  # fmt: skip


def _claim(recipe: Recipe) -> str:
    expect = recipe.tree.get("expect") or {}
    if "paper" not in recipe.tree or "top1" not in expect:
        return "-"
    spread = f" ± {expect['std']:.2f}" if "std" in expect else ""
    return f"{expect['top1']:.2f}{spread}" + (f" ({expect['n']})" if "n" in expect else "")


def _sweep(sweep: sweeps.Sweep) -> str:
    summary = sweeps.summary(sweep)
    parts = [f"<h2>{text(sweep.path)}: {summary['n']} seeds</h2>"]
    for seed, why in summary["failed"].items():
        parts.append(f"<p>Seed {seed} failed: {text(why)}</p>")
    parts += [image(figure) for figure in figures_of(sweep).values()]
    first = next((sweep.path / f"{sweeps.PREFIX}{seed}" for seed in sweep.results), None)
    return "\n".join([*parts, *([] if first is None else [_procedure(first)])])


def _run(path: Path) -> str:
    lines = read_metrics(RunDirectory(path).metrics)
    parts = [f"<h2>{text(path)}</h2>", table(*measurements(read_json(RunDirectory(path).result)))]
    if lines:
        parts.append(image(curves_of(lines)))
    if moved := [line for line in lines if line.get("momentum") is not None]:
        parts.append(image(_momentum(moved)))
    for file in sorted((path / "predictions").glob("*.npz")):
        parts.append(_classes(file))
    if RunDirectory(path).examples.is_file():
        parts.append(image(samples_of(RunDirectory(path).examples)))
    return "\n".join([*parts, _procedure(path)])


def _procedure(path: Path) -> str:
    """Command, environment, the recipe, and what differs from the shipped one."""
    run, recipe = RunDirectory(path), recipe_in(path)
    parts = [f"<p>To repeat it:</p><pre>{text(_command(run))}</pre>"]
    environment = read_json(run.environment)
    shown = [[key, str(environment[key])] for key in SHOWN_ENVIRONMENT if environment.get(key)]
    parts.append(folded("Environment", table(["", ""], shown)))
    if recipe.name in recipes.names():
        changed = differences(recipes.load(recipe.name).tree, recipe.tree)
        rows = [[key, str(old), str(new)] for key, (old, new) in changed.items()]
        neighbour = f"What differs from the shipped {recipe.name}"
        parts.append(folded(neighbour, table(["key", "shipped", "here"], rows)))
    parts.append(folded("The recipe", f"<pre>{text(recipe.to_yaml())}</pre>"))
    return "\n".join(parts)


def _neighbour(before: Path, path: Path) -> str:
    """What a path's recipe changes of the one above it."""
    changed = differences(recipe_of(before).tree, recipe_of(path).tree)
    rows = [[key, str(old), str(new)] for key, (old, new) in changed.items()]
    if not rows:
        return f"<p class=dim>The recipe is that of {text(before)}.</p>"
    return folded(f"What differs from {before}", table(["key", str(before), str(path)], rows))


def _command(run: RunDirectory) -> str:
    """What trained the run: of a sweep's or a study's run, the command of its own."""
    written = run.command.read_text().splitlines()[0]
    if shlex.split(written)[1:2] == ["train"]:
        return written
    return f"rescue train --recipe {run.recipe} --out OUT    # begun by: {written}"


def _momentum(lines: Sequence[Mapping[str, Any]]) -> Any:
    """Momentum by epoch, of a schedule that moves it."""
    figure = figure_of(5, 2.8)
    axes = figure.subplots()
    axes.plot([line["epoch"] for line in lines], [line["momentum"] for line in lines])
    axes.set_title("momentum", fontsize=10)
    axes.set_xlabel("epoch")
    axes.grid(alpha=0.3)
    return figure


def _classes(file: Path) -> str:
    """Accuracy of each class, the worst first."""
    with np.load(file) as arrays:
        names = [str(name) for name in arrays["classes"]]
        accuracy, (counts, heading) = arrays["per_class"], by_class(arrays)
    order = np.argsort(accuracy, kind="stable")[:SHOWN_CLASSES]
    rows = [[names[i], f"{accuracy[i]:.1f}", str(counts[i])] for i in order if counts[i]]
    more = len(names) - len(order)
    title = f"Classes of {file.stem}, the worst first" + (f" ({more} more)" if more else "")
    return folded(title, table(["class", *heading], rows))


def as_json(paths: Sequence[Path]) -> str:
    """The table of results as a JSON list of objects."""
    headings, rows = results(paths)
    keys = ["path", *headings[1:]]
    return json.dumps([dict(zip(keys, row, strict=True)) for row in rows])


def as_markdown(paths: Sequence[Path]) -> str:
    """The table of results for a README."""
    headings, rows = results(paths)
    lines = [headings, ["---"] * len(headings), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines) + "\n"
