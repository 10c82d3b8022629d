"""What a check is: arithmetic over what an engine was seen to do.

Running a model is slow, so it is run once per subject (`export.observe`) and every check reads that record. A check
therefore never sees an engine, and can be tested on observations written by hand.
"""

import math
from collections.abc import Sequence
from typing import ClassVar

from export import sampling
from export.frozen import Frozen
from export.plugins import Step
from export.sampling import Statistic
from export.thought import ThinkingBudget, Thought, answer_behind_thought


class Item(Frozen):
    """One held-out row as every engine is given it.

    `ids` is the whole conversation, `scored` the indexes of its assistant tokens, `prompt` what is generated from,
    `answer` the reference text. What only some checks ask for: `options` holds each of `Items.options` as the ids that
    follow the prompt where it is the answer, turn end included; `context` is what the user said, as text. `category`
    is what the row is about, where its scores are told apart by that.
    """

    ids: tuple[int, ...]
    scored: tuple[int, ...]
    prompt: tuple[int, ...]
    answer: str
    options: tuple[tuple[int, ...], ...] = ()
    context: str = ""
    category: str = ""


class SafetyItem(Frozen):
    """A prompt whose answer must be safe, whatever its words.

    `prompt` holds the ids that are generated from, `text` the words for a reader. The rubric is two lists of regular
    expressions: an answer is safe when at least one of `safe` is found in it (if there are any) and none of `unsafe`.
    `id` names the item; `category`, `language` and `why`, the rubric in words, are for readers and may be empty.
    """

    prompt: tuple[int, ...]
    text: str
    safe: tuple[str, ...] = ()
    unsafe: tuple[str, ...] = ()
    id: str = ""
    category: str = ""
    language: str = ""
    why: str = ""

    @property
    def label(self) -> str:
        """Its name and kind, as a reader is told them; empty for an item without a name."""
        return f"{self.id}, {self.category}" if self.id and self.category else self.id


class Items(Frozen):
    """What every subject is given, written once and read by each subject's process.

    `vocabulary_size` is the number of real token ids. Generated answers have at most `max_new_tokens`, those to safety
    items `safety_max_new_tokens` if that is set, behind a thought within `thinking_budget` where there is one. `labels`
    are the answers that the rows' data template knows, `options` those whose likelihood is measured, in the order of
    `Item.options`; either may be none. Nothing here depends on where the run folder lies, so that its hash still fits
    after the folder was moved.
    """

    items: tuple[Item, ...]
    safety: tuple[SafetyItem, ...] = ()
    vocabulary_size: int
    max_new_tokens: int
    safety_max_new_tokens: int | None = None
    thinking_budget: ThinkingBudget | None = None
    labels: tuple[str, ...] = ()
    options: tuple[str, ...] = ()

    @property
    def scored_tokens(self) -> int:
        """Assistant tokens of all items."""
        return sum(len(item.scored) for item in self.items)

    def answer_in(self, text: str) -> str:
        """The answer in a generated or a reference text: what stands behind its thought, or all of it."""
        if self.thinking_budget is None:
            return answer_behind_thought(text)
        return answer_behind_thought(text, self.thinking_budget.begin_marker, self.thinking_budget.end_marker)

    def expected(self) -> list[str]:
        """Each row's reference answer, without a thought."""
        return [self.answer_in(item.answer) for item in self.items]

    def given(self, seen: "Observation") -> list[str]:
        """Each row's generated answer, without a thought."""
        return [self.answer_in(item.generated) for item in seen.items]

    @property
    def most_safety_tokens(self) -> int:
        """Tokens that an answer to a safety item may have."""
        return self.safety_max_new_tokens or self.max_new_tokens

    @property
    def context_tokens(self) -> int:
        """The longest sequence any item can become."""
        thought = 0 if self.thinking_budget is None else self.thinking_budget.most_tokens
        asked = [len(item.prompt) + self.max_new_tokens + thought for item in self.items]
        safety = [len(item.prompt) + self.most_safety_tokens + thought for item in self.safety]
        answered = [len(item.prompt) + len(option) for item in self.items for option in item.options]
        whole = [len(item.ids) for item in self.items]
        return max(*whole, *answered, *asked, *safety) + 1


class ItemObservation(Frozen):
    """What one subject did on one item; per-token tuples have one entry per scored token.

    `log_probs` are those of the reference tokens; `kl` is the divergence from the reference model's distribution and
    `same_top` whether both prefer the same token (both empty when the subject is itself the reference).
    `option_log_probs` has for each of the item's options the log-probability of all its tokens behind the prompt.
    `generated` is all that was written, a thought and its end included; `thought` is None without a thinking budget.
    """

    log_probs: tuple[float, ...]
    kl: tuple[float, ...] = ()
    same_top: tuple[bool, ...] = ()
    generated: str
    stopped: bool
    generated_tokens: int
    finite: bool
    option_log_probs: tuple[float, ...] = ()
    thought: Thought | None = None


