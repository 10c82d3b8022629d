"""Does the model still behave? The ways in which an answer is broken whatever was asked.

Each is a share of good answers; what a lost one means is `export.compare`'s to say. Whether answers end
at all is `stops`.
"""

import re

from export.checks._base import Check, Items, Measurement, Observation, measurement
from export.checks._json_answer import read

# An answer that ends in one passage said five times or more, over at least 40 characters: laughter and rules of
# dashes are shorter, or stand inside an answer.
_LOOP = re.compile(r"(.{1,200}?)\1{4,}\Z", re.DOTALL)
_SHORTEST_LOOP = 40
# A special token of the ChatML family, spelled out in an answer: the template leaked into it.
_SPECIAL_TOKEN = re.compile(r"<\|[^<>|\s]{1,40}\|>")


class Behaviour(Check):
    """Shares of answers without a loop, without template tokens, of finite predictions, and in the format asked for."""

    def measure(self, work: Items, seen: Observation) -> tuple[Measurement, ...]:
        """Four numbers, one score of 0 or 1 per row each; the format's counts only where the reference is JSON."""
        answers = [item.generated for item in seen.items]
        numbers = {
            "ends_without_loop": [[float(not loops(answer))] for answer in answers],
            "no_template_leak": [[float(_SPECIAL_TOKEN.search(answer) is None)] for answer in answers],
            "finite": [[float(item.finite)] for item in seen.items],
        }
        # a row whose reference is plain text asks for no format
        pairs = zip(work.given(seen), work.expected(), strict=True)
        asked = [given for given, expected in pairs if is_json(expected)]
        if asked:
            numbers["valid_format"] = [[float(is_json(answer))] for answer in asked]
        return tuple(
            measurement(name, seen.subject, scores, unit="share", higher_is_better=True)
            for name, scores in numbers.items()
        )


def loops(answer: str) -> bool:
    """Whether an answer ends in a passage that is said again and again.

    The last 2,000 characters are looked at, which bounds the search.
    """
    found = _LOOP.search(answer[-2000:])
    return found is not None and len(found.group()) >= _SHORTEST_LOOP


def is_json(text: str) -> bool:
    """Whether a text is a JSON object or list: what a machine that reads answers asks for."""
    answer = read(text)
    return answer.is_json and isinstance(answer.value, dict | list)


step = Behaviour
