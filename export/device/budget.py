"""Which files of a model fit a device, what each would take, and what would do where none fits.

A prediction has an error, and so has the verdict: what fits even with it `fits`, what does not fit even without it
`does not`, and between the two it `may`. Nothing is quantized or loaded.
"""

from collections.abc import Callable, Iterable, Sequence
from typing import Literal, NamedTuple

from pydantic import Field

from export.device.cache import CACHE_STEP_TOKENS
from export.device.memory import MEMORY_ERROR_SHARE, ContextNeeds, Memory, peak_memory
from export.device.profile import CacheType, DeviceProfile
from export.device.sizes import PlannedFile
from export.device.speed import ModelShape, Speed, predicted_speed
from export.frozen import Frozen

Verdict = Literal["fits", "may", "does not"]
Constraint = Literal["memory", "tokens per second"]
_ORDER: tuple[Verdict, ...] = ("fits", "may", "does not")


class Limits(Frozen):
    """What is asked: a context to hold, tokens per second with it full, and the length of a typical prompt."""

    context_tokens: int = Field(ge=1)
    min_tokens_per_second: float | None = Field(default=None, gt=0)
    prompt_tokens: int = Field(default=256, ge=1)


class Candidate(Frozen):
    """A file with one type of cache on the device."""

    file_type: str
    cache_type: CacheType
    context_tokens: int
    size_bytes: int
    bits_per_weight: float
    memory: Memory
    speed: Speed
    memory_verdict: Verdict
    speed_verdict: Verdict

    @property
    def verdict(self) -> Verdict:
        """The worse of the two."""
        return max(self.memory_verdict, self.speed_verdict, key=_ORDER.index)


class Way(Frozen):
    """A budget that would do: what would have to change, and to what; `file_type` is what would fit then."""

    change: Literal["context", "memory", "tokens per second", "file type"]
    value: float
    file_type: str
    cache_type: CacheType


class Fit(Frozen):
    """What fits. Where nothing does, `binding` names what stands in the way, and `ways` what would do."""

    usable_bytes: int
    limits: Limits
    candidates: tuple[Candidate, ...]
    binding: tuple[Constraint, ...]
    ways: tuple[Way, ...]

    @property
    def verdict(self) -> Verdict:
        """The best of the candidates'."""
        return min((candidate.verdict for candidate in self.candidates), key=_ORDER.index)


class Model(NamedTuple):
    """A model as the arithmetic needs it: its shape, its files by type, and what each context needs."""

    shape: ModelShape
    plan: Callable[[str], PlannedFile]
    needs: dict[int, ContextNeeds]


