"""The training loop around the step: evaluates, logs, saves, stops, and resumes."""

import copy
import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, nn

from rescue_cli import distributed
from rescue_cli.batch import Measurement, to_host
from rescue_cli.engine import checkpoint
from rescue_cli.engine.evaluate import EvalResult, EvalSet, Evaluator
from rescue_cli.engine.recorder import Recorder
from rescue_cli.engine.signals import Agreement, Stop
from rescue_cli.engine.step import Step
from rescue_cli.errors import DataError, DivergedError, StoppedError
from rescue_cli.rundir import RunDirectory

WARM_UP_STEPS = 3


@dataclass(frozen=True)
class Timing:
    """At which steps a run evaluates, saves and logs; `eval_every` and `save_every` are in epochs,
    and may be fractions of one.
    """

    steps: int
    steps_per_epoch: int
    batch_size: int
    eval_every: float
    save_every: float
    log_every: int
    stop_above: float | None
    snapshots: frozenset[int]

    def epoch(self, step: int) -> float:
        return step / self.steps_per_epoch

    def evaluates(self, step: int) -> bool:
        return step == self.steps or self._passes(step, self.eval_every)

    def saves(self, step: int) -> bool:
        """Whether a checkpoint is due; not at the last step, where the run saves in any case."""
        return step < self.steps and (step in self.snapshots or self._passes(step, self.save_every))

    def logs(self, step: int) -> bool:
        """At every epoch's end, and every `log_every` steps within an epoch."""
        return step == self.steps or step % self.steps_per_epoch % self.log_every == 0

    def _passes(self, step: int, epochs: float) -> bool:
        """Whether a multiple of `epochs` lies after the step before and not after this one."""
        steps = epochs * self.steps_per_epoch
        return step > 0 and math.floor(step / steps + 1e-9) > math.floor((step - 1) / steps + 1e-9)


@dataclass(frozen=True)
class Progress:
    """How far a run is; plain numbers, saved with every checkpoint."""

    step: int = 0
    evaluated: int = -1  # the last step whose evaluation is in the metrics
    logged: int = 0
    seconds_train: float = 0.0
    seconds_eval: float = 0.0
    best: dict[str, float] = field(default_factory=dict)  # metric and step; by the test set

    @classmethod
    def of(cls, saved: Mapping[str, Any]) -> "Progress":
        """As it was saved; raises `TypeError` or `ValueError` where it cannot have been."""
        progress = cls(**saved)
        for name, value in asdict(cls()).items():
            given = getattr(progress, name)
            if not isinstance(given, (int, float) if isinstance(value, float) else type(value)):
                raise TypeError(f"{name} is {given!r}")
        if not all(isinstance(value, int | float) for value in progress.best.values()):
            raise TypeError(f"best is {progress.best!r}")
        step, evaluated, logged = progress.step, progress.evaluated, progress.logged
        if not (-1 <= evaluated <= step and 0 <= logged <= step):
            raise ValueError(f"it is at step {step}, evaluated at {evaluated}, logged at {logged}")
        return progress


