"""What `fieldtune fit` found in words: a table with bars, and where nothing fits, what stands in the way."""

import json

from export.device.budget import Candidate, Fit, Way
from export.device.memory import MEMORY_ERROR_SHARE, Memory
from export.device.profile import DeviceProfile
from finetune.fitting import Fitted

_BAR = 24
# Parts of the peak memory, as the bars draw them.
_PARTS = (("weight_bytes", "█"), ("cache_bytes", "▓"), ("compute_bytes", "▒"), ("dropped_bytes", "░"))
_ORDER = ("fits", "may", "does not")
_VERDICTS = {"fits": "fits", "may": "may fit", "does not": "no"}


def lines(found: Fitted) -> list[str]:
    """All that is told, line by line."""
    fit, device = found.fit, found.device
    return [
        f"{found.model} on {device.title}, a context of {fit.limits.context_tokens:,} tokens",
        f"usable memory: {megabytes(fit.usable_bytes)} MB ({_short(device.usable_memory_bytes.source)})",
        f"speed: {device.decode_bytes_per_second.value / 1e9:.1f} GB/s of weights and cache "
        f"({_short(device.decode_bytes_per_second.source)})",
        *_busy(device),
        "",
        *_table(found),
        "",
        "bars: · program and vocabulary  █ weights  ▓ cache  ▒ computing  ░ can be dropped",
        *notes(found),
        *ending(found),
    ]


def _busy(device: DeviceProfile) -> list[str]:
    if not device.busy_processors:
        return []
    return [
        f"not idle: {device.busy_processors:.1f} processors were in use by others when this device was probed: speeds "
        "are told too low, and no error says by how much"
    ]


def as_json(found: Fitted) -> str:
    """All of it, for programs: every type with every cache, and each part of the memory."""
    verdicts = [{"verdict": candidate.verdict} for candidate in found.fit.candidates]
    fit = found.fit.model_dump(mode="json")
    fit["candidates"] = [whole | verdict for whole, verdict in zip(fit["candidates"], verdicts, strict=True)]
    content = {
        "model": found.model,
        "sizes_are_exact": found.is_exact,
        "verdict": found.fit.verdict,
        "device": found.device.model_dump(mode="json"),
        **fit,
    }
    return json.dumps(content, indent=2, ensure_ascii=False)


def _table(found: Fitted) -> list[str]:
    """A row for each file with the cache that suits it best, and a bar of its memory."""
    fit = found.fit
    names = f"{'type':9} {'file MB':>8} {'bits':>5} {'cache':>5} {'needs MB':>8} {'peak MB':>7}"
    heading = f"{names}  {'tokens/s':>13} {'first token s':>15}  {'':10} memory, | is usable"
    widest = max(*(best.memory.peak_bytes for best in best_of_each(fit)), fit.usable_bytes)
    scale = widest if widest < 3 * fit.usable_bytes else 3 * fit.usable_bytes
    rows = [_row(candidate, found) + _bar(candidate.memory, fit.usable_bytes, scale) for candidate in best_of_each(fit)]
    return [heading, *rows]


def best_of_each(fit: Fit) -> list[Candidate]:
    """Of each file type the first cache, in the order they were asked for, with the best verdict."""
    best: dict[str, Candidate] = {}
    for candidate in fit.candidates:
        known = best.get(candidate.file_type)
        if known is None or _ORDER.index(candidate.verdict) < _ORDER.index(known.verdict):
            best[candidate.file_type] = candidate
    return list(best.values())


def _row(candidate: Candidate, found: Fitted) -> str:
    speed = candidate.speed
    first = f"{figure(speed.first_token_seconds)}±{speed.first_token_error_share:.0%}"
    rate = f"{figure(speed.tokens_per_second)}±{speed.tokens_error_share:.0%}"
    about = "" if found.is_exact else "≈"
    memory = f"{megabytes(candidate.memory.needed_bytes):>8} {megabytes(candidate.memory.peak_bytes):>7}"
    return (
        f"{candidate.file_type:9} {about + megabytes(candidate.size_bytes):>8} {candidate.bits_per_weight:5.2f} "
        f"{candidate.cache_type:>5} {memory}  {rate:>13} {first:>15}  {verdict_text(candidate):10} "
    )


def verdict_text(candidate: Candidate) -> str:
    """Whether it fits, and where it does not, for want of what."""
    if candidate.verdict != "does not":
        return _VERDICTS[candidate.verdict]
    named = ("memory", candidate.memory_verdict), ("speed", candidate.speed_verdict)
    return "no: " + ", ".join(name for name, verdict in named if verdict == "does not")


