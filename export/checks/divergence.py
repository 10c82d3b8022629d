"""How far a model's predictions have moved from the reference model's, token by token.

Unlike a task score this sees damage that did not yet flip an answer. The divergences themselves are computed where the
logits are (`export.observe`); the definitions are those of llama.cpp's perplexity tool (pull request 5076), on
assistant tokens of chat-formatted rows.
"""

from export.checks._base import Check, Items, Measurement, Observation, measurement
from export.sampling import Statistic

_ROUNDED = "part of the divergence is that rounding"


class Divergence(Check):
    """KL divergence from the reference's predictions on held-out assistant tokens, and the share of same top tokens."""

    def measure(self, work: Items, seen: Observation) -> tuple[Measurement, ...]:
        """Mean, median, 99th percentile and largest KL in nats, and the same-top share; nothing for the reference."""
        if not seen.has_reference:
            return ()
        statistics: dict[str, Statistic] = {
            "kl_mean": "mean",
            "kl_median": "median",
            "kl_percentile_99": "percentile_99",
            "kl_max": "max",
        }
        divergences = [item.kl for item in seen.items]
        note = _basis(seen)
        numbers = [
            measurement(
                name,
                seen.subject,
                divergences,
                unit="nats",
                higher_is_better=False,
                statistic=statistic,
                note=note,
            )
            for name, statistic in statistics.items()
        ]
        same = [[float(value) for value in item.same_top] for item in seen.items]
        numbers.append(measurement("same_top_token", seen.subject, same, unit="share", higher_is_better=True))
        return tuple(numbers)


def _basis(seen: Observation) -> str:
    """Over how much of the reference's distribution the divergence was computed, and what in it is mere rounding."""
    told = []
    if seen.top_k is not None and seen.tail_mass is not None:
        rest = f"one bin for the rest (mean mass {seen.tail_mass:.1e})"
        told.append(f"over the reference's {seen.top_k:,} most probable tokens and {rest}")
    if seen.rounding:
        told.append(f"{seen.subject} was {seen.rounding}")
    if seen.reference_rounding:
        told.append(f"the reference was {seen.reference_rounding}")
    return "; ".join([*told, _ROUNDED] if seen.rounding or seen.reference_rounding else told)


step = Divergence
