"""`report.html`: runs, sweeps and studies on one page that needs nothing beside itself."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from rescue_cli import recipe as recipes
from rescue_cli.analysis import interim, records
from rescue_cli.analysis.claims import detail_lines
from rescue_cli.analysis.compare import compare_pairs
from rescue_cli.analysis.consistency import run_changes
from rescue_cli.analysis.sides import group_comparable, load_side
from rescue_cli.analysis.stats import Sample, sample
from rescue_cli.analysis.sweep import PREFIX, Sweep, published_sample, read_sweep, summarize_sweep
from rescue_cli.metrics.names import measurement_name, score
from rescue_cli.recipe import Recipe, recipe_in
from rescue_cli.recipe.changes import as_written, differences
from rescue_cli.report import logit_gaps, study_page
from rescue_cli.report.markup import folded, head, image, listed, table, text
from rescue_cli.report.pictures import (
    class_counts,
    new_figure,
    plot_curves,
    plot_samples,
    read_classes,
)
from rescue_cli.report.sweep_pictures import sweep_figures
from rescue_cli.report.table import HEADINGS, ResultLine, interval_notes, measurement_table
from rescue_cli.rundir import RunDirectory, read_command, read_json, read_metrics, read_result

SHOWN_ENVIRONMENT = (
    "device_name", "cores", "threads", "cpu_capability", "torch", "torchvision", "timm", "python",
    "rescue", "commit",
)  # fmt: skip
SHOWN_CLASSES = 40


def render_page(paths: Sequence[Path]) -> str:
    """The whole page; every path is a run, a sweep or a study that has results."""
    title = ", ".join(path.name or str(path) for path in paths)
    parts = [
        head(title),
        "<h1>Results</h1>",
        table(HEADINGS, [line.cells for line in result_lines(paths)]),
        "<p class=dim>In percent, of the last epoch: top-1, of detectors AP50, of segmentation "
        "mIoU. Paper: what the recipe's source claims, where nothing of it was changed. Measured: "
        "mean and standard deviation over seeds where there are several.</p>",
        _compared([path for path in paths if not study_page.is_study(path)]),
    ]
    before = None
    for path in paths:
        if study_page.is_study(path):
            parts.append(study_page.study_section(path))
            continue
        parts.append(_run(path) if _is_run(path) else _sweep(read_sweep(path)))
        if before is not None:
            parts.append(_neighbour(before, path))
        before = path
    if (
        figure := logit_gaps.plot_logit_gaps([path for path in paths if _is_run(path)])
    ) is not None:
        parts.append(f"<h2>Logits</h2>{image(figure)}")
    return "\n".join([*parts, "</html>"]) + "\n"


def result_lines(paths: Sequence[Path]) -> list[ResultLine]:
    """A line for each set of a run or a sweep, and for each row of a study that was measured."""
    found = []
    for path in paths:
        if study_page.is_study(path):
            found += study_page.study_lines(path)
        elif _is_run(path):
            found += _lines_of_run(path)
        else:
            found += _lines_of_sweep(path)
    return found


def _lines_of_run(path: Path) -> list[ResultLine]:
    recipe, result = recipe_in(path), read_result(RunDirectory(path))
    return [
        ResultLine(
            str(path), recipe.name, measurement_name(entry, result["sets"]), _claim(recipe),
            Sample(score(entry), None, 1), float(result["seconds_train"]),
        )
        for entry in result["sets"]
    ]  # fmt: skip


def _lines_of_sweep(path: Path) -> list[ResultLine]:
    sweep, recipe = read_sweep(path), recipe_in(first_run(path))
    summary = summarize_sweep(sweep)
    seconds = sample([float(result["seconds_train"]) for result in sweep.results.values()]).mean
    return [
        ResultLine(
            str(path), recipe.name, name, _claim(recipe),
            Sample(row["mean"], row["std"], summary["n"]), seconds, sweep.lost,
        )
        for name, row in summary["sets"].items()
    ]  # fmt: skip


def first_run(path: Path) -> Path:
    """The run itself, or the first of a sweep's."""
    if _is_run(path):
        return path
    return path / f"{PREFIX}{min(read_sweep(path).results)}"


def _is_run(path: Path) -> bool:
    return RunDirectory(path).result.is_file()


def _claim(recipe: Recipe) -> Sample | None:
    """What the recipe's paper claims of it; None of one that is changed, or of our own."""
    expect = recipe.tree.get("expect") or {}
    if "paper" not in recipe.tree or "top1" not in expect or records.changed_keys(recipe):
        return None
    return published_sample(expect)


def _compared(paths: Sequence[Path]) -> str:
    """What may be claimed of those runs and sweeps that were tested on the same images."""
    groups, why = group_comparable([load_side(str(path)) for path in paths])
    parts = [f"<p>Not compared with one another: {text(said)}</p>" for said in why]
    parts += [
        f"<p>{text(said)}</p>" for group in groups for said in interim.record_comparison(group)
    ]
    pairs = [pair for group in groups if len(group) > 1 for pair in compare_pairs(group)]
    if pairs:
        claims = listed((pair["claim"], detail_lines(pair)) for pair in pairs)
        parts.insert(0, f"<h2>Compared</h2>{claims}")
    return "\n".join(parts)


