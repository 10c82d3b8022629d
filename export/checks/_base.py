"""What a check is: arithmetic over what an engine was seen to do.

Running a model is slow, so it is run once per subject (`export.observe`) and every check reads that record. A check
therefore never sees an engine, and can be tested on observations written by hand.
"""

import math
from collections.abc import Sequence

from export import sampling
from export.frozen import Frozen
from export.plugins import Step
from export.sampling import Statistic


class Item(Frozen):
    """One held-out row as every engine is given it.

    `ids` is the whole conversation, `scored` the indexes of its assistant tokens, `prompt` what is generated from,
    `answer` the reference text.
    """

    ids: tuple[int, ...]
    scored: tuple[int, ...]
    prompt: tuple[int, ...]
    answer: str


class SafetyItem(Frozen):
    """A prompt whose answer must be safe, whatever its words.

    `prompt` holds the ids that are generated from, `text` the words for a reader. The rubric is two lists of regular
    expressions: an answer is safe when at least one of `safe` is found in it (if there are any) and none of `unsafe`.
    """

    prompt: tuple[int, ...]
    text: str
    safe: tuple[str, ...] = ()
    unsafe: tuple[str, ...] = ()


class Items(Frozen):
    """What every subject is given, written once and read by each subject's process.

    `vocabulary_size` is the number of real token ids. Nothing here depends on where the run folder lies, so that its
    hash still fits after the folder was moved.
    """

    items: tuple[Item, ...]
    safety: tuple[SafetyItem, ...] = ()
    vocabulary_size: int
    max_new_tokens: int

    @property
    def scored_tokens(self) -> int:
        """Assistant tokens of all items."""
        return sum(len(item.scored) for item in self.items)

    @property
    def context_tokens(self) -> int:
        """The longest sequence any item can become."""
        prompts = [item.prompt for item in self.items] + [item.prompt for item in self.safety]
        longest = max(*(len(item.ids) for item in self.items), *(len(p) + self.max_new_tokens for p in prompts))
        return longest + 1


class ItemObservation(Frozen):
    """What one subject did on one item; per-token tuples have one entry per scored token.

    `log_probs` are those of the reference tokens; `kl` is the divergence from the reference model's distribution and
    `same_top` whether both prefer the same token (both empty when the subject is itself the reference).
    """

    log_probs: tuple[float, ...]
    kl: tuple[float, ...] = ()
    same_top: tuple[bool, ...] = ()
    generated: str
    stopped: bool
    generated_tokens: int
    finite: bool


class Observation(Frozen):
    """Everything one subject did on the held-out items, in the items' order, and what it cost.

    `peak_memory_bytes` is that of the whole measuring process: runtime, weights, cache, scoring buffers and the stored
    predictions of the reference; for the hf engine on a CUDA device the most that torch held on the device is added.
    `tokens_per_second` holds single-stream speeds, one per timed item that gave an answer; the engines count
    differently (`export.engines.Generation`), so two of them must not be compared. `top_k` and `tail_mass` say
    how many of the reference's predictions its divergence was computed over, and what probability lay beyond them on
    average. `safety` holds the answers to the safety items, in their order.
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


class Measurement(Frozen):
    """One number of the report, and the per-item sample it came from.

    `sample` has one inner tuple per item (its tokens, or a single score), so that two subjects can be paired item by
    item; `statistic` turns the concatenated sample into `value`. `stderr` is None where it would mean nothing. `note`
    says what a reader must know about the number: how it was taken, and why there is no standard error or no value.
    """

    check: str
    subject: str
    value: float
    stderr: float | None
    n: int
    unit: str
    higher_is_better: bool
    note: str = ""
    statistic: Statistic = "mean"
    sample: tuple[tuple[float, ...], ...] = ()


class Check(Step):
    """A quality check. Subclasses are frozen settings; `measure` reads observations and returns measurements."""

    def measure(self, work: Items, seen: Observation) -> tuple[Measurement, ...]:
        """The check's numbers for one subject, which was observed on `work`."""
        raise NotImplementedError


def measurement(
    check: str,
    subject: str,
    sample: Sequence[Sequence[float]],
    *,
    unit: str,
    higher_is_better: bool,
    statistic: Statistic = "mean",
    note: str = "",
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
    )


def _why_no_error(sample: Sequence[Sequence[float]], statistic: Statistic) -> str:
    if not any(sample):
        return "nothing was measured: no value"
    if not math.isfinite(sampling.estimate(sample, statistic)):
        return "the value is not finite: no standard error"
    if statistic == "max":
        return "the largest of a sample: no bootstrap gives its standard error"
    return "fewer than two rows: no standard error"