def _bar(memory: Memory, usable_bytes: int, scale: int) -> str:
    """The parts one behind the other, and a mark where usable memory ends; what is beyond the scale is cut."""
    drawn = ""
    done = 0
    for part, sign in (("rest", "·"), *_PARTS):
        done += memory.runtime_bytes + memory.vocabulary_bytes if part == "rest" else getattr(memory, part)
        drawn += sign * (round(done / scale * _BAR) - len(drawn))
    cells = list(drawn[:_BAR].ljust(_BAR + 1))
    cells.insert(min(_BAR, round(usable_bytes / scale * _BAR)), "|")
    return "".join(cells).rstrip()


def notes(found: Fitted) -> list[str]:
    """What the figures stand on, a line each."""
    limits = found.fit.limits
    sizes = (
        "file sizes are exact, for files without importance data (its notes are some hundred bytes)"
        if found.is_exact
        else "sizes (≈) are of the model's dimensions and Qwen's vocabulary: the model is not on this machine"
    )
    return [
        sizes,
        f"memory: resident, pages of the mapped file counted, within {MEMORY_ERROR_SHARE:.0%}; the peak has pages that "
        "the system drops when it must",
        f"tokens/s with all {limits.context_tokens:,} tokens in the cache; first token behind a prompt of "
        f"{limits.prompt_tokens:,}",
    ]


def ending(found: Fitted) -> list[str]:
    """What fits; where nothing does, what stands in the way and what would do."""
    fit = found.fit
    if fit.verdict == "fits":
        fitting = [candidate for candidate in fit.candidates if candidate.verdict == "fits"]
        largest = max(fitting, key=lambda candidate: candidate.size_bytes)
        return [f"fits: {largest.file_type} is the largest of {len({c.file_type for c in fitting})} types that do"]
    if fit.verdict == "may":
        return ["cannot tell: some may fit, within the errors of the predictions. Measure one on the device."]
    ways = [f"  {_way(way, fit)}" for way in fit.ways]
    return [f"nothing fits: {_binding(fit)}", "what would do:" if ways else "no other context or type would do", *ways]


def _binding(fit: Fit) -> str:
    """The constraint that no file keeps, with what the nearest needs and what there is."""
    said = []
    if "memory" in fit.binding:
        least = min(fit.candidates, key=lambda candidate: candidate.memory.needed_bytes)
        said.append(
            f"memory: the smallest, {_what(least)}, needs {megabytes(least.memory.needed_bytes)} MB, and "
            f"{megabytes(fit.usable_bytes)} MB are usable"
        )
    if "tokens per second" in fit.binding:
        most = max(fit.candidates, key=lambda candidate: candidate.speed.tokens_per_second)
        speed = f"{figure(most.speed.tokens_per_second)} tokens/s ±{most.speed.tokens_error_share:.0%}"
        said.append(
            f"speed: the fastest, {_what(most)}, reaches {speed} of {figure(fit.limits.min_tokens_per_second or 0)}"
        )
    return "; ".join(said)


def _way(way: Way, fit: Fit) -> str:
    what = _what(way)
    if way.change == "context":
        return f"--context {way.value:.0f} ({what})"
    if way.change == "memory":
        return f"{megabytes(way.value)} MB of usable memory ({what}); there are {megabytes(fit.usable_bytes)}"
    if way.change == "tokens per second":
        least = f"{way.value:.0f}" if way.value >= 100 else f"{way.value:.3g}"
        return f"--min-tps {least} ({what}; its error taken off)"
    return f"--types {way.file_type} ({way.cache_type} cache, a file of {megabytes(way.value)} MB)"


def _what(found: Candidate | Way) -> str:
    return f"{found.file_type} with a {found.cache_type} cache"


def _short(source: str) -> str:
    return source.split(". ")[0].split("; ")[0].split(" (")[0].rstrip(".")


def megabytes(size_bytes: float) -> str:
    """A size in MB: whole ones from 100 up."""
    size = size_bytes / 1e6
    return f"{size:,.0f}" if size >= 100 else f"{size:.1f}"


def figure(value: float) -> str:
    """A number to about three digits."""
    return f"{value:,.0f}" if value >= 100 else f"{value:.1f}" if value >= 1 else f"{value:.2g}"
