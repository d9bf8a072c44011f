"""`report.html`: runs, sweeps and studies on one page that fetches nothing."""

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
from rescue_cli.analysis.sweep import (
    PREFIX,
    Sweep,
    published_sample,
    read_sweep,
    summarize_sweep,
)
from rescue_cli.metrics.names import measurement_name, score
from rescue_cli.recipe import Recipe, recipe_in
from rescue_cli.recipe.changes import differences, format_recipe_value
from rescue_cli.recipe.own import describe_code
from rescue_cli.report import study_page
from rescue_cli.report.html import render
from rescue_cli.report.logit_gaps import plot_logit_gaps
from rescue_cli.report.pictures import (
    class_counts,
    new_figure,
    plot_curves,
    plot_samples,
    read_classes,
)
from rescue_cli.report.sweep_pictures import sweep_figures
from rescue_cli.report.table import ResultLine, interval_notes, measurement_table, results_table
from rescue_cli.rundir import RunDirectory, read_command, read_json, read_metrics, read_result

SHOWN_ENVIRONMENT = (
    "device_name", "cores", "threads", "cpu_capability", "torch", "torchvision", "timm", "python",
    "rescue", "commit",
)  # fmt: skip
SHOWN_CLASSES = 40


def render_page(paths: Sequence[Path]) -> str:
    """The whole page; every path is a run, a sweep or a study that has results."""
    headings, rows = results_table(result_lines(paths))
    sections: list[dict[str, Any]] = []
    previous = None  # the last run or sweep above, which the next one's recipe is compared with
    for path in paths:
        if study_page.is_study(path):
            sections.append(study_page.study_section(path))
            continue
        section = _run_section(path) if _is_run(path) else _sweep_section(read_sweep(path))
        changed: Mapping[str, tuple[Any, Any]] = {}
        if previous is not None:
            changed = run_changes(first_run(previous), first_run(path))
        sections.append({**section, "previous": previous, "previous_changes": _rows(changed)})
        previous = path
    return render(
        "report.html",
        title=", ".join(path.name or str(path) for path in paths),
        headings=headings,
        rows=rows,
        sections=sections,
        logits=plot_logit_gaps([path for path in paths if _is_run(path)]),
        **_comparison([path for path in paths if not study_page.is_study(path)]),
    )


def result_lines(paths: Sequence[Path]) -> list[ResultLine]:
    """A line for each set of a run or a sweep, and for each row of a study that was measured."""
    lines = []
    for path in paths:
        if study_page.is_study(path):
            lines += study_page.study_lines(path)
        elif _is_run(path):
            lines += _lines_of_run(path)
        else:
            lines += _lines_of_sweep(path)
    return lines


def _lines_of_run(path: Path) -> list[ResultLine]:
    recipe, result = recipe_in(path), read_result(RunDirectory(path))
    return [
        ResultLine(
            str(path), recipe.name, measurement_name(entry, result["sets"]),
            _published_sample(recipe), Sample(score(entry), None, 1),
            float(result["seconds_train"]),
        )
        for entry in result["sets"]
    ]  # fmt: skip


def _lines_of_sweep(path: Path) -> list[ResultLine]:
    sweep, recipe = read_sweep(path), recipe_in(first_run(path))
    summary = summarize_sweep(sweep)
    seconds = sample([float(result["seconds_train"]) for result in sweep.results.values()]).mean
    return [
        ResultLine(
            str(path), recipe.name, name, _published_sample(recipe),
            Sample(row["mean"], row["std"], summary["n"]), seconds, sweep.missing,
        )
        for name, row in summary["sets"].items()
    ]  # fmt: skip


def first_run(path: Path) -> Path:
    """The run itself, or the first finished run of a sweep."""
    if _is_run(path):
        return path
    return path / f"{PREFIX}{min(read_sweep(path).results)}"


def _is_run(path: Path) -> bool:
    return RunDirectory(path).result.is_file()


def _published_sample(recipe: Recipe) -> Sample | None:
    """What the recipe's paper reports; None of a recipe that was changed, or has no paper."""
    expect = recipe.tree.get("expect") or {}
    if "paper" not in recipe.tree or "top1" not in expect or records.changed_keys(recipe):
        return None
    return published_sample(expect)


