"""`report.html`: runs, sweeps and studies on one page that fetches nothing."""

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np

from rescue_cli import recipe as recipes
from rescue_cli.analysis import interim, records
from rescue_cli.analysis.accuracy import accuracy_interval
from rescue_cli.analysis.claims import with_details
from rescue_cli.analysis.compare import compare_pairs
from rescue_cli.analysis.consistency import run_changes
from rescue_cli.analysis.sides import (
    IN_COMMON,
    differing_classes,
    group_comparable,
    image_warnings,
    load_side,
    side_of_sweep,
)
from rescue_cli.analysis.stats import Sample, sample
from rescue_cli.analysis.sweep import (
    PREFIX,
    Sweep,
    published_sample,
    read_sweep,
    seed_folders,
    summarize_sweep,
)
from rescue_cli.metrics.names import (
    measurement_name,
    measurement_stem,
    metric_names,
    score,
)
from rescue_cli.recipe import Recipe, recipe_in
from rescue_cli.recipe.changes import differences, format_recipe_value
from rescue_cli.recipe.own import describe_code
from rescue_cli.report import study_page
from rescue_cli.report.answer import LAST_STEP, describe_result, leading_claim, strip_charts
from rescue_cli.report.html import render
from rescue_cli.report.logit_gaps import plot_logit_gaps
from rescue_cli.report.photographs import find_doubtful_labels, find_hardest, sample_gallery
from rescue_cli.report.pictures import (
    class_counts,
    plot_panel,
    read_classes,
    run_panels,
    shows_counts,
)
from rescue_cli.report.sweep_pictures import plot_bands, plot_cloud
from rescue_cli.report.table import ResultLine, interval_notes, measurement_table, results_table
from rescue_cli.rundir import RunDirectory, read_command, read_identity, read_json, read_result

SHOWN_ENVIRONMENT = (
    "device_name", "cores", "threads", "cpu_capability", "torch", "torchvision", "timm", "python",
    "rescue", "commit",
)  # fmt: skip
SHOWN_CLASSES = 40
MATRIX_CLASSES = 20  # a larger confusion matrix does not fit a page; its largest cells are listed
LISTED_CONFUSIONS = 12


def render_page(paths: Sequence[Path], *, logits: bool = False) -> str:
    """The whole page; every path is a run, a sweep or a study that has results.

    `logits`: also draw the gaps of the runs' logits.
    """
    sweeps = {path: read_sweep(path) for path in paths if is_sweep(path)}
    lines = result_lines(paths, sweeps)
    headings, rows = results_table(lines)
    several = len(paths) > 1
    comparison = _comparison([path for path in paths if not study_page.is_study(path)], sweeps)
    answer, more = _answer(paths, lines, comparison)
    sections: list[dict[str, Any]] = []
    previous = None  # the last run or sweep above, which the next one's recipe is compared with
    for path in paths:
        if study_page.is_study(path):
            sections.append(study_page.study_section(path))
            continue
        section = (
            _run_section(path) if RunDirectory(path).finished else _sweep_section(sweeps[path])
        )
        changed: Mapping[str, tuple[Any, Any]] = {}
        if previous is not None:
            changed = run_changes(first_run(previous), first_run(path))
        sections.append({**section, "previous": previous, "previous_changes": _rows(changed)})
        previous = path
    return render(
        "report.html",
        title=_title(paths) if several else answer,
        answer=answer,
        more=more,
        alone=None if several else paths[0],
        charts=strip_charts(
            lines, alone=not (several or study_page.is_study(paths[0])), itself=_itself(paths[0])
        ),
        doubts=result_warnings(paths, sweeps),
        headings=headings,
        rows=rows,
        bands=plot_bands(list(sweeps.values())),
        sections=sections,
        logits=plot_logit_gaps([path for path in paths if RunDirectory(path).finished])
        if logits
        else None,
        **comparison,
    )


def is_sweep(path: Path) -> bool:
    """Whether a folder that has results is neither a run nor a study."""
    return not (RunDirectory(path).finished or study_page.is_study(path))


def _title(paths: Sequence[Path]) -> str:
    """The names of the folders; where two are the same, as much of their paths as differs."""
    names = [path.name or str(path) for path in paths]
    if len({*names}) < len(names):
        absolute = [os.path.abspath(path) for path in paths]
        above = os.path.commonpath([os.path.dirname(path) for path in absolute])
        names = [os.path.relpath(path, above) for path in absolute]
    return ", ".join(names)


