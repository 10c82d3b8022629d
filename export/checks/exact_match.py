"""Does the model give the very answer of the held-out row?"""

import json
from typing import ClassVar, Literal

from pydantic import Field

from export.checks._base import Check, Items, Measurement, Observation, measurement


class ExactMatch(Check):
    """Share of greedy answers that equal the reference answer."""

    right_or_wrong: ClassVar[bool] = True

    compare: Literal["text", "json"] = Field(
        default="text",
        description="'text': equal after white space is trimmed; 'json': equal as JSON values, whatever the key order "
        "(an answer that is not JSON never matches a reference that is).",
    )

    def measure(self, work: Items, seen: Observation) -> tuple[Measurement, ...]:
        """One score of 0 or 1 per row."""
        pairs = zip(work.given(seen), work.expected(), strict=True)
        scores = [[float(self.matches(given, expected))] for given, expected in pairs]
        return (measurement("exact_match", seen.subject, scores, unit="share", higher_is_better=True),)

    def matches(self, generated: str, answer: str) -> bool:
        """Whether a generated answer counts as the reference answer."""
        if self.compare == "text":
            return generated.strip() == answer.strip()
        try:
            return _strict(json.loads(generated)) == _strict(json.loads(answer))
        except ValueError:
            return False


def _strict(value: object) -> str:
    """JSON text with sorted keys: unlike Python's ==, it tells true from 1 and 1.0 from 1."""
    return json.dumps(value, sort_keys=True)


step = ExactMatch
