"""Writes a trained network in other programs' formats, and keeps what its own runtime confirms."""

import contextlib
import json
import os
import shutil
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch

from rescue_cli.build.weights import describe_preprocessing
from rescue_cli.errors import RescueError, UsageError
from rescue_cli.export import check, model_card, timm_folder
from rescue_cli.export.comparison import Comparison
from rescue_cli.export.formats import Exportable
from rescue_cli.export.images import TestSet, load_test_images
from rescue_cli.export.network import interface
from rescue_cli.export.own_process import FORMATS, Job, load_network
from rescue_cli.inference import Classifier
from rescue_cli.recipe.schema import lookup
from rescue_cli.rundir import RunDirectory
from rescue_cli.runs.environment import default_workers
from rescue_cli.sections.data import channels_of, normalisation
from rescue_cli.sections.tta import TTAS


@dataclass(frozen=True)
class Exported:
    """A written network; `fault` says why it is not to be used, where it is not.

    `takes` and `gives` are None where the file was written before.
    """

    format: str
    folder: Path | None
    comparison: Comparison | None
    fault: str | None
    takes: str | None = None
    gives: str | None = None

    def lines(self) -> list[str]:
        """For people: what was compared, and what the file takes and gives."""
        if self.comparison is None:
            return [f"{self.format}: {self.fault}"]
        first, *more = self.comparison.sentences()
        if self.takes is not None:
            more.append(f"takes {self.takes}; gives {self.gives}")
        if self.fault is not None:
            more.append(f"failed: {self.fault}")
        return [f"{self.format}: {first}", *(f"  {line}" for line in more)]

    def as_json(self) -> dict[str, Any]:
        """For `--json`."""
        return {
            "format": self.format,
            "folder": None if self.folder is None else str(self.folder),
            "passed": self.fault is None,
            "fault": self.fault,
            "takes": self.takes,
            "gives": self.gives,
            **({} if self.comparison is None else self.comparison.as_json()),
        }


@dataclass(frozen=True)
class _Own:
    """A trained network, the overrides that it was loaded with, and the test images."""

    classifier: Classifier
    changes: Sequence[str]
    tests: TestSet


@dataclass(frozen=True)
class Request:
    """What is to be exported, from what, and where to.

    `given` is a run, a weights file or `timm:NAME`, `changes` are overrides; `out` has a folder for
    each format. Of `subset` test images; None: all.
    """

    given: str
    changes: Sequence[str]
    model: str | None
    out: Path
    from_pixels: bool
    subset: int | None
    workers: int | None
    progress: bool
    note: Callable[[str], None]

    @property
    def directory(self) -> Path | None:
        """The run's directory, where it is one."""
        path = Path(self.given).expanduser()
        return path if path.is_dir() and RunDirectory(path).recipe.is_file() else None

    @property
    def cache(self) -> Path:
        """The cache of the run, or one of the exports."""
        parent = self.out if self.directory is None else self.directory.parent
        return Path(os.environ.get("RESCUE_CACHE", parent / ".cache"))


def run(request: Request, formats: Sequence[str]) -> list[Exported]:
    """Writes each format to `out`/FORMAT and compares it with the run's own evaluation.

    A folder of that name is there only if its file passed; one that did not is kept as
    FORMAT-failed. Raises `UsageError`, `DataError`.
    """
    _check_formats(formats)
    for name in formats:
        if (folder := request.out / name).exists():
            raise UsageError(
                f"{folder}: exists already. Remove it, use another --out, or compare it again with "
                "--check-only."
            )
    return [_export(request, name, own) for name, own in _own(request, formats)]


def check_again(request: Request, formats: Sequence[str]) -> list[Exported]:
    """Compares what is in `out`/FORMAT, and writes nothing. Raises `UsageError`, `DataError`."""
    _check_formats(formats)
    for name in formats:
        if not (folder := request.out / name).is_dir():
            raise UsageError(f"{folder}: there is no such folder. Leave --check-only out.")
    checked = []
    for name, own in _own(request, formats):
        folder = request.out / name
        one = _compare(request, name, folder, own)
        if one.fault is None and (changed := check.changed_files(folder)):
            fault = f"{changed[0]} is not the file that was compared when it was written (SHA-256)"
            one = replace(one, fault=fault)
        checked.append(one)
    return checked


def raise_fault(exported: Sequence[Exported]) -> None:
    """Raises `RescueError` where one did not pass."""
    for one in exported:
        if one.fault is not None:
            kept = "" if one.folder is None else f" It is in {one.folder}; do not use it."
            raise RescueError(f"{one.format}: {one.fault}.{kept}")


