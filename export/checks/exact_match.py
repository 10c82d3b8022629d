"""Does the model give the very answer of the held-out row?"""

from typing import ClassVar, Literal

from pydantic import Field

from export.checks._base import Check, Items, Measurement, Observation, measurement
from export.checks._json_answer import read, same


class ExactMatch(Check):
    """Share of greedy answers that equal the reference answer."""

    right_or_wrong: ClassVar[bool] = True

    compare: Literal["text", "json"] = Field(
        default="text",
        description="'text': equal after white space is trimmed; 'json': equal as JSON values, whatever the order of "
        "keys (what is not JSON never matches a reference that is; a reference that is not is compared as text).",
    )

    def measure(self, work: Items, seen: Observation) -> tuple[Measurement, ...]:
        """One score of 0 or 1 per row."""
        pairs = zip(work.given(seen), work.expected(), strict=True)
        scores = [[float(self.matches(given, expected))] for given, expected in pairs]
        return (measurement("exact_match", seen.subject, scores, unit="share", higher_is_better=True),)

    def matches(self, generated: str, answer: str) -> bool:
        """Whether a generated answer counts as the reference answer."""
        expected = read(answer)
        if self.compare == "text" or not expected.is_json:
            return generated.strip() == answer.strip()
        given = read(generated)
        return given.is_json and same(given.value, expected.value, "ordered")


step = ExactMatch