def contexts_to_try(context_tokens: int) -> list[int]:
    """The context that was asked for, and those that are looked at where it does not fit: halves of it, in steps."""
    tried = [context_tokens]
    while (half := tried[-1] // 2 // CACHE_STEP_TOKENS * CACHE_STEP_TOKENS) >= CACHE_STEP_TOKENS:
        tried.append(half)
    return tried


def fit(
    model: Model,
    device: DeviceProfile,
    limits: Limits,
    *,
    types: Sequence[str],
    caches: Sequence[CacheType],
    other_types: Iterable[str] = (),
) -> Fit:
    """Every file type with every type of cache; `other_types` are looked at only where none of those fits.

    `model.needs` must hold the contexts of `contexts_to_try`. Raises ExportError where a type cannot be planned.
    """

    def candidates(names: Iterable[str], asked: Limits) -> list[Candidate]:
        return [_candidate(model, model.plan(name), device, asked, kind) for name in names for kind in caches]

    found = candidates(types, limits)
    result = Fit(
        usable_bytes=round(device.usable_memory_bytes.value),
        limits=limits,
        candidates=tuple(found),
        binding=(),
        ways=(),
    )
    if result.verdict != "does not":
        return result
    shorter = (
        candidates(types, limits.model_copy(update={"context_tokens": tokens}))
        for tokens in contexts_to_try(limits.context_tokens)[1:]
    )
    others = candidates([name for name in other_types if name not in types], limits)
    ways = (_shorter_context(shorter), *_more_memory(found), *_slower(found), _other_type(others))
    return result.model_copy(update={"binding": _binding(found), "ways": tuple(way for way in ways if way)})


def _candidate(
    model: Model, file: PlannedFile, device: DeviceProfile, limits: Limits, cache_type: CacheType
) -> Candidate:
    memory = peak_memory(file, model.shape.cache, model.needs[limits.context_tokens], cache_type, device)
    speed = predicted_speed(
        file.tensors,
        model.shape,
        device,
        cache_type=cache_type,
        cached_tokens=limits.context_tokens,
        prompt_tokens=limits.prompt_tokens,
    )
    return Candidate(
        file_type=file.file_type,
        cache_type=cache_type,
        context_tokens=limits.context_tokens,
        size_bytes=file.size_bytes,
        bits_per_weight=file.bits_per_weight,
        memory=memory,
        speed=speed,
        memory_verdict=_within(memory.needed_bytes, MEMORY_ERROR_SHARE, device.usable_memory_bytes.value),
        speed_verdict=_fast_enough(speed, limits.min_tokens_per_second),
    )


def _within(size: float, error_share: float, limit: float) -> Verdict:
    if size * (1 + error_share) <= limit:
        return "fits"
    return "may" if size * (1 - error_share) <= limit else "does not"


def _fast_enough(speed: Speed, least: float | None) -> Verdict:
    if least is None or speed.tokens_per_second * (1 - speed.tokens_error_share) >= least:
        return "fits"
    return "may" if speed.tokens_per_second * (1 + speed.tokens_error_share) >= least else "does not"


def _binding(found: Sequence[Candidate]) -> tuple[Constraint, ...]:
    """What no file keeps; both where each is kept by some, and by none together."""
    memory = all(candidate.memory_verdict == "does not" for candidate in found)
    speed = all(candidate.speed_verdict == "does not" for candidate in found)
    both: tuple[Constraint, ...] = ("memory", "tokens per second")
    return both if memory == speed else both[:1] if memory else both[1:]


def _shorter_context(shorter: Iterable[list[Candidate]]) -> Way | None:
    """The longest context of which something fits, its error included."""
    for candidates in shorter:
        if fitting := [candidate for candidate in candidates if candidate.verdict == "fits"]:
            return _way("context", fitting[0], fitting[0].context_tokens)
    return None


def _more_memory(found: Sequence[Candidate]) -> list[Way]:
    """The least memory with which something fits for certain."""
    fast = [candidate for candidate in found if candidate.speed_verdict == "fits"]
    least = min(fast, key=lambda candidate: candidate.memory.needed_bytes, default=None)
    return [_way("memory", least, least.memory.needed_bytes * (1 + MEMORY_ERROR_SHARE))] if least else []


def _slower(found: Sequence[Candidate]) -> list[Way]:
    """The most tokens per second that can be had for certain within the memory."""
    held = [candidate for candidate in found if candidate.memory_verdict == "fits"]
    fastest = max(held, key=_least_speed, default=None)
    if fastest is None or fastest.speed_verdict == "fits":
        return []
    return [_way("tokens per second", fastest, _least_speed(fastest))]


def _other_type(others: Sequence[Candidate]) -> Way | None:
    """The largest file of another type that fits."""
    fitting = [candidate for candidate in others if candidate.verdict == "fits"]
    best = max(fitting, key=lambda candidate: candidate.size_bytes, default=None)
    return _way("file type", best, best.size_bytes) if best else None


def _least_speed(candidate: Candidate) -> float:
    return candidate.speed.tokens_per_second * (1 - candidate.speed.tokens_error_share)


def _way(
    change: Literal["context", "memory", "tokens per second", "file type"], candidate: Candidate, value: float
) -> Way:
    return Way(change=change, value=value, file_type=candidate.file_type, cache_type=candidate.cache_type)
