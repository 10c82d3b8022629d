"""What was asked of the safety items, and which of them a subject lost: named, with both answers.

Nothing is judged here: whether an answer is safe is `export.checks.safety`, that none may be lost `export.compare`.
"""

from collections import Counter
from collections.abc import Mapping, Sequence

from export.checks import Items, Observation, SafetyItem
from export.checks.safety import is_safe
from export.compare import Comparison
from export.frozen import Frozen


class SafetyCount(Frozen):
    """How many items of a category and a language were asked, and how many the reference answered safely."""

    category: str
    language: str
    asked: int
    safe_in_reference: int


class LostSafetyItem(Frozen):
    """An item that `before` answers safely and `after` does not. `number` counts from 1, in the file's order."""

    before: str
    after: str
    number: int
    id: str
    category: str
    language: str
    why: str
    prompt: str
    answer_before: str
    answer_after: str

    @property
    def label(self) -> str:
        """The item's name, and in brackets its category and language, as far as it has them."""
        kind = ", ".join(part for part in (self.category, self.language) if part)
        return (self.id or f"item {self.number}") + (f" ({kind})" if kind else "")


class SafetyRecord(Frozen):
    """The safety items of a report. `lost` has those of every comparison that was judged by them, in its order.

    `lost_in_training` are those that the base answers safely and the fine-tuned model does not: nothing is asked of
    that step, and they are named all the same.
    """

    reference: str
    counts: tuple[SafetyCount, ...]
    lost: tuple[LostSafetyItem, ...] = ()
    lost_in_training: tuple[LostSafetyItem, ...] = ()

    @property
    def asked(self) -> int:
        """Items in all."""
        return sum(count.asked for count in self.counts)

    @property
    def safe_in_reference(self) -> int:
        """Items that the reference answered safely: only these can be lost."""
        return sum(count.safe_in_reference for count in self.counts)


def safety_record(
    items: Items, observations: Mapping[str, Observation], comparisons: Sequence[Comparison]
) -> SafetyRecord | None:
    """The record of a gate's comparisons, the first observation being the reference; None without safety items."""
    if not items.safety or not observations:
        return None
    safe = {
        name: [is_safe(items.answer_in(said), item) for said, item in zip(seen.safety, items.safety, strict=True)]
        for name, seen in observations.items()
    }
    steps = [c for c in comparisons if c.check == "safety"]

    def lost_in(some: Sequence[Comparison]) -> tuple[LostSafetyItem, ...]:
        return tuple(
            _lost(item, number, observations[step.before], observations[step.after])
            for step in some
            for number, item in enumerate(items.safety, start=1)
            if safe[step.before][number - 1] and not safe[step.after][number - 1]
        )

    reference = next(iter(observations))
    return SafetyRecord(
        reference=reference,
        counts=_counts(items.safety, safe[reference]),
        lost=lost_in([step for step in steps if step.verdict is not None]),
        lost_in_training=lost_in([step for step in steps if step.verdict is None and step.before == "base"]),
    )


def _lost(item: SafetyItem, number: int, before: Observation, after: Observation) -> LostSafetyItem:
    return LostSafetyItem(
        before=before.subject,
        after=after.subject,
        number=number,
        id=item.id,
        category=item.category,
        language=item.language,
        why=item.why,
        prompt=item.text,
        answer_before=before.safety[number - 1],
        answer_after=after.safety[number - 1],
    )


def _counts(items: Sequence[SafetyItem], safe: Sequence[bool]) -> tuple[SafetyCount, ...]:
    """One entry per category and language, in the order in which the file has them."""
    asked = Counter((item.category, item.language) for item in items)
    kept = Counter((item.category, item.language) for item, is_kept in zip(items, safe, strict=True) if is_kept)
    return tuple(
        SafetyCount(category=category, language=language, asked=count, safe_in_reference=kept[category, language])
        for (category, language), count in asked.items()
    )
