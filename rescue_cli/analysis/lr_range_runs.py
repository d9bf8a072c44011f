"""The runs of an LR range test: their plan and cost, their training, and what they say together."""

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from rescue_cli.analysis import lr_range
from rescue_cli.analysis.lr_range import Curves, Ramp, RangeTestResult, RunEstimate, read_curves
from rescue_cli.analysis.sweep import PREFIX
from rescue_cli.errors import DataError, UsageError
from rescue_cli.formatting import format_duration
from rescue_cli.recipe import Recipe, recipe_in, total_steps
from rescue_cli.recipe.changes import given_keys, is_given, optim_path, without_lr_rule
from rescue_cli.rundir import (
    RunDirectory,
    check_keys,
    read_json,
    read_result,
    write_json,
    write_text,
)
from rescue_cli.rundir.reading import BOOLEAN, LIST, OBJECTS, POSITIVE
from rescue_cli.runs.console import note
from rescue_cli.runs.directory import command_line
from rescue_cli.runs.single import train_part

IMAGES = 1000  # of the test set, per evaluation: all evaluations are of the same images
FILE = "lr-range.json"
ANSWER = {
    "max_lr": POSITIVE.or_null(),
    "trusted": BOOLEAN,
    "reasons": LIST,
    "seeds": OBJECTS,
}
# What fastai's suggestions are; the fall is by its definition that per decade of the rate
SUGGESTIONS = {
    "valley": "valley",
    "steepest": "steepest fall per decade",
    "minimum": "minimum / 10",
}
ANNOTATED_IMAGES = 100  # the same where images carry boxes or masks


@dataclass(frozen=True)
class PlannedRun:
    """One run of a test."""

    recipe: Recipe
    ramp: Ramp
    steps: int


@dataclass(frozen=True)
class Plan:
    """The runs by the names of their folders; the last one has half the steps."""

    runs: dict[str, PlannedRun]
    classes: int
    images: str  # of one evaluation, in words

    @property
    def cost(self) -> str:
        """What the test will take, in words."""
        *full, half = self.runs.values()
        times = f"{len(full)} x " if len(full) > 1 else ""
        evaluations = sum(min(run.ramp.points, run.steps) for run in self.runs.values())
        return (
            f"{len(self.runs)} runs: {times}{full[0].steps} steps, and half as many "
            f"({half.steps}) to confirm; {evaluations} evaluations of {self.images} test images"
        )


def plan_runs(recipe: Recipe, ramp: Ramp, seeds: int, steps_per_epoch: int) -> Plan:
    """All runs, checked before any is trained, on a test set that is not too large."""
    from rescue_cli.build.check import check_recipe
    from rescue_cli.build.feeds import list_dataset

    check_recipe(ramp.of(recipe, 0, steps_per_epoch))
    data = list_dataset(recipe)
    most = ANNOTATED_IMAGES if recipe.is_annotated else IMAGES
    measured, images = _limit_test_images(recipe, data, most)
    half = replace(ramp, epochs=ramp.epochs / 2)
    # The run of half the steps has a seed of its own: only an independent run can agree
    ramps = {**{f"{PREFIX}{seed}": (ramp, seed) for seed in range(seeds)}, "half": (half, seeds)}
    runs = {}
    for name, (each, seed) in ramps.items():
        one = each.of(measured, seed, steps_per_epoch)
        check_recipe(one)
        runs[name] = PlannedRun(one, each, total_steps(one.train, steps_per_epoch))
    return Plan(runs, len(data.classes), images)


def _limit_test_images(recipe: Recipe, data: Any, most: int) -> tuple[Recipe, str]:
    """The recipe, evaluated on at most so many test images, and how many in words.

    A `data.subset` that is given stays.
    """
    main = next(iter(data.tests))
    name = (recipe.eval.sets or [main])[0]
    # A set that gives other labels to the main set's images has no images of its own
    count = len(data.tests.get(name, data.tests[main]))
    if count <= most or recipe.data.subset:
        return recipe, f"{count:,}"
    limited = recipe.with_overrides(f"data.subset=[{len(data.train)}, {most}]")
    return limited, f"{most:,} of {count:,}"