def _check_formats(formats: Sequence[str]) -> None:
    """Raises `UsageError` for formats that cannot be written here."""
    for name in formats:
        missing = [p for p in lookup("--to", name, FORMATS).packages if not find_spec(p)]
        if missing:
            raise UsageError(
                f"--to {name}: needs the package {missing[0]}. Install it: pip install "
                "'rescue[export]'"
            )


def _own(request: Request, formats: Sequence[str]) -> Iterator[tuple[str, _Own]]:
    """Each format with the network that its file has to repeat."""
    own: dict[str, _Own] = {}  # by test-time augmentation
    loaded = load_network(request.given, request.changes, request.model)
    if "timm" in formats:
        timm_folder.check(loaded.recipe)
    (tta, *_) = loaded.recipe.eval.ttas
    for line in loaded.notes:
        request.note(line)
    if tta != "none" and any(not FORMATS[name].is_graph for name in formats):
        request.note(f"timm has no test-time augmentation: compared without {tta}")
    if TTAS[tta].share < 1 and any(FORMATS[name].is_graph for name in formats):
        request.note(f"every image is augmented, where an evaluation does {TTAS[tta].share:g}")
    for name in formats:
        key = tta if FORMATS[name].is_graph else "none"
        if key not in own:
            changes = [*request.changes, *([] if key == tta else ["eval.tta=none"])]
            network = loaded if key == tta else load_network(request.given, changes, request.model)
            own[key] = _Own(network, changes, _test_images(request, network))
        yield name, own[key]


def _test_images(request: Request, classifier: Classifier) -> TestSet:
    tests = load_test_images(classifier.recipe, request.cache, _workers(request), request.subset)
    for line in tests.notes:
        request.note(line)
    return tests


def _workers(request: Request) -> int:
    cores = len(os.sched_getaffinity(0))
    return default_workers(cores, "cpu") if request.workers is None else request.workers


def _export(request: Request, name: str, own: _Own) -> Exported:
    """Writes a format under another name first, and gives it its own when it has passed."""
    folder, failed = request.out / name, request.out / f"{name}-failed"
    partial = request.out / f".{name}.partial"
    network = exportable(own.classifier, from_pixels=request.from_pixels)
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    try:
        request.note(f"{name}: writing")
        try:
            FORMATS[name].write(network, partial)
        except Exception as error:  # torch's for what it cannot trace have no common base
            reason = " ".join(str(error).split())[:300] or type(error).__name__
            fault = f"{own.classifier.recipe.model.name} could not be written: {reason}"
            return Exported(name, None, None, fault)
        one = _compare(request, name, partial, own)
        if one.comparison is not None:
            if name == "timm":
                model_card.write_model_card(
                    partial, network, one.comparison, request.directory, own.tests.name
                )
            check.write_record(partial, name, one.comparison, own.tests.name)
        target = folder if one.fault is None else failed
        shutil.rmtree(failed, ignore_errors=True)  # of an earlier attempt
        os.replace(partial, target)
        takes, gives = network.interface.describe()
        return replace(one, folder=target, takes=takes, gives=gives)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
        with contextlib.suppress(OSError):  # where it holds nothing
            request.out.rmdir()


def exportable(classifier: Classifier, *, from_pixels: bool) -> Exportable:
    """The classifier as formats write it: in the layout of other programs, without gradients."""
    recipe = classifier.recipe
    network = classifier.network.to(memory_format=torch.contiguous_format).requires_grad_(False)
    mean, std = normalisation(recipe.data.name, recipe.data)
    return Exportable(
        network=network,
        tta=TTAS[recipe.eval.ttas[0]].weights,
        recipe=recipe,
        classes=classifier.classes,
        interface=interface(
            channels_of(recipe.data.name, recipe.data),
            recipe.eval.sizes[0],
            from_pixels=from_pixels,
            any_size=recipe.is_annotated,
        ),
        normalisation=(list(mean), list(std)),
        metadata={
            "architecture": recipe.model.name,
            "classes": json.dumps(classifier.classes),
            **describe_preprocessing(recipe),
        },
    )


def _compare(request: Request, name: str, folder: Path, own: _Own) -> Exported:
    """What its own program, in a fresh process, computes from the folder."""
    request.note(f"{name}: comparing {len(own.tests.order):,} images of {own.tests.name}")
    job = Job(
        format=name,
        folder=str(folder.resolve()),
        given=request.given,
        changes=own.changes,
        model=request.model,
        cache=str(request.cache),
        workers=_workers(request),
        subset=request.subset,
    )
    try:
        comparison = check.run_in_fresh_process(job, own.tests.rounds, progress=request.progress)
    except RescueError as error:
        return Exported(name, folder, None, str(error))
    return Exported(name, folder, comparison, comparison.fault)