def _itself(path: Path) -> str:
    """What a run's own measurement is called beside its evaluations: of the last step, or of a
    head that was fitted without steps.
    """
    run = RunDirectory(path)
    return "fitted head" if run.finished and "fit" in read_result(run) else LAST_STEP


def _answer(
    paths: Sequence[Path], lines: Sequence[ResultLine], comparison: Mapping[str, Any]
) -> tuple[str, str]:
    """What the page shows in a sentence, and what has to be said with it."""
    if comparison["pairs"]:
        return leading_claim(comparison["pairs"])
    if len(paths) > 1:
        if comparison["in_common"]:
            return f"{len(paths)} results on different test images, some of them in common.", ""
        return f"{len(paths)} results that cannot be compared with one another.", ""
    if study_page.is_study(paths[0]):
        measured = study_page.describe_study(paths[0])
        if not (pairs := study_page.study_pairs(paths[0])):
            return measured, ""
        claim, more = leading_claim(pairs)
        return claim, " ".join(filter(None, [measured, more]))
    baseline = None
    run = first_run(paths[0])
    entry = read_result(RunDirectory(run))["sets"][0]
    if "top1" in entry and entry.get("per_class"):
        largest = max(entry["per_class"], key=lambda row: row["images"])
        baseline = (largest["class"], 100 * largest["images"] / entry["count"])
    return describe_result(lines[0], baseline, _subject(run)), ""


def describe_run(path: Path) -> str:
    """What a finished run is and how accurate: the sentence that its report begins with."""
    return _answer([path], _lines_of_run(path), {"pairs": []})[0]


def _subject(run: Path) -> str:
    """The network, its data and its recipe: `resnet50 on photos, recipe transfer`."""
    recipe = recipe_in(run)
    root = _own_root(recipe)
    name = recipe.data.name if root is None else Path(root).name
    named = "" if recipe.name == recipe.model.name else f", recipe {recipe.name}"
    return f"{recipe.model.name} on {name}{named}"


def _own_root(recipe: Recipe) -> str | None:
    """The folder of the user's own images; None of other data."""
    from rescue_cli.sections.data import FACTS

    facts = FACTS.get(recipe.data.name)
    return recipe.data.root if facts is not None and facts.images is None else None


def result_lines(
    paths: Sequence[Path], sweeps: Mapping[Path, Sweep] = MappingProxyType({})
) -> list[ResultLine]:
    """A line for each set of a run or a sweep, and for each row of a study that was measured.

    Below a run are its evaluations, unless they are among `paths` themselves. `sweeps`: those that
    were read before.
    """
    lines = []
    for path in paths:
        if study_page.is_study(path):
            lines += study_page.study_lines(path)
        elif RunDirectory(path).finished:
            beside = [one for one in evaluations(path) if one not in paths]
            lines += [line for run in (path, *beside) for line in _lines_of_run(run)]
        else:
            lines += _lines_of_sweep(sweeps.get(path) or read_sweep(path))
    return lines


def result_warnings(
    paths: Sequence[Path], sweeps: Mapping[Path, Sweep] = MappingProxyType({})
) -> list[str]:
    """What makes the results of `result_lines` say little; the same of a sweep's runs once."""
    warnings: dict[str, None] = {}
    for path in paths:
        if RunDirectory(path).finished:
            runs = {path: path, **{one: one for one in evaluations(path)}}
        elif is_sweep(path):
            sweep = sweeps.get(path) or read_sweep(path)
            runs = {path / f"{PREFIX}{seed}": path for seed in sweep.results}
        else:
            continue
        for run, name in runs.items():
            warnings |= dict.fromkeys(f"{name}: {line}" for line in image_warnings(run))
    return list(warnings)


def evaluations(run: Path) -> list[Path]:
    """The evaluations that `rescue eval RUN` has left in a run's folder, the oldest first."""
    results = (run / "evals").glob("*/result.json")
    numbered = [file.parent for file in results if file.parent.name.isdecimal()]
    return sorted(numbered, key=lambda folder: int(folder.name))


def _lines_of_run(path: Path) -> list[ResultLine]:
    recipe, result = recipe_in(path), read_result(RunDirectory(path))
    return [
        ResultLine(
            str(path), recipe.name, measurement_name(entry, result["sets"]),
            _published_sample(recipe), Sample(score(entry), None, 1),
            float(result["seconds_train"]) or None, metric=metric_names(entry)[0],
            interval=accuracy_interval(entry) if "top1" in entry else None,
            images=entry["count"], epochs=result.get("epochs"),
        )
        for entry in result["sets"]
    ]  # fmt: skip


