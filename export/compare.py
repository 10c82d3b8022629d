"""From two subjects' measurements, paired row by row, to a verdict.

A verdict is one of three. `pass`: the change is inside the limit and so is the bound of its interval. `fail`: even the
favourable end of the interval is outside the limit. `cannot tell`: the held-out rows are too few to decide. The
limits are for what the step is allowed to cost; nothing is asked of a change that has no limit.
"""

import math
import re
from bisect import bisect_left
from collections.abc import Mapping, Sequence
from typing import Literal

from pydantic import Field

from export import sampling
from export.checks._base import Measurement, measurement
from export.frozen import Frozen

Verdict = Literal["pass", "fail", "cannot tell"]
_WORST_FIRST: tuple[Verdict, ...] = ("fail", "cannot tell", "pass")
_MOST_ROWS = 10_000  # beyond which the number of rows that a limit needs is not looked for


class Limits(Frozen):
    """How much worse an artifact may be than what it was made from: by default, in 6 bits and more."""

    kl_mean: float = Field(default=0.01, ge=0, description="Largest mean KL divergence, nats per assistant token.")
    kl_percentile_99: float = Field(default=0.1, ge=0, description="Largest 99th percentile of that divergence, nats.")
    same_top_token: float = Field(
        default=0.97, ge=0, le=1, description="Smallest share of tokens with the same top one."
    )
    perplexity_ratio: float = Field(default=1.01, ge=1, description="Largest ratio of perplexities, after over before.")
    task_drop: float = Field(default=0.007, ge=0, description="Largest drop of a task score, as a share.")
    task_drop_bound: float = Field(
        default=0.02, ge=0, description="Largest one-sided 95 % bound of that drop, as a share."
    )


class LooserLimits(Limits):
    """The same limits with the defaults of 5 bits and fewer."""

    kl_mean: float = Field(default=0.05, ge=0, description="Largest mean KL divergence, nats per assistant token.")
    kl_percentile_99: float = Field(default=0.5, ge=0, description="Largest 99th percentile of that divergence, nats.")
    same_top_token: float = Field(
        default=0.90, ge=0, le=1, description="Smallest share of tokens with the same top one."
    )
    perplexity_ratio: float = Field(default=1.03, ge=1, description="Largest ratio of perplexities, after over before.")


class Gate(Frozen):
    """Limits by the artifact's nominal bits per weight."""

    from_6_bits: Limits = Field(
        default=Limits(), description="For 6, 8 and 16 bits, and for the merged model against the adapter."
    )
    below_6_bits: LooserLimits = Field(default=LooserLimits(), description="For 5 bits and fewer.")

    def limits_for_merge(self, *, four_bit_base: bool) -> Limits:
        """The limits the merged model is held to against the adapter.

        An adapter whose base was in 4 bits is merged onto 16, so that they differ by the rounding of the 4 bits too:
        divergence and perplexity are then held to the limits of fewer than 6 bits, task scores as ever.
        """
        if not four_bit_base:
            return self.from_6_bits
        fields = ("kl_mean", "kl_percentile_99", "same_top_token", "perplexity_ratio")
        return self.from_6_bits.model_copy(update={field: getattr(self.below_6_bits, field) for field in fields})

    def limits_for(self, subject: str) -> Limits:
        """The limits an artifact of this name is held to."""
        return self.below_6_bits if nominal_bits(subject) < 6 else self.from_6_bits


class Comparison(Frozen):
    """One check of one step: from `before` to `after`.

    `delta` is after minus before, or for perplexity after over before (`scale` says which). `interval` is two-sided at
    90 %, so that each end is a one-sided 95 % bound; `limit` is the largest change allowed, and `bound_limit` the
    largest allowed at the interval's unfavourable end. `interval` is None where there is none and `verdict` where no
    limit applies; `note` says why there is no interval, or that the change itself is not finite (which fails).
    """

    check: str
    before: str
    after: str
    delta: float
    scale: Literal["difference", "ratio"]
    interval: tuple[float, float] | None
    limit: float | None
    bound_limit: float | None
    n: int
    verdict: Verdict | None
    note: str = ""


def nominal_bits(subject: str) -> int:
    """The bits per weight that a subject's name promises: 4 for gguf/q4_k_m and gptq/4bit, 16 for a dense model."""
    found = re.search(r"\d+", subject.partition("/")[2])
    return int(found.group()) if found else 16


