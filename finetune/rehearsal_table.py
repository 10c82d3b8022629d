"""A rehearsal as lines for the terminal. The numbers are `export.rehearsal`'s."""

from collections.abc import Iterator

from export.hardware import BUSY_SHARE
from export.rehearsal.results import AgainstMerged, Growth, Mean, Rehearsal, Share

_WIDTH = 26


def lines(found: Rehearsal) -> list[str]:
    """Each figure in a line of its own, behind what it is called; intervals are at 90 %."""
    shown = [(name, text) for name, text in _figures(found) if text is not None]
    return [*(f"  {name:{_WIDTH}} {text}" for name, text in shown), *(f"  problem: {text}" for text in found.problems)]


def _figures(found: Rehearsal) -> Iterator[tuple[str, str | None]]:
    limit = found.limit
    yield (
        "limit",
        f"{limit.memory_bytes / 1e6:,.0f} MB of {limit.kind}, {limit.cpus} processor(s); counts {limit.counts}",
    )
    if found.busy_processors > BUSY_SHARE:
        yield "not idle", f"{found.busy_processors:.1f} processors were in use before it began: times are of them too"
    yield "peak resident memory", _megabytes(found.peak_resident_bytes)
    yield "peak addresses", _megabytes(found.peak_address_bytes)
    if found.start_seconds is not None:
        yield "start", f"{found.start_seconds:.2f} s, state {found.state}"
    yield "asked", f"{found.rows:,} rows, {found.answers:,} answers in {(found.soak_seconds or 0) / 60:.1f} minutes"
    yield "first token, ms", _mean(found.first_token_seconds, 1000)
    yield "tokens/s", _mean(found.tokens_per_second, 1)
    yield "rows answered by the schema", _share(found.schema_valid)
    yield "answers not taken", _share(found.not_taken)
    for reason in found.not_taken_because:
        yield "", reason
    yield "right answers", _share(found.right)
    yield "of these refused", _share(found.refused_right)
    yield "wrong actions given", _share(found.wrong_actions)
    yield "against the merged model", _against(found.against_merged)
    yield "answers that changed", None if found.changed_answers is None else f"{found.changed_answers:,}"
    yield "growth of memory", _growth(found.growth)
    for restart in found.restarts:
        same = "the same answer" if restart.same_answer else "ANOTHER answer"
        yield f"after {restart.after}", f"{same}, state {restart.state}, {restart.seconds:.2f} s"


def _megabytes(size_bytes: int | None) -> str | None:
    return None if size_bytes is None else f"{size_bytes / 1e6:,.1f} MB"


def _mean(mean: Mean | None, factor: float) -> str | None:
    if mean is None:
        return None
    within = "no interval of one row"
    if mean.interval is not None:
        within = " to ".join(f"{end * factor:,.1f}" for end in mean.interval)
    return (
        f"{mean.value * factor:,.1f} ({within}); largest {mean.largest * factor:,.1f}; "
        f"{mean.rows:,} rows, {mean.answers:,} answers"
    )


def _share(share: Share | None) -> str | None:
    if share is None:
        return None
    low, high = (end * 100 for end in share.interval)
    return f"{share.count:,} of {share.n:,}, {share.count / share.n:.1%} ({low:.1f} to {high:.1f})"


def _against(found: AgainstMerged | None) -> str | None:
    if found is None:
        return None
    low, high = (end * 100 for end in found.interval)
    return (
        f"{found.right:,} right, merged {found.merged_right:,}, of {found.rows:,} rows: {found.difference * 100:+.1f} "
        f"points ({low:+.1f} to {high:+.1f})"
    )


def _growth(found: Growth | None) -> str | None:
    if found is None:
        return None
    if found.verdict is None:
        return f"not told: {found.seconds / 60:.1f} minutes are too few"
    low, high = (end / 1e6 for end in found.interval)
    return (
        f"{found.bytes_per_hour / 1e6:+.2f} MB/h ({low:+.2f} to {high:+.2f}; passes to "
        f"{found.tolerated_bytes_per_hour / 1e6:.0f}); {found.blocks} blocks over {found.seconds / 60:.1f} minutes"
    )