def _lines_of_sweep(sweep: Sweep) -> list[ResultLine]:
    path, recipe = sweep.path, recipe_in(first_run(sweep.path))
    summary = summarize_sweep(sweep)
    seconds = sample([float(result["seconds_train"]) for result in sweep.results.values()]).mean
    entries = next(iter(sweep.results.values()))["sets"]
    alone = len(sweep.results) == 1 and "top1" in entries[0]
    return [
        ResultLine(
            str(path), recipe.name, name, _published_sample(recipe),
            Sample(row["mean"], row["std"], summary["n"]), seconds, sweep.missing,
            metric=metric_names(entry)[0], seeds=sweep.values(name), images=entry["count"],
            interval=accuracy_interval(entry) if alone else row["interval"],
            epochs=next(iter(sweep.results.values())).get("epochs"),
        )
        for (name, row), entry in zip(summary["sets"].items(), entries, strict=True)
    ]  # fmt: skip


def first_run(path: Path) -> Path:
    """The run itself, or the first finished run of a sweep."""
    if RunDirectory(path).finished:
        return path
    return next(folder for folder in seed_folders(path).values() if RunDirectory(folder).finished)


def _published_sample(recipe: Recipe) -> Sample | None:
    """What the recipe's paper reports; None of a recipe that was changed, or has no paper."""
    expect = recipe.tree.get("expect") or {}
    if "paper" not in recipe.tree or "top1" not in expect or records.changed_keys(recipe):
        return None
    return published_sample(expect)


def _comparison(paths: Sequence[Path], sweeps: Mapping[Path, Sweep]) -> dict[str, Any]:
    """What may be claimed of the runs and sweeps that were tested on the same images."""
    sides = [
        side_of_sweep(str(path), sweeps[path]) if path in sweeps else load_side(str(path))
        for path in paths
    ]
    groups, reasons = group_comparable(sides)
    warnings = [line for group in groups for line in interim.record_comparison(group)]
    warnings += differing_classes(sides)
    pairs = [pair for group in groups if len(group) > 1 for pair in compare_pairs(group)]
    return {
        "pairs": with_details(pairs),
        "not_compared": reasons,
        "in_common": any(IN_COMMON in reason for reason in reasons),
        "warnings": warnings,
    }


def _run_section(path: Path) -> dict[str, Any]:
    """What `run.html` shows."""
    run = RunDirectory(path)
    measured = [read_result(RunDirectory(one)) for one in (path, *evaluations(path))]
    entries = [entry for result in measured for entry in result["sets"]]
    headings, rows = measurement_table({**measured[0], "sets": entries})
    if len(measured) > 1:  # which of the measurements is the training's own, and which came later
        places = [_itself(path), *(f"evals/{one.name}" for one in evaluations(path))]
        counts = [len(result["sets"]) for result in measured]
        of = [place for place, count in zip(places, counts, strict=True) for _ in range(count)]
        headings = ["measured in", *headings]
        rows = [[place, *row] for place, row in zip(of, rows, strict=True)]
    return {
        "template": "run.html",
        "path": path,
        "measurements": (headings, rows),
        "notes": interval_notes({**measured[0], "sets": entries}),
        "evaluated": len(measured) > 1,
        "weights": _itself(path),
        **_details(path),
        "samples": {
            "test images, annotated and predicted": sample_gallery(run.examples),
            "Training images as the network sees them": sample_gallery(run.samples),
        },
        "procedure": _procedure(path),
    }


def _details(path: Path) -> dict[str, Any]:
    """A run's curves, its classes, and the images that are hardest for it."""
    run = RunDirectory(path)
    entries = read_result(run)["sets"]
    files = {e["set"]: run.predictions(measurement_stem(e, entries)) for e in reversed(entries)}
    kept = {name: file for name, file in reversed(files.items()) if file.is_file()}
    main = next(iter(kept.items()), None)
    return {
        "figures": {f"{panel.title} by epoch": plot_panel(panel) for panel in run_panels(path)},
        "confusion": [table for name, file in kept.items() if (table := _confusion(name, file))],
        "hardest": None if main is None else find_hardest(path, *main),
        "labels": find_doubtful_labels(path, entries[0]["size"]),
        "classes": [_class_table(name, file) for name, file in kept.items()],
    }


def _sweep_section(sweep: Sweep) -> dict[str, Any]:
    """What `sweep.html` shows."""
    first = next((sweep.path / f"{PREFIX}{seed}" for seed in sweep.results), None)
    several = len(sweep.measurements) > 1 and len(sweep.results) > 1
    return {
        "template": "sweep.html",
        "path": sweep.path,
        "seeds": sweep.seeds_text,
        "unfinished": [f"Seed {seed} {missing}" for seed, missing in sweep.missing.items()],
        "clouds": {"one test set against another": plot_cloud(sweep)} if several else {},
        "first": None if first is None else first.name,
        **({} if first is None else _details(first)),
        "procedure": None if first is None else _procedure(first, _runs_of(sweep)),
    }