def _comparison(paths: Sequence[Path]) -> dict[str, Any]:
    """What may be claimed of the runs and sweeps that were tested on the same images."""
    groups, reasons = group_comparable([load_side(str(path)) for path in paths])
    warnings = [line for group in groups for line in interim.record_comparison(group)]
    pairs = [pair for group in groups if len(group) > 1 for pair in compare_pairs(group)]
    return {
        "pairs": [{"claim": pair["claim"], "details": detail_lines(pair)} for pair in pairs],
        "not_compared": reasons,
        "warnings": warnings,
    }


def _run_section(path: Path) -> dict[str, Any]:
    """What `run.html` shows."""
    run = RunDirectory(path)
    lines, result = read_metrics(run.metrics), read_result(run)
    figures = {"loss, accuracy and learning rate by epoch": plot_curves(lines)} if lines else {}
    if moved := [line for line in lines if line.get("momentum") is not None]:
        figures["momentum by epoch"] = _plot_momentum(moved)
    predictions = sorted((path / "predictions").glob("*.npz"))
    examples = run.examples
    return {
        "template": "run.html",
        "path": path,
        "measurements": measurement_table(result),
        "notes": interval_notes(result),
        "figures": figures,
        "classes": [_class_table(file) for file in predictions],
        "samples": {"examples": plot_samples(examples)} if examples.is_file() else {},
        "procedure": _procedure(path),
    }


def _sweep_section(sweep: Sweep) -> dict[str, Any]:
    """What `sweep.html` shows."""
    first = next((sweep.path / f"{PREFIX}{seed}" for seed in sweep.results), None)
    return {
        "template": "sweep.html",
        "path": sweep.path,
        "seeds": sweep.seeds_text,
        "unfinished": [f"Seed {seed} {missing}" for seed, missing in sweep.missing.items()],
        "figures": {Path(name).stem: figure for name, figure in sweep_figures(sweep).items()},
        "procedure": None if first is None else _procedure(first),
    }


def _procedure(path: Path) -> dict[str, Any]:
    """Command, environment, the recipe, and what differs from the shipped one."""
    run, recipe = RunDirectory(path), recipe_in(path)
    environment = read_json(run.environment)
    shipped = recipe.name in recipes.names()
    changes = differences(recipes.load(recipe.name).tree, recipe.tree) if shipped else {}
    return {
        "command": _command(run),
        "environment": [
            *([["code of your own", describe_code(recipe.code)]] if recipe.code else []),
            *([k, str(environment[k])] for k in SHOWN_ENVIRONMENT if environment.get(k)),
        ],
        "recipe": recipe.name,
        "shipped": shipped,
        "changes": _rows(changes),
        "yaml": recipe.to_yaml(),
    }


def _rows(changes: Mapping[str, tuple[Any, Any]]) -> list[list[str]]:
    return [
        [key, format_recipe_value(old), format_recipe_value(new)]
        for key, (old, new) in changes.items()
    ]


def _command(run: RunDirectory) -> str:
    """What trained the run: for a run of a sweep or study, a command that trains it alone."""
    written = read_command(run)
    if written.split()[1:2] == ["train"]:
        return written
    return f"rescue train --recipe {run.recipe} --out OUT    # was started by: {written}"


def _plot_momentum(lines: Sequence[Mapping[str, Any]]) -> Any:
    """Momentum by epoch, of a schedule that changes it."""
    figure = new_figure(5, 2.8)
    axes = figure.subplots()
    axes.plot([line["epoch"] for line in lines], [line["momentum"] for line in lines])
    axes.set_title("momentum", fontsize=10)
    axes.set_xlabel("epoch")
    axes.grid(alpha=0.3)
    return figure


def _class_table(file: Path) -> dict[str, Any]:
    """Accuracy of each class, the worst first."""
    arrays = read_classes(file)
    names = [str(name) for name in arrays["classes"]]
    counts, headings = class_counts(arrays)
    accuracy = np.where(counts > 0, arrays["per_class"], np.nan)  # which an older run has as 0
    order = np.argsort(accuracy, kind="stable")[:SHOWN_CLASSES]
    more = len(names) - len(order)
    return {
        "title": f"Classes of {file.stem}, the worst first" + (f" ({more} more)" if more else ""),
        "headings": ["class", *headings],
        "rows": [
            [names[i], f"{accuracy[i]:.1f}" if counts[i] else "unknown", str(counts[i])]
            for i in order
        ],
    }


def markdown_table(paths: Sequence[Path]) -> str:
    """The table of results for a README."""
    headings, rows = results_table(result_lines(paths))
    cells = [headings, ["---"] * len(headings), *rows]
    return "\n".join("| " + " | ".join(row) + " |" for row in cells) + "\n"
