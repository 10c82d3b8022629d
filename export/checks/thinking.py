"""How did the model think? What became of its thoughts under the recipe's budget (`check.thinking_budget`).

Nothing is judged: whether the answers behind the thoughts are right is for the checks of answers.
"""

from typing import ClassVar

from export.checks._base import Check, Items, Measurement, Observation, measurement
from export.thought import Ending, Thought

_RATES: dict[str, tuple[Ending, str]] = {
    "thinking_closed": ("closed", "rows whose thought the model closed itself, within the budget"),
    "thinking_cut": ("cut", "rows whose thought used the budget up and was closed for the model"),
    "thinking_stopped": (
        "stopped",
        "rows in which the model ended its turn within the thought, which was closed for it",
    ),
    "thinking_none": ("none", "rows in which the model did not think"),
}


class Thinking(Check):
    """What became of the thoughts under check.thinking_budget: closed by the model or cut, and how long they were."""

    on_by_default: ClassVar[bool] = False

    def measure(self, work: Items, seen: Observation) -> tuple[Measurement, ...]:
        """One score of 0 or 1 per row for each ending, and two means; nothing for answers without a budget."""
        thoughts = [item.thought for item in seen.items if item.thought is not None]
        if work.thinking_budget is None or len(thoughts) < len(seen.items):
            return ()
        budget = work.thinking_budget
        shares = (
            self._mean(seen, check, [float(thought.ended == ending) for thought in thoughts], "share", note)
            for check, (ending, note) in _RATES.items()
        )
        return (*shares, *self._means(seen, thoughts, budget.max_thinking_tokens, budget.waits))

    def _means(self, seen: Observation, thoughts: list[Thought], most: int, waits: int) -> tuple[Measurement, ...]:
        tokens = [float(thought.tokens) for thought in thoughts]
        used = [float(thought.waits) for thought in thoughts]
        of_tokens = f"tokens before the end of the thought, at most {most:,}; 0 where there was none"
        of_waits = f"times a thought that ended early was made to go on, at most {waits:,}"
        means = [self._mean(seen, "thinking_tokens", tokens, "tokens", of_tokens)]
        return (*means, *([self._mean(seen, "thinking_waits", used, "×", of_waits)] if waits else []))

    @staticmethod
    def _mean(seen: Observation, check: str, values: list[float], unit: str, note: str) -> Measurement:
        sample = [[value] for value in values]
        return measurement(check, seen.subject, sample, unit=unit, higher_is_better=None, note=note, judged=False)


step = Thinking