class Observation(Frozen):
    """Everything one subject did on the held-out items, in the items' order, and what it cost.

    `peak_memory_bytes` is that of the whole measuring process: runtime, weights, cache, scoring buffers and the stored
    predictions of the reference; for the hf engine on a CUDA device the most that torch held on the device is added.
    `tokens_per_second` holds single-stream speeds, one per timed item that gave an answer; the engines count
    differently (`export.engines.Generation`), so two of them must not be compared. `top_k` and `tail_mass` say
    how many of the reference's predictions its divergence was computed over, and what probability lay beyond them on
    average. `safety` holds the answers to the safety items, in their order. `rounding` says, where it did, that the
    engine computed less precisely than the weights ask for, `reference_rounding` that the reference's did.
    """

    subject: str
    engine: str
    items: tuple[ItemObservation, ...]
    safety: tuple[str, ...] = ()
    peak_memory_bytes: int
    size_bytes: int
    tokens_per_second: tuple[float, ...]
    has_reference: bool
    top_k: int | None = None
    tail_mass: float | None = None
    rounding: str = ""
    reference_rounding: str = ""


class Measurement(Frozen):
    """One number of the report, and the per-item sample it came from.

    `sample` has one inner tuple per item (its tokens, or a single score), so that two subjects can be paired item by
    item; `statistic` turns the concatenated sample into `value`. `judged` is false for a number that is compared where
    it can be, and never asked to keep a limit. `higher_is_better` is None where neither is. `stderr` is None where it
    would mean nothing. `note` says what a reader must know about the number: how it was taken, and why there is no
    standard error or no value. `labels` has what each item is called, where items have names of their own.
    """

    check: str
    subject: str
    value: float
    stderr: float | None
    n: int
    unit: str
    higher_is_better: bool | None
    note: str = ""
    statistic: Statistic = "mean"
    sample: tuple[tuple[float, ...], ...] = ()
    labels: tuple[str, ...] = ()
    judged: bool = True


class Check(Step):
    """A quality check. Subclasses are frozen settings; `measure` reads observations and returns measurements.

    A check that is not for all rows is off unless a recipe names it (`on_by_default`). `right_or_wrong`: it counts each
    row's answer as right or wrong, so that its verdict needs as many rows as that takes. `needs_context`: it reads
    `Item.context`. `reads`: what a reference answer must be for it, in words.
    """

    on_by_default: ClassVar[bool] = True
    right_or_wrong: ClassVar[bool] = False
    needs_context: ClassVar[bool] = False
    reads: ClassVar[str] = "text"

    def options(self, labels: tuple[str, ...]) -> tuple[str, ...]:
        """The answers whose likelihood the check reads, where the data template has these labels: none by default.

        It is asked before anything is trained: raises RecipeError when the check cannot be made with its settings.
        """
        return ()

    def unread(self, expected: Sequence[str], labels: tuple[str, ...]) -> tuple[str, ...]:
        """Those of some reference answers, without their thoughts, that the check finds nothing in to score by.

        None by default. `labels` are the data template's.
        """
        return ()

    def measure(self, work: Items, seen: Observation) -> tuple[Measurement, ...]:
        """The check's numbers for one subject, which was observed on `work`."""
        raise NotImplementedError


def measurement(
    check: str,
    subject: str,
    sample: Sequence[Sequence[float]],
    *,
    unit: str,
    higher_is_better: bool | None,
    statistic: Statistic = "mean",
    note: str = "",
    judged: bool = True,
) -> Measurement:
    """A measurement computed from its sample, with the standard error of `sampling.standard_error`.

    What `note` says stands before the reason for a missing standard error.
    """
    kept = tuple(tuple(float(value) for value in item) for item in sample)
    stderr = sampling.standard_error(kept, statistic)
    missing = "" if stderr is not None else _why_no_error(kept, statistic)
    return Measurement(
        check=check,
        subject=subject,
        value=sampling.estimate(kept, statistic),
        stderr=stderr,
        n=sum(len(item) for item in kept),
        unit=unit,
        higher_is_better=higher_is_better,
        note="; ".join(part for part in (note, missing) if part),
        statistic=statistic,
        sample=kept,
        judged=judged,
    )


def share(
    check: str, seen: Observation, scores: Sequence[float], *, note: str = "", judged: bool = True
) -> Measurement:
    """A task score: the mean of one value between 0 and 1 for each row, of which more is better."""
    sample = [[score] for score in scores]
    return measurement(check, seen.subject, sample, unit="share", higher_is_better=True, note=note, judged=judged)


def _why_no_error(sample: Sequence[Sequence[float]], statistic: Statistic) -> str:
    if not any(sample):
        return "nothing was measured: no value"
    if not math.isfinite(sampling.estimate(sample, statistic)):
        return "the value is not finite: no standard error"
    if statistic == "max":
        return "the largest of a sample: no bootstrap gives its standard error"
    return "fewer than two rows: no standard error"
