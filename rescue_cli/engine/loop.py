"""The loop around the step: evaluate, save, stop, go on; from any checkpoint onwards."""

import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, nn

from rescue_cli import distributed
from rescue_cli.batch import Measurement, to_host
from rescue_cli.engine import checkpoint
from rescue_cli.engine.evaluate import EvalSet, Evaluates, Measured
from rescue_cli.engine.recorder import Recorder
from rescue_cli.engine.signals import Agreement, Stop
from rescue_cli.engine.step import Step
from rescue_cli.engine.timing import Plan
from rescue_cli.errors import DataError, DivergedError, StoppedError
from rescue_cli.rundir import RunDirectory, finite


@dataclass(frozen=True)
class Progress:
    """Where a run is; plain numbers, saved with every checkpoint."""

    step: int = 0
    evaluated: int = -1  # the last step whose evaluation is on record
    logged: int = 0
    seconds_train: float = 0.0
    seconds_eval: float = 0.0
    best: dict[str, float] = field(default_factory=dict)  # metric and step; by the test set


@dataclass
class Loop:
    """Everything that one run needs; `run` trains from the checkpoint, if any, to the end."""

    plan: Plan
    step: Step
    model: nn.Module  # not wrapped: its state is what is saved
    evaluator: Evaluates
    test_sets: Mapping[str, EvalSet]
    directory: RunDirectory
    recorder: Recorder
    save_minutes: float

    def __post_init__(self) -> None:
        self.progress = Progress()
        self.latest: Mapping[str, Mapping[Measurement, Measured]] = {}
        self.clock = time.perf_counter()
        self.waited = 0.0
        self.mark = (0, 0.0)  # step and seconds of training at the last line of metrics

    def run(self) -> Progress:
        """Trains. Raises `StoppedError` on a signal, `DivergedError` on a loss not finite."""
        plan = self.plan
        with Stop() as stop:
            agreement = Agreement(stop, self.step.device, self.save_minutes * 60)
            self._resume()
            agreement.begin(self.progress.step)
            self.step.feed.start(self.progress.step)
            self.clock = time.perf_counter()
            self.mark = (self.progress.step, self.progress.seconds_train)
            while self.progress.step < plan.steps:
                self._evaluate_if_due(agreement)
                self.step(self.progress.step)
                self.progress = replace(self.progress, step=self.progress.step + 1)
                self._log_if_due()
                code, save = agreement.reach(self.progress.step)
                if code:
                    self._stop(code)
                if save or plan.saves(self.progress.step):
                    self._evaluate_if_due(agreement)
                    self._save()
                    agreement.saved()
            self._evaluate_if_due(agreement)
            if not self.latest:  # killed after the last checkpoint and before the result
                self._measure(agreement)
                self._check_evaluation()
            self._save()
            return self.progress

    def _stop(self, code: int) -> None:
        self._save()
        raise StoppedError(
            f"stopped at step {self.progress.step} of {self.plan.steps}; the checkpoint is saved. "
            f"Go on with: rescue train --resume --out {self.directory.path}",
            code,
        )

    # --- evaluation ---

    def _evaluate_if_due(self, agreement: Agreement) -> None:
        step = self.progress.step
        if not self.plan.evaluates(step) or self.progress.evaluated == step:
            return
        self._count_seconds()
        self._measure(agreement)
        self._check_evaluation()
        self._record_evaluation(time.perf_counter() - self.clock)
        self.clock = time.perf_counter()  # writing the best weights counts as neither

    def _measure(self, agreement: Agreement) -> None:
        def between() -> None:
            if code := agreement.within_evaluation():
                now = time.perf_counter()
                spent = self.progress.seconds_eval + now - self.clock
                self.progress, self.clock = replace(self.progress, seconds_eval=spent), now
                self._stop(code)

        self.latest = self.evaluator.sets(self.step.average.model, self.test_sets, between)

    def _check_evaluation(self) -> None:
        """Raises `DivergedError` where the trained network's loss on its test set is not finite.

        Before the last step it may come back, as where float16 overflows early in training.
        """
        step = self.progress.step
        name, measured = next(iter(self.latest.items()))
        loss = next(iter(measured.values())).loss
        if loss is None or math.isfinite(loss):
            return
        if step == self.plan.steps:
            raise DivergedError(
                f"the loss on {name} is {loss} after the last step, {step}. Lower optim.lr, or "
                "lengthen the warm-up. The last good checkpoint stands."
            )
        self.recorder.say(f"warning: the loss on {name} is {loss} at step {step}")

    def _record_evaluation(self, seconds: float) -> None:
        step, epoch = self.progress.step, self.plan.epoch(self.progress.step)
        for name, measured in self.latest.items():
            for measurement, found in measured.items():
                values = {
                    "epoch": epoch,
                    "set": name,
                    **measurement._asdict(),
                    **found.metrics,
                    "loss": finite(found.loss),
                    "count": found.count,
                    "seconds": seconds,
                }
                self.recorder.add("eval", step, values)
                self.recorder.say(f"epoch {epoch:g}  {name} {measurement}  {found}")
        main = next(iter(next(iter(self.latest.values())).values())).metrics
        name, value = next(iter(main.items()))
        better = value > self.progress.best.get(name, -1.0)
        best = {name: value, "step": step} if better else self.progress.best
        self.progress = replace(
            self.progress,
            evaluated=step,
            best=best,
            seconds_eval=self.progress.seconds_eval + seconds,
        )
        if better and distributed.is_first():
            weights = self.step.average.model.state_dict()
            checkpoint.save(self.directory.best, {"model": weights, **best})

    # --- metrics ---

    def _log_if_due(self) -> None:
        step = self.progress.step
        if not self.plan.logs(step):
            return
        self._count_seconds()
        steps = step - self.progress.logged
        loss = self._mean_loss(steps)
        self.step.loss_sum.zero_()
        waited, self.waited = self.step.feed.waited - self.waited, self.step.feed.waited
        marked_step, marked_seconds = self.mark
        self.mark = (step, self.progress.seconds_train)
        seconds = max(self.progress.seconds_train - marked_seconds, 1e-9)
        rates = self.step.optimizers.set_rates(step - 1)
        values = {
            "epoch": self.plan.epoch(step),
            "loss": loss,
            "lr": rates.lr,
            "momentum": rates.momentum,
            "seconds": self.progress.seconds_train,
            "images_per_second": (step - marked_step) * self.plan.batch_size / seconds,
            "waiting": waited / seconds,
        }
        self.progress = replace(self.progress, logged=step)
        self.recorder.add("train", step, values)
        self.recorder.show(
            step,
            f"epoch {values['epoch']:.1f}  loss {loss:.3f}  "
            f"{values['images_per_second']:.0f} images/s  wait {100 * waited / seconds:.0f} %",
        )

    def _mean_loss(self, steps: int) -> float:
        """The mean loss since the last line of metrics; raises `DivergedError` if not finite."""
        total = distributed.sum_over_ranks(self.step.loss_sum.clone())
        (loss,) = to_host(total / (distributed.world_size() * max(steps, 1)))
        if steps and self._is_beyond(loss):
            raise DivergedError(
                f"the loss is {loss:.4g} between steps {self.progress.logged} and "
                f"{self.progress.step}, above train.stop_above={self.plan.stop_above:g} times the "
                f"first ({self.recorder.first_loss:.4g}). Lower optim.lr."
            )
        if not math.isfinite(loss):
            rates = self.step.optimizers.set_rates(self.progress.step - 1)
            known = self.recorder.last_loss
            last = (
                f"the last finite loss was {known:.4g}"
                if known is not None
                else ("no loss before it is on record")
            )
            raise DivergedError(
                f"the loss is {loss} between steps {self.progress.logged} and {self.progress.step} "
                f"(learning rate {rates.lr:.4g}); {last}. "
                "Lower optim.lr, lengthen the warm-up, or set optim.max_grad_norm. "
                "The last good checkpoint stands."
            )
        return loss

    def _is_beyond(self, loss: float) -> bool:
        """Whether a finite loss is so many times the first on record that the run is given up."""
        first, limit = self.recorder.first_loss, self.plan.stop_above
        return limit is not None and first is not None and limit * first < loss < math.inf

    def _count_seconds(self) -> None:
        now = time.perf_counter()
        seconds = self.progress.seconds_train + now - self.clock
        self.progress = replace(self.progress, seconds_train=seconds)
        self.clock = now

    # --- checkpoints ---

    def _save(self) -> None:
        """Writes the state, but never one whose loss or weights are not finite."""
        self._count_seconds()
        self._mean_loss(self.progress.step - self.progress.logged)
        weights = [p.detach() for p in self.model.parameters()]
        (norm,) = to_host(torch.stack(torch._foreach_norm(weights)).sum())
        if not math.isfinite(norm):
            raise DivergedError(
                f"a weight is not finite after step {self.progress.step}. Lower optim.lr. "
                "The last good checkpoint stands."
            )
        feed = self.step.feed
        replaced, corrupt = distributed.union(feed.replaced, feed.corrupt)
        loss_sum = distributed.sum_over_ranks(self.step.loss_sum.clone())
        if distributed.is_first():
            state = self._state(loss_sum / distributed.world_size(), replaced, corrupt)
            checkpoint.save(self.directory.last, state)
            if self.progress.step in self.plan.snapshots:
                checkpoint.save(self.directory.snapshot(self.progress.step), state)
        self.clock = time.perf_counter()

    def _state(self, loss_sum: Tensor, replaced: int, corrupt: Sequence[str]) -> dict[str, Any]:
        return {
            "progress": asdict(self.progress),
            "model": self.model.state_dict(),
            "updates": self.step.optimizers.state_dict(),
            "average": self.step.average.state_dict(),
            "selection": self.step.select.state_dict(),
            "loss_sum": loss_sum,
            "replaced": replaced,
            "corrupt": list(corrupt),
        }

    def _resume(self) -> None:
        if self.directory.last.exists():
            state = checkpoint.load(self.directory.last, self.step.device)
            self.progress = Progress(**state["progress"])
            if self.progress.step > self.plan.steps:
                raise DataError(
                    f"{self.directory.last}: is of step {self.progress.step}, and this run has "
                    f"{self.plan.steps}: there were more training images when it began. Put them "
                    "back, or begin a new run with another --out."
                )
            self.model.load_state_dict(state["model"])
            self.step.optimizers.load_state_dict(state["updates"])
            self.step.average.load_state_dict(state["average"])
            self.step.select.load_state_dict(state["selection"])
            self.step.loss_sum.copy_(state["loss_sum"])
            if distributed.is_first():
                self.step.feed.replaced = state["replaced"]
                self.step.feed.corrupt = list(state["corrupt"])
            self.recorder.say(f"resumed at step {self.progress.step} of {self.plan.steps}")
        self.recorder.open(self.progress.step, self.progress.evaluated)
        distributed.barrier()