def _confusion(name: str, file: Path) -> dict[str, Any] | None:
    """What was taken for what: a matrix, or of many classes its largest cells; else None.

    As counts where a class has few images, else in percent of the class.
    """
    arrays = read_classes(file)
    if "confusion" not in arrays:
        return None
    counts, classes = arrays["confusion"], [str(one) for one in arrays["classes"]]
    percent = 100 * counts / np.maximum(counts.sum(1, keepdims=True), 1)
    if len(classes) > MATRIX_CLASSES:
        wrong = counts * (1 - np.eye(len(classes), dtype=counts.dtype))
        order = np.argsort(-wrong, axis=None, kind="stable")[:LISTED_CONFUSIONS]
        cells = [divmod(int(cell), len(classes)) for cell in order if wrong.flat[cell]]
        return {
            "set": name,
            "classes": None,
            "rows": [
                [classes[i], classes[j], str(counts[i, j]), str(counts[i].sum())] for i, j in cells
            ],
        }
    as_counts = shows_counts(counts)
    shown = counts if as_counts else percent.round().astype(int)
    return {
        "set": name,
        "classes": classes,
        "unit": "images" if as_counts else "percent of each class",
        "rows": [
            {
                "label": label,
                "cells": [
                    {"text": str(shown[i, j]) if counts[i, j] else "", "right": i == j,
                     "share": round(float(percent[i, j]))}
                    for j in range(len(classes))
                ],
            }
            for i, label in enumerate(classes)
        ],
    }  # fmt: skip


def _runs_of(sweep: Sweep) -> list[Path]:
    return [sweep.path / f"{PREFIX}{seed}" for seed in sweep.results]


def _procedure(path: Path, others: Sequence[Path] = ()) -> dict[str, Any]:
    """Command, environment, the recipe, and what differs from the shipped one.

    `others`: the runs of its sweep, which several commands may have started.
    """
    run, recipe = RunDirectory(path), recipe_in(path)
    environment = read_json(run.environment)
    shipped = recipe.name in recipes.names()
    changes = differences(recipes.load(recipe.name).tree, recipe.tree) if shipped else {}
    return {
        **_commands(run, others),
        "images": _training_images(run, recipe),
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


def _commands(run: RunDirectory, others: Sequence[Path]) -> dict[str, str | None]:
    """What trains the run alone, and where other commands started it (a sweep, ...) those."""
    written = read_command(run)
    if written.split()[1:2] == ["train"]:
        return {"command": written, "started_by": None}
    all_of_them = [written, *(read_command(RunDirectory(other)) for other in others)]
    return {
        "command": f"rescue train --recipe {run.recipe} --out OUT",
        "started_by": "\n".join(dict.fromkeys(line.strip() for line in all_of_them)),
    }


def _training_images(run: RunDirectory, recipe: Recipe) -> int | None:
    """How many images of the user's own a run was trained on; None of other data."""
    identity = read_identity(run)
    own = _own_root(recipe) is not None and identity is not None
    return identity["splits"]["train"]["images"] if own and identity is not None else None


def _class_table(name: str, file: Path) -> dict[str, Any]:
    """Accuracy of each class, the worst first."""
    arrays = read_classes(file)
    names = [str(name) for name in arrays["classes"]]
    counts, headings = class_counts(arrays)
    accuracy = np.where(counts > 0, arrays["per_class"], np.nan)  # which an older run has as 0
    order = np.argsort(accuracy, kind="stable")[:SHOWN_CLASSES]
    more = len(names) - len(order)
    return {
        "title": f"Classes of {name}, the worst first" + (f" ({more} more)" if more else ""),
        "headings": ["class", *headings],
        "rows": [
            [names[i], f"{accuracy[i]:.1f}" if counts[i] else "unknown", str(counts[i])]
            for i in order
        ],
    }


def markdown_table(paths: Sequence[Path]) -> str:
    """The table of results for a README, and below it why some of them say little."""
    headings, rows = results_table(result_lines(paths))
    cells = [headings, ["---"] * len(headings), *rows]
    table = "\n".join("| " + " | ".join(row) + " |" for row in cells) + "\n"
    return table + "".join(f"\nwarning: {line}\n" for line in result_warnings(paths))