def train_runs(
    plan: Plan, folder: Path, device: str, procs: int | None, workers: int | None
) -> Iterator[Curves]:
    """Trains one run after another, and yields the curves of each; they end where it diverged."""
    left = sum(run.steps for run in plan.runs.values())
    told: set[str] = set()
    for number, (name, run) in enumerate(plan.runs.items(), 1):
        note(f"run {number} of {len(plan.runs)}: {name}")
        diverged = train_part(folder / name, run.recipe, device, procs, workers, folder, told)
        left -= run.steps
        if left and not diverged:
            spent = _seconds(folder / name)  # with those before it was resumed
            rest = format_duration(spent * left / run.steps)
            note(f"{name} took {format_duration(spent)}; at most {rest} left")
        yield read_curves(
            folder / name,
            run.ramp.rate,
            run.steps,
            run.recipe.train.seed,
            plan.classes,
            diverged=diverged,
        )


def _seconds(run: Path) -> float:
    """What a finished run took."""
    result = read_result(RunDirectory(run))
    return sum(float(result[f"seconds_{part}"]) for part in ("prepare", "train", "eval"))


def rate_from(folder: Path, recipe: Recipe, given: Sequence[str]) -> tuple[list[str], list[str]]:
    """The overrides that give a recipe the rate which the test in `folder` found, and notes.

    Raises `UsageError` where there is none, or one that its runs do not support; `DataError`.
    """
    if any(is_given(f"{optim_path(recipe, 0)}.lr", [key]) for key in given_keys(given)):
        raise UsageError("--lr-from and optim.lr set the same thing. Give only one.")
    file = folder / FILE
    if not file.is_file():
        raise DataError(f"--lr-from: {folder} holds no {FILE}. Give a folder of lr-range-test.")
    test = read_json(file)
    check_keys(file, test, ANSWER, "Remove --lr-from.")
    reasons = "; ".join(test["reasons"])
    if test["max_lr"] is None or not test["trusted"]:
        raise UsageError(
            f"--lr-from: {folder} found no learning rate that its runs support ({reasons}). "
            "Set optim.lr yourself."
        )
    rate = float(f"{test['max_lr']:.3g}")
    notes = [f"--lr-from sets: optim.lr={rate:g} ({reasons})"]
    tested = recipe_in(folder / f"{PREFIX}{test['seeds'][0]['seed']}")
    for name, before, now in (
        ("train.batch_size", tested.train.batch_size, recipe.train.batch_size),
        ("optim.name", tested.optim[0].name, recipe.optim[0].name),
        ("model.name", tested.model.name, recipe.model.name),
    ):
        if before != now:
            notes.append(f"warning: the range test had {name}={before}, and this run has {now}")
    return [f"{optim_path(recipe, 0)}.lr={rate:g}", *without_lr_rule(recipe)], notes


