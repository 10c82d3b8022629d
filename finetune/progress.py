"""What a person sees while a model trains: a bar with loss, speed and time left; and the record of the losses."""

import math
import sys
import time
from types import TracebackType
from typing import Any

from export.errors import TrainingError
from finetune.methods._base import LossPoint

_PLAIN_LINES = 10


class TrainingProgress:
    """A progress bar on a terminal, or about ten plain lines in a log file; collects the loss points either way."""

    def __init__(self, steps: int) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

        self.points: tuple[LossPoint, ...] = ()
        self._steps = steps
        self._started = time.monotonic()
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
        point = LossPoint(
            step=step,
            tokens=int(values.get("num_tokens", self.points[-1].tokens if self.points else 0)),
            loss=values.get("loss"),
            valid_loss=values.get("eval_loss"),
        )
        if point.loss is None and point.valid_loss is None:
            return
        for name, value in (("loss", point.loss), ("valid loss", point.valid_loss)):
            if value is not None and not math.isfinite(value):
                raise TrainingError(
                    f"the {name} became {value} at step {step} of {self._steps}. Training was stopped and nothing was "
                    "saved. Lower train.learning_rate, or set model.dtype: float32 if it was float16."
                )
        self.points = (*self.points, point)
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
            print(f"  step {point.step}/{self._steps}  {numbers}", file=sys.stderr, flush=True)

    def _is_line(self, step: int) -> bool:
        return step == self._steps or step % max(1, self._steps // _PLAIN_LINES) == 0

    def _last(self, name: str) -> float | None:
        return next((value for p in reversed(self.points) if (value := getattr(p, name)) is not None), None)
