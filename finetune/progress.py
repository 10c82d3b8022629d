"""What a person sees while a model trains: a bar with loss, speed and time left; and the record of the losses."""

import math
import sys
import time
from collections.abc import Mapping, Sequence
from types import TracebackType
from typing import Any

from export.errors import TrainingError
from finetune.methods import LossPoint

_PLAIN_LINES = 10
_SECONDS_BETWEEN_LINES = 60.0


def loss_points(log_history: Sequence[Mapping[str, float]]) -> tuple[LossPoint, ...]:
    """The losses in what a trainer logged, in order, those before a checkpoint it went on from included.

    TRL counts tokens from 0 again after a checkpoint; here the count goes on.
    """
    points: list[LossPoint] = []
    counted, earlier = 0, 0
    for values in log_history:
        if "loss" not in values and "eval_loss" not in values:
            continue
        tokens = int(values.get("num_tokens", values.get("eval_num_tokens", 0)))
        earlier += counted if tokens < counted else 0
        counted = tokens
        points.append(
            LossPoint(
                step=int(values["step"]),
                tokens=earlier + tokens,
                loss=values.get("loss"),
                valid_loss=values.get("eval_loss"),
            )
        )
    return tuple(points)


class TrainingProgress:
    """A progress bar on a terminal, or about ten plain lines in a log file; stops a training that went wrong."""

    def __init__(self, steps: int) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

        self._points: tuple[LossPoint, ...] = ()
        self._steps = steps
        self._started = self._last_line = time.monotonic()
        self._plain = not sys.stderr.isatty()
        self._bar = Progress(
            TextColumn("train"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[numbers]}"),
            TimeRemainingColumn(),
            console=Console(stderr=True),
            disable=self._plain,
        )
        self._task = self._bar.add_task("train", total=steps, numbers="")

    def __enter__(self) -> "TrainingProgress":
        self._started = time.monotonic()
        self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._bar.stop()

    def logged(self, step: int, values: dict[str, float]) -> None:
        """Takes what the trainer reports after a step. Raises TrainingError when a loss is not finite."""
        found = loss_points([{**values, "step": step}])
        if not found:
            return
        (point,) = found
        for name, value in (("loss", point.loss), ("valid loss", point.valid_loss)):
            if value is not None and not math.isfinite(value):
                raise TrainingError(
                    f"the {name} became {value} at step {step} of {self._steps}. Training was stopped and nothing was "
                    "saved. Lower train.learning_rate, or set model.dtype: float32 if it was float16."
                )
        self._points = (*self._points, point)
        self._show(point)

    def callback(self) -> Any:
        """The trainer's callback that feeds this object."""
        from transformers import TrainerCallback

        progress = self

        class _Feed(TrainerCallback):
            def on_log(
                self, args: Any, state: Any, control: Any, logs: dict[str, float] | None = None, **more: Any
            ) -> None:
                progress.logged(int(state.global_step), logs or {})

        return _Feed()

    def _show(self, point: LossPoint) -> None:
        losses = [("loss", self._last("loss")), ("valid", self._last("valid_loss"))]
        shown = "  ".join(f"{name} {value:.3f}" for name, value in losses if value is not None)
        speed = point.tokens / max(1e-9, time.monotonic() - self._started)
        numbers = f"{shown}  {speed:,.0f} tokens/s"
        self._bar.update(self._task, completed=point.step, numbers=numbers)
        if self._plain and point.loss is not None and self._is_line(point.step):
            self._last_line = time.monotonic()
            print(f"  step {point.step}/{self._steps}  {numbers}", file=sys.stderr, flush=True)

    def _is_line(self, step: int) -> bool:
        """The first step, the last, every tenth part, and at least a line a minute."""
        overdue = time.monotonic() - self._last_line > _SECONDS_BETWEEN_LINES
        return overdue or step in (1, self._steps) or step % max(1, self._steps // _PLAIN_LINES) == 0

    def _last(self, name: str) -> float | None:
        return next((value for p in reversed(self._points) if (value := getattr(p, name)) is not None), None)