def compare(
    before: Sequence[Measurement],
    after: Sequence[Measurement],
    limits: Limits | None,
    *,
    names: tuple[str, str],
    seed: int,
) -> tuple[Comparison, ...]:
    """Compares every check that both subjects have, and the divergence, which only one of them can have.

    The divergence of a subject from the reference is itself the change, whichever of the two is the reference. Facts
    without a sample are not compared, and neither is speed: engines count its seconds differently. `names` are the two
    subjects', before and after; either may have no measurements. Raises ValueError when a check has other rows before
    than after.
    """
    earlier, later = ({m.check: m for m in subject} for subject in (before, after))
    one_sided = {
        name: m for side in (earlier, later) for name, m in side.items() if name.startswith(("kl_", "same_top"))
    }
    both = [name for name in later if name in earlier and name not in one_sided and name != "tokens_per_second"]
    done = [_paired(earlier[name], later[name], limits, seed) for name in both if later[name].sample]
    if limits is not None:
        done += [_from_reference(m, names, limits, seed) for m in one_sided.values()]
    return tuple(done)


def compare_steps(
    measured: Mapping[str, Sequence[Measurement]], gate: Gate, *, four_bit_base: bool, seed: int
) -> tuple[Comparison, ...]:
    """The steps of a run: what fine-tuning gained (nothing is asked of it), what merging and each export cost.

    `measured` holds each subject's measurements by its name, `merged` among them. `four_bit_base`: the adapter was
    trained on, and observed beside, a base in 4 bits.
    """
    merged = measured["merged"]
    done: list[Comparison] = []
    if "base" in measured:
        done += compare(measured["base"], merged, None, names=("base", "merged"), seed=seed)
    if "adapter" in measured:
        limits = gate.limits_for_merge(four_bit_base=four_bit_base)
        done += compare(measured["adapter"], merged, limits, names=("adapter", "merged"), seed=seed)
    for name, subject in measured.items():
        if name not in ("merged", "base", "adapter"):
            done += compare(merged, subject, gate.limits_for(name), names=("merged", name), seed=seed)
    return tuple(done)


def overall(verdicts: Sequence[Verdict]) -> Verdict:
    """The worst of the verdicts; without any, nothing can be told."""
    return next((verdict for verdict in _WORST_FIRST if verdict in verdicts), "cannot tell")


def too_few_rows(rows: int, limits: Limits) -> str | None:
    """Why a share of right answers on `rows` rows is not to be expected to pass; None when there are rows enough.

    Reckoned for what one hopes for: every answer is right before, and after. With half of them right and none changed
    the interval is narrower, and fewer rows do.
    """
    unchanged = _unchanged(rows, limits)
    if unchanged.verdict == "pass" or unchanged.interval is None:
        return None
    needed = bisect_left(range(1, _MOST_ROWS), True, key=lambda n: _unchanged(n, limits).verdict == "pass") + 1
    bound, allowed = -unchanged.interval[0] * 100, limits.task_drop_bound * 100
    return (
        f"{rows} held-out rows are few: were every answer right before and after, the one-sided 95 % bound of the "
        f"score's drop would still be {bound:.3g} points, and {allowed:.3g} are allowed. "
        f"Expect 'cannot tell' at best below {needed:,}{'' if needed < _MOST_ROWS else ' or more'} rows."
    )


def _unchanged(rows: int, limits: Limits) -> Comparison:
    """The comparison of a score of `rows` answers that are all right, before and after."""
    sample = [[1.0]] * rows
    before, after = (
        measurement("task", name, sample, unit="share", higher_is_better=True) for name in ("before", "after")
    )
    return _paired(before, after, limits, seed=0)


def _paired(before: Measurement, after: Measurement, limits: Limits | None, seed: int) -> Comparison:
    """A check that both subjects have, paired row by row."""
    ratio = before.check == "perplexity"
    delta = after.value / before.value if ratio else after.value - before.value
    interval = _interval(before, after, ratio, seed)
    limit, bound_limit = _task_or_ratio_limit(before.check, limits)
    if before.check == "stops":
        return _stops(before, after, limits, interval)
    worse = _worse_first(interval, after.higher_is_better)
    loss = -delta if after.higher_is_better else delta
    return Comparison(
        check=before.check,
        before=before.subject,
        after=after.subject,
        delta=delta,
        scale="ratio" if ratio else "difference",
        interval=_finite(interval),
        limit=limit,
        bound_limit=bound_limit,
        n=after.n,
        verdict=_verdict(loss, worse, limit, bound_limit),
        note=_why_no_interval(delta, interval),
    )