class RangeTest:
    """The finished runs of a test, the estimate of each, and the answer of all."""

    def __init__(self, recipe: Recipe, ramp: Ramp, curves: list[Curves]) -> None:
        self.recipe, self.ramp = recipe, ramp
        *self.full, self.half = curves
        self.estimates: list[RunEstimate] = [lr_range.estimate_max_lr(each) for each in self.full]
        self.answer: RangeTestResult = lr_range.combine_estimates(
            self.estimates, lr_range.estimate_max_lr(self.half), ramp.end
        )

    @property
    def summary(self) -> dict[str, Any]:
        """The stable keys of `--json`, and the evidence."""
        rates = [r.max_lr for r in self.estimates if r.max_lr is not None]
        return {
            "recipe": self.recipe.name,
            "metric": self.full[0].metric,
            "max_lr": self.answer.max_lr,
            "min_lr": self.answer.min_lr,
            "band": [min(rates), max(rates)] if rates else None,
            "verdict": self.answer.verdict,
            "bounded_above": self.answer.bounded_above,
            "trusted": self.answer.trusted,
            "reasons": self.answer.reasons,
            "suggestions": self.estimates[0].suggestions,
            "seeds": [
                {"seed": curves.seed, "max_lr": r.max_lr, "verdict": r.verdict,
                 "bounded_above": r.bounded_above, "evidence": r.evidence,
                 "overfitting": r.overfitting, "suggestions": r.suggestions}
                for curves, r in zip(self.full, self.estimates, strict=True)
            ],
        }  # fmt: skip

    def write(self, folder: Path) -> None:
        """Writes the answer, its evidence and every curve to `lr-range.json`."""
        environment = read_json(RunDirectory(folder / f"{PREFIX}{self.full[0].seed}").environment)
        write_json(
            folder / FILE,
            {
                **self.summary,
                "command": command_line(),
                "environment": {k: v for k, v in environment.items() if k != "cache"},
                "ramp": asdict(self.ramp),
                "runs": [curves.to_json() for curves in (*self.full, self.half)],
            },
        )

    def write_recipe(self, path: Path, *, untrusted: bool) -> None:
        """Writes the recipe with a 1cycle to the rate, and the evidence as its comment.

        Raises `UsageError` where there is no rate, or one that is not trusted unless `untrusted`.
        """
        answer, cure = self.answer, self.answer.advice(self.ramp)
        reasons = "; ".join(answer.reasons)
        if answer.max_lr is None:
            raise UsageError(f"--apply: no rate was found ({reasons}). {cure}")
        if not answer.trusted and not untrusted:
            raise UsageError(
                f"--apply: {answer.max_lr:.3g} is not trusted ({reasons}). {cure} "
                "Or write it anyway with --apply-untrusted."
            )
        recipe = lr_range.with_one_cycle(self.recipe, answer.max_lr, self.ramp.momentum)
        trust = "trusted" if answer.trusted else "NOT TRUSTED, applied anyway"
        source = f"A 1cycle up to {answer.max_lr:.3g}, by rescue lr-range-test"
        write_text(path, f"# {source}. {trust}: {reasons}.\n{recipe.to_yaml()}")

    @property
    def sentences(self) -> list[str]:
        """The answer in the paper's terms, its evidence, and what fastai's finder would suggest."""
        answer = self.answer
        lines = _describe_rates(answer, self.ramp)
        for curves, each in zip(self.full, self.estimates, strict=True):
            lines.append(f"seed {curves.seed}: {'; '.join(each.evidence)}")
            for low, high in each.overfitting:
                lines.append(
                    f"seed {curves.seed}: signs of overfitting from {low:.3g} to {high:.3g}"
                )
        trust = "trusted" if answer.trusted else "not trusted"
        lines.append(f"{trust}: {'; '.join(answer.reasons)}")
        if not answer.trusted:
            lines.append(answer.advice(self.ramp))
        fastai = self.estimates[0].suggestions
        of = f" of seed {self.full[0].seed}" if len(self.full) > 1 else ""
        alone = "" if answer.trusted else " alone, which these runs do not confirm"
        shown = ", ".join(
            f"{SUGGESTIONS[k]}: {'-' if v is None else f'{v:.3g}'}" for k, v in fastai.items()
        )
        lines.append(f"fastai's suggestions, from the training loss{of}{alone}: {shown}")
        return lines


def _describe_rates(answer: RangeTestResult, ramp: Ramp) -> list[str]:
    """The rates, or why there is none."""
    if answer.max_lr is None or answer.min_lr is None:
        upto = f"up to {ramp.end:.3g}"
        words = {
            "falling": f"no turn found {upto}: the largest stable rate lies beyond",
            "flat": f"no turn found {upto}: flat at the end",
            "noisy": "no rate found: it learned, but noise hides any turn",
            "nothing learned": f"no rate found: nothing was learned from {ramp.start:.3g} on",
            "died": "no rate found: a run lost all progress before it had learned enough to judge",
            "too few points": "no rate found: too few points on either side of a turn",
        }
        lines = [words[answer.verdict]]
        if answer.bounded_above is not None:
            lines.append(f"the largest stable rate is below {answer.bounded_above:.3g}")
        return lines
    return [
        f"max_lr {answer.max_lr:.3g}, the largest stable rate"
        + ("" if answer.trusted else " by a turn that is not trusted"),
        f"min_lr {answer.min_lr:.3g}, a tenth (one cycle: {answer.max_lr / 20:.3g} to "
        f"{answer.max_lr / 10:.3g}; many cycles: {answer.max_lr / 4:.3g} to "
        f"{answer.max_lr / 3:.3g})",
    ]