@dataclass
class Loop:
    """Everything that one run needs; `run` trains from its checkpoint, if any, to the end."""

    timing: Timing
    step: Step
    model: nn.Module  # not wrapped: its state is what is saved
    evaluator: Evaluator
    test_sets: Mapping[str, EvalSet]
    directory: RunDirectory
    recorder: Recorder
    save_minutes: float
    warms_up: bool = False  # whether steps that are undone come before the clock starts
    after_step: Callable[[], None] = lambda: None

    def __post_init__(self) -> None:
        self.seconds_warmup = 0.0
        self.progress = Progress()
        self.latest: Mapping[str, Mapping[Measurement, EvalResult]] = {}
        self.clock = time.perf_counter()  # since when seconds are not counted yet
        self.waited = 0.0
        self.last_line = (0, 0.0)  # step and training seconds of the last line of metrics

    def run(self) -> Progress:
        """Trains to the last step. Raises `StoppedError` on a signal, `DivergedError` on a loss
        that is not finite.
        """
        with Stop(self.directory) as stop:
            if self.warms_up:
                self._warm_up()
            self._resume()
            save_seconds, step = self.save_minutes * 60, self.progress.step
            agreement = Agreement(stop, self.step.device, save_seconds, step)
            self.step.feed.start(self.progress.step)
            # Only now: reading the checkpoint and starting the workers is not training
            self.clock = time.perf_counter()
            self.last_line = (self.progress.step, self.progress.seconds_train)
            while self.progress.step < self.timing.steps:
                # At the start of a step rather than at the end of the one before, so that a run
                # which was stopped in an evaluation resumes with it
                self._evaluate_if_due(agreement)
                self.step(self.progress.step)
                self.progress = replace(self.progress, step=self.progress.step + 1)
                self.after_step()
                self.recorder.count_step(self.progress.step, self.timing.epoch(self.progress.step))
                self._log_if_due()
                code, save = agreement.decide(self.progress.step)
                if code:
                    self._stop(code)  # at once: an evaluation that is due follows the resume
                if save or self.timing.saves(self.progress.step):
                    self._evaluate_if_due(agreement)  # so that the checkpoint has its result
                    self._save()
                    agreement.restart_save_clock()
            self._evaluate_if_due(agreement)
            if not self.latest:  # killed after the last checkpoint and before the result
                self._evaluate(agreement)
                self._check_evaluation()
            self._save()
            return self.progress

    def _stop(self, code: int) -> None:
        self._save()
        raise StoppedError(
            f"stopped at step {self.progress.step} of {self.timing.steps}; the checkpoint is "
            f"saved. Resume with: rescue train --resume --out {self.directory.path}",
            code,
        )

    # --- evaluation ---

    def _evaluate_if_due(self, agreement: Agreement) -> None:
        step = self.progress.step
        if not self.timing.evaluates(step) or self.progress.evaluated == step:
            return
        self._count_seconds()
        self._evaluate(agreement)
        self._check_evaluation()
        self._record_evaluation(time.perf_counter() - self.clock)
        self.clock = time.perf_counter()  # writing the best weights counts as neither

    def _evaluate(self, agreement: Agreement) -> None:
        """Evaluates the averaged model on all test sets; stops between batches on a signal."""

        def stop_if_signalled() -> None:
            if code := agreement.poll_signal():
                now = time.perf_counter()
                spent = self.progress.seconds_eval + now - self.clock
                self.progress, self.clock = replace(self.progress, seconds_eval=spent), now
                self._stop(code)

        self.latest = self.evaluator(
            self.step.average.model,
            self.test_sets,
            stop_if_signalled,
            in_training=self.progress.step < self.timing.steps,
        )

    def _check_evaluation(self) -> None:
        """Raises `DivergedError` where the trained network's loss on its test set is not finite.

        Before the last step that is only a warning: the loss may recover, as where float16
        overflows early in training.
        """
        step = self.progress.step
        name, results = next(iter(self.latest.items()))
        loss = next(iter(results.values())).loss
        if loss is None or math.isfinite(loss):
            return
        if step == self.timing.steps:
            raise DivergedError(
                f"the loss on {name} is {loss} after the last step, {step}. Lower optim.lr, or "
                "lengthen the warm-up. The last good checkpoint is kept."
            )
        self.recorder.log(f"warning: the loss on {name} is {loss} at step {step}")

    def _record_evaluation(self, seconds: float) -> None:
        """Adds the results to the metrics, and keeps the weights of the best of them."""
        step, epoch = self.progress.step, self.timing.epoch(self.progress.step)
        for name, results in self.latest.items():
            for measurement, result in results.items():
                self.recorder.add_evaluation(step, epoch, name, measurement, result, seconds)
        of_first_set = next(iter(self.latest.values()))
        tta = self.evaluator.while_training  # what every evaluation of the run has
        main = next(result for measured, result in of_first_set.items() if measured.tta == tta)
        metric, value = next(iter(main.metrics.items()))
        is_best = value > self.progress.best.get(metric, -1.0)
        best = {metric: value, "step": step} if is_best else self.progress.best
        self.progress = replace(
            self.progress,
            evaluated=step,
            best=best,
            seconds_eval=self.progress.seconds_eval + seconds,
        )
        if is_best and distributed.is_first():
            weights = self.step.average.model.state_dict()
            checkpoint.save(self.directory.best, {"model": weights, **best})

    # --- metrics ---

    def _log_if_due(self) -> None:
        step = self.progress.step
        if not self.timing.logs(step):
            return
        self._count_seconds()
        loss = self._mean_loss(step - self.progress.logged)
        self.step.loss_sum.zero_()
        waited, self.waited = self.step.feed.waited - self.waited, self.step.feed.waited
        last_step, last_seconds = self.last_line
        self.last_line = (step, self.progress.seconds_train)
        seconds = max(self.progress.seconds_train - last_seconds, 1e-9)
        rates = self.step.optimizers.set_rates(step - 1)
        values = {
            "epoch": self.timing.epoch(step),
            "loss": loss,
            "lr": rates.lr,
            "momentum": rates.momentum,
            "seconds": self.progress.seconds_train,
            "images_per_second": (step - last_step) * self.timing.batch_size / seconds,
            "waiting": waited / seconds,
        }
        self.progress = replace(self.progress, logged=step)
        self.recorder.add_metrics("train", step, values)
        self.recorder.show_progress(
            f"epoch {values['epoch']:.1f}",
            f"loss {loss:.3f}",
            f"{values['images_per_second']:.0f} images/s",
            f"wait {100 * waited / seconds:.0f} %",
        )

    def _mean_loss(self, steps: int) -> float:
        """The mean loss since the last line of metrics; raises `DivergedError` if not finite."""
        total = distributed.sum_over_ranks(self.step.loss_sum.clone())
        (loss,) = to_host(total / (distributed.world_size() * max(steps, 1)))
        between = f"between steps {self.progress.logged} and {self.progress.step}"
        first, limit = self.recorder.first_loss, self.timing.stop_above
        if steps and limit is not None and first is not None and limit * first < loss < math.inf:
            raise DivergedError(
                f"the loss is {loss:.4g} {between}, above train.stop_above={limit:g} times the "
                f"first ({first:.4g}). Lower optim.lr."
            )
        if not math.isfinite(loss):
            rates = self.step.optimizers.set_rates(self.progress.step - 1)
            last = self.recorder.last_loss
            before = (
                "no loss was logged before"
                if last is None
                else (f"the last finite loss was {last:.4g}")
            )
            raise DivergedError(
                f"the loss is {loss} {between} (learning rate {rates.lr:.4g}); {before}. "
                "Lower optim.lr, lengthen the warm-up, or set optim.max_grad_norm. "
                "The last good checkpoint is kept."
            )
        return loss

    def _count_seconds(self) -> None:
        """Counts the seconds since the last call as training."""
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
                "The last good checkpoint is kept."
            )
        # What each process counts for itself; the first saves it for all
        feed = self.step.feed
        replaced, corrupt = distributed.merge_over_ranks(feed.replaced, feed.corrupt)
        loss_sum = distributed.sum_over_ranks(self.step.loss_sum.clone())
        if distributed.is_first():
            state = self._state(loss_sum / distributed.world_size(), replaced, corrupt)
            checkpoint.save(self.directory.last, state)
            if self.progress.step in self.timing.snapshots:
                checkpoint.save(self.directory.snapshot(self.progress.step), state)
        self.clock = time.perf_counter()  # saving does not count as training

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

    def _load(self, state: Mapping[str, Any]) -> None:
        self.model.load_state_dict(state["model"])
        self.step.optimizers.load_state_dict(state["updates"])
        self.step.average.load_state_dict(state["average"])
        self.step.select.load_state_dict(state["selection"])
        self.step.loss_sum.copy_(state["loss_sum"])

    def _warm_up(self) -> None:
        """Takes a few steps and undoes them: compilation, cuDNN's search and the loading of
        kernels then take place before training, and its seconds are those of its steps.
        """
        started = time.perf_counter()
        feed = self.step.feed
        before = copy.deepcopy(self._state(self.step.loss_sum, 0, ()))
        counts = feed.waited, feed.replaced
        feed.start(0)
        for step in range(min(WARM_UP_STEPS, self.timing.steps)):
            self.step(step)
        self._load(before)
        feed.waited, feed.replaced = counts
        to_host(self.step.loss_sum)  # waits for the device
        self.seconds_warmup = time.perf_counter() - started

    def _resume(self) -> None:
        """Loads the last checkpoint, if there is one, and opens the metrics at its step."""
        if self.directory.last.exists():
            state = checkpoint.load(self.directory.last, self.step.device)
            with checkpoint.fitting(self.directory.last):
                self.progress = Progress.of(state["progress"])
            if self.progress.step > self.timing.steps:
                raise DataError(
                    f"{self.directory.last}: is at step {self.progress.step}, and this run has "
                    f"{self.timing.steps} steps: it had more training images when it started. Put "
                    "them back, or start a new run with another --out."
                )
            with checkpoint.fitting(self.directory.last):
                self._load(state)
                replaced, corrupt = int(state["replaced"]), [str(f) for f in state["corrupt"]]
            if distributed.is_first():
                self.step.feed.replaced, self.step.feed.corrupt = replaced, corrupt
            self.recorder.log(f"resumed at step {self.progress.step} of {self.timing.steps}")
        self.recorder.open_metrics(self.progress.step, self.progress.evaluated)
        distributed.barrier()