def _sweep(sweep: Sweep) -> str:
    parts = [f"<h2>{text(sweep.path)}: {text(sweep.counted)}</h2>"]
    parts += [f"<p>Seed {seed} {text(lost)}</p>" for seed, lost in sweep.lost.items()]
    parts += [image(figure) for figure in sweep_figures(sweep).values()]
    first = next((sweep.path / f"{PREFIX}{seed}" for seed in sweep.results), None)
    return "\n".join([*parts, *([] if first is None else [_procedure(first)])])


def _run(path: Path) -> str:
    lines = read_metrics(RunDirectory(path).metrics)
    result = read_result(RunDirectory(path))
    parts = [f"<h2>{text(path)}</h2>", table(*measurement_table(result))]
    parts += [f"<p class=dim>{text(line)}</p>" for line in interval_notes(result)]
    if lines:
        parts.append(image(plot_curves(lines)))
    if moved := [line for line in lines if line.get("momentum") is not None]:
        parts.append(image(_momentum(moved)))
    for file in sorted((path / "predictions").glob("*.npz")):
        parts.append(_classes(file))
    if RunDirectory(path).examples.is_file():
        parts.append(image(plot_samples(RunDirectory(path).examples)))
    return "\n".join([*parts, _procedure(path)])


def _procedure(path: Path) -> str:
    """Command, environment, the recipe, and what differs from the shipped one."""
    run, recipe = RunDirectory(path), recipe_in(path)
    parts = [f"<p>To repeat it:</p><pre>{text(_command(run))}</pre>"]
    environment = read_json(run.environment)
    facts = [[key, str(environment[key])] for key in SHOWN_ENVIRONMENT if environment.get(key)]
    parts.append(folded("Environment", table(["", ""], facts)))
    if recipe.name in recipes.names():
        changed = differences(recipes.load(recipe.name).tree, recipe.tree)
        rows = [[key, as_written(old), as_written(new)] for key, (old, new) in changed.items()]
        neighbour = f"What differs from the shipped {recipe.name}"
        same = f"<p class=dim>The recipe is the shipped {text(recipe.name)}.</p>"
        differing = folded(neighbour, table(["key", "shipped", "here"], rows))
        parts.append(differing if rows else same)
    parts.append(folded("The recipe", f"<pre>{text(recipe.to_yaml())}</pre>"))
    return "\n".join(parts)


def _neighbour(before: Path, path: Path) -> str:
    """What a path's recipe changes of the one above it."""
    changed = run_changes(first_run(before), first_run(path))
    rows = [[key, as_written(old), as_written(new)] for key, (old, new) in changed.items()]
    if not rows:
        return f"<p class=dim>The recipe is that of {text(before)}.</p>"
    return folded(f"What differs from {before}", table(["key", str(before), str(path)], rows))


def _command(run: RunDirectory) -> str:
    """What trained the run: of a sweep's or a study's run, the command of its own."""
    written = read_command(run)
    if written.split()[1:2] == ["train"]:
        return written
    return f"rescue train --recipe {run.recipe} --out OUT    # begun by: {written}"


def _momentum(lines: Sequence[Mapping[str, Any]]) -> Any:
    """Momentum by epoch, of a schedule that moves it."""
    figure = new_figure(5, 2.8)
    axes = figure.subplots()
    axes.plot([line["epoch"] for line in lines], [line["momentum"] for line in lines])
    axes.set_title("momentum", fontsize=10)
    axes.set_xlabel("epoch")
    axes.grid(alpha=0.3)
    return figure


def _classes(file: Path) -> str:
    """Accuracy of each class, the worst first."""
    arrays = read_classes(file)
    names = [str(name) for name in arrays["classes"]]
    counts, heading = class_counts(arrays)
    accuracy = np.where(counts > 0, arrays["per_class"], np.nan)  # which an older run has as 0
    order = np.argsort(accuracy, kind="stable")[:SHOWN_CLASSES]
    known = [f"{accuracy[i]:.1f}" if counts[i] else "unknown" for i in order]
    rows = [[names[i], said, str(counts[i])] for i, said in zip(order, known, strict=True)]
    more = len(names) - len(order)
    title = f"Classes of {file.stem}, the worst first" + (f" ({more} more)" if more else "")
    return folded(title, table(["class", *heading], rows))


def markdown_table(paths: Sequence[Path]) -> str:
    """The table of results for a README."""
    cells = [list(HEADINGS), ["---"] * len(HEADINGS), *(line.cells for line in result_lines(paths))]
    return "\n".join("| " + " | ".join(row) + " |" for row in cells) + "\n"