def _stops(before: Measurement, after: Measurement, limits: Limits | None, interval: tuple[float, float]) -> Comparison:
    """Answers that used to stop: none may be lost, so the rows themselves are counted and no interval decides."""
    lost = sum(b[0] > a[0] for b, a in zip(before.sample, after.sample, strict=True))
    return Comparison(
        check=before.check,
        before=before.subject,
        after=after.subject,
        delta=after.value - before.value,
        scale="difference",
        interval=interval,
        limit=None if limits is None else 0.0,
        bound_limit=None,
        n=after.n,
        verdict=None if limits is None else ("fail" if lost else "pass"),
        note=f"{lost} answers that stopped before do not stop now; none may be lost",
    )


def _from_reference(measured: Measurement, names: tuple[str, str], limits: Limits, seed: int) -> Comparison:
    """A divergence from the reference, which is a change by itself: the reference's own is 0 (or a share of 1)."""
    start = 1.0 if measured.check == "same_top_token" else 0.0
    limit: float | None = getattr(limits, measured.check, None)
    interval = None
    if measured.statistic != "max":
        low, high = sampling.interval(measured.sample, measured.statistic, seed=seed)
        # a divergence is never below 0, and a share never above 1; the bootstrap's bounds may be
        interval = (low - start, min(high - start, 0.0)) if start else (max(low, 0.0), high)
    worse = None if interval is None else _worse_first(interval, measured.higher_is_better)
    loss = abs(measured.value - start)
    allowed = None if limit is None else abs(limit - start)
    return Comparison(
        check=measured.check,
        before=names[0],
        after=names[1],
        delta=measured.value - start,
        scale="difference",
        interval=_finite(interval),
        limit=allowed,
        bound_limit=allowed,
        n=measured.n,
        verdict=_verdict(loss, worse, allowed, allowed),
        note=_why_no_interval(measured.value, interval),
    )


def _finite(interval: tuple[float, float] | None) -> tuple[float, float] | None:
    return interval if interval is not None and all(math.isfinite(end) for end in interval) else None


def _why_no_interval(value: float, interval: tuple[float, float] | None) -> str:
    if not math.isfinite(value):
        return "the value is not finite"
    if interval is None:
        return "the largest of a sample has no interval that a bootstrap can give"
    return "" if _finite(interval) else "fewer than two rows give no interval"


def _interval(before: Measurement, after: Measurement, ratio: bool, seed: int) -> tuple[float, float]:
    if _is_binary(before) and _is_binary(after):
        return sampling.paired_proportion_interval([b[0] for b in before.sample], [a[0] for a in after.sample])
    return sampling.paired_interval(before.sample, after.sample, after.statistic, ratio=ratio, seed=seed)


def _is_binary(measured: Measurement) -> bool:
    return all(len(item) == 1 and item[0] in (0.0, 1.0) for item in measured.sample)


def _task_or_ratio_limit(check: str, limits: Limits | None) -> tuple[float | None, float | None]:
    """(largest change, largest bound) for a check: the perplexity ratio's limit, or that of a task score."""
    if limits is None:
        return None, None
    if check == "perplexity":
        return limits.perplexity_ratio, limits.perplexity_ratio
    return limits.task_drop, limits.task_drop_bound


def _worse_first(interval: tuple[float, float], higher_is_better: bool) -> tuple[float, float]:
    """The interval of the loss (favourable end, unfavourable end), with a loss counted as positive."""
    low, high = interval
    return (-high, -low) if higher_is_better else (low, high)


def _verdict(
    loss: float, interval: tuple[float, float] | None, limit: float | None, bound_limit: float | None
) -> Verdict | None:
    """The verdict on a loss whose interval is (favourable end, unfavourable end)."""
    if limit is None or bound_limit is None or interval is None:
        return None
    favourable, unfavourable = interval
    if loss <= limit and unfavourable <= bound_limit:
        return "pass"
    # written so that a loss that is not a number fails
    return "cannot tell" if favourable <= limit else "fail"


def worst_by_subject(comparisons: Sequence[Comparison]) -> Mapping[str, Verdict]:
    """Each judged subject's verdict: the worst of its checks."""
    judged: dict[str, list[Verdict]] = {}
    for comparison in comparisons:
        if comparison.verdict is not None:
            judged.setdefault(comparison.after, []).append(comparison.verdict)
    return {subject: overall(verdicts) for subject, verdicts in judged.items()}
