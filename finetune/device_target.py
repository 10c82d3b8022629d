"""A device's limits as a number of bytes: what `export.target` may spend on a file that has to run there.

The arithmetic is `export.device`'s, with its errors taken off, so that what is found fits for certain by it.
Which types the bytes are then spent on is `export.search`'s.
"""

from collections.abc import Callable, Sequence
from pathlib import Path

from export.artifacts import StageResult
from export.device.budget import Limits, Model
from export.device.memory import MEMORY_ERROR_SHARE, peak_memory
from export.device.profile import CacheType, DeviceProfile
from export.device.speed import multiplied, token_seconds
from export.errors import RecipeError
from export.formats.target import Target, least_tensor_bytes
from export.readers.gguf import read_gguf
from export.stage import read_manifest
from finetune.devices import THIS_MACHINE, find_device
from finetune.fitting import model_of_sixteen_bit, sixteen_bit_header

# Quantized keys are seldom told from 16-bit ones, and yet are no gift: they are taken where they leave so much more.
_WORTH_A_SMALLER_CACHE = 1.02
_CACHES: tuple[CacheType, ...] = ("f16", "q8_0")
# Sizes beside the weights are told by this plan: they are the same for all types but for what is packed twice.
_PLAN = "q8_0"


class DeviceBudget(StageResult):
    """How large a file may be on a device, by each constraint, with one type of cache; `bits_per_weight` it would have.

    `by_speed_bytes` is None where no speed was asked for. A stage of its own: what a vocabulary takes, and this machine
    where it is the device, are measured, and would come out a little different each time.
    """

    device: str
    context_tokens: int
    cache_type: CacheType
    by_memory_bytes: int
    by_speed_bytes: int | None
    bits_per_weight: float

    @property
    def size_bytes(self) -> int:
        """The tighter of the two."""
        return self.by_memory_bytes if self.by_speed_bytes is None else min(self.by_memory_bytes, self.by_speed_bytes)

    @property
    def binding(self) -> str:
        """Which constraint that is."""
        return "memory" if self.size_bytes == self.by_memory_bytes else "tokens per second"

    def sentence(self) -> str:
        """The budget in words."""
        speed = "" if self.by_speed_bytes is None else f", {self.by_speed_bytes / 1e6:,.1f} MB by its speed"
        if self.size_bytes <= 0:
            return (
                f"{self.device} has no room for any file: {-self.size_bytes / 1e6:,.1f} MB are lacking before there is "
                f"one, with {self.context_tokens:,} tokens in a {self.cache_type} cache; {self.binding} binds"
            )
        return (
            f"{self.device} leaves {self.by_memory_bytes / 1e6:,.1f} MB for the file by its memory{speed}, errors of "
            f"the predictions taken off: {self.size_bytes / 1e6:,.1f} MB ({self.bits_per_weight:.2f} bits per weight), "
            f"with {self.context_tokens:,} tokens in a {self.cache_type} cache; {self.binding} binds"
        )


def budget_folder(run: Path, variant: str) -> Path:
    """Where a run keeps what a target's device leaves for a variant."""
    return run / "target" / variant


def room_of(run: Path, subject: str) -> DeviceBudget | None:
    """What a run's file was sized for, by its name in the report; None for one that no device was named for."""
    folder = budget_folder(run, subject.replace("/", "-"))
    manifest = read_manifest(folder)
    return None if manifest is None else DeviceBudget.model_validate({**manifest.result, "folder": folder})


def limits_of(step: Target) -> Limits:
    """What a target asks of its device."""
    return Limits(context_tokens=step.context_tokens, min_tokens_per_second=step.min_tokens_per_second)


def require_room(step: Target, model: Path, say: Callable[[str], None]) -> None:
    """Whether some mix of the model in this folder can meet the target, by its dimensions alone.

    This machine as the device is measured when it comes to that. Raises RecipeError where nothing could be made.
    """
    if step.device == THIS_MACHINE:
        return
    with sixteen_bit_header(model, say) as header:
        content = read_gguf(header)
        sixteen_bit_header_bytes = min(tensor.offset for tensor in content.tensors)
        asked = step.bytes_asked(sixteen_bit_header_bytes, sum(tensor.weights for tensor in content.tensors))
        if asked is None:
            device = find_device(str(step.device), say)
            asked = device_budget(header, device, limits_of(step), model, types=step.types).size_bytes
    if (least := step.least_bytes(content)) > asked:
        raise RecipeError(
            f"export.target: {asked:,} bytes are asked for, and with every tensor in its smallest candidate type the "
            f"file has {least:,} or more. Ask for more bytes, name smaller types, or take a smaller model."
        )


def device_budget(
    source: Path, device: DeviceProfile, limits: Limits, folder: Path, *, types: Sequence[str]
) -> DeviceBudget:
    """The bytes that the 16-bit file `source` may become on the device, of `types`; `folder` is the stage's.

    Raises RecipeError where nothing is left for a file, with the constraint that takes it, and what each type of cache
    would leave.
    """
    if "gguf" not in device.formats:
        raise RecipeError(
            f"export.target.device: {device.title} runs {' and '.join(device.formats)} only, and no GGUF."
        )
    model = model_of_sixteen_bit(source, limits)
    plain, *smaller = (_with_cache(model, device, limits, kind, folder, types) for kind in _CACHES)
    best = max((plain, *smaller), key=lambda budget: budget.size_bytes)
    if best.size_bytes <= plain.size_bytes * _WORTH_A_SMALLER_CACHE:
        best = plain
    if best.size_bytes <= 0:
        raise RecipeError(
            f"export.target: {best.sentence()}. Ask for a shorter context_tokens or fewer "
            "min_tokens_per_second, or look at `fieldtune fit`, which tells what would do."
        )
    return best


def _with_cache(
    model: Model, device: DeviceProfile, limits: Limits, cache_type: CacheType, folder: Path, types: Sequence[str]
) -> DeviceBudget:
    plan = model.plan(_PLAN)
    needs = model.needs[limits.context_tokens]
    # a bundle's client reads the file into memory; which type the embedding will have is not known yet
    copied = device.model_copy(update={"weights": "copied", "packs": (_PLAN,) if device.packs else ()})
    beside = peak_memory(plan, model.shape.cache, needs, cache_type, copied).needed_bytes - plan.weight_bytes
    by_memory = device.usable_memory_bytes.value / (1 + MEMORY_ERROR_SHARE) - beside + plan.header_bytes
    by_speed = _by_speed(model, device, limits, cache_type, types)
    size = by_memory if by_speed is None else min(by_memory, by_speed)
    weights = sum(tensor.weights for tensor in plan.tensors)
    return DeviceBudget(
        folder=folder,
        device=device.title,
        context_tokens=limits.context_tokens,
        cache_type=cache_type,
        by_memory_bytes=int(by_memory),
        by_speed_bytes=None if by_speed is None else int(by_speed),
        bits_per_weight=max(0.0, size - plan.header_bytes) * 8 / weights,
    )


def _by_speed(
    model: Model, device: DeviceProfile, limits: Limits, cache_type: CacheType, types: Sequence[str]
) -> float | None:
    """Bytes of a file whose tokens come fast enough, by the slowest rate of the types that were measured.

    An embedding that is only looked up costs no time, and the search may take from it for what every token reads: it is
    counted as small as it can become.
    """
    if limits.min_tokens_per_second is None:
        return None
    plan = model.plan(_PLAN)
    read = multiplied(plan.tensors)
    shares = {tensor.name: model.shape.read_share(tensor) * tensor.size_bytes for tensor in read}
    weights_seconds = sum(shares[tensor.name] / device.decode_rate(tensor.stored_as) for tensor in read)
    whole = token_seconds(plan.tensors, model.shape, device, cache_type=cache_type, cached_tokens=limits.context_tokens)
    allowed = (1 - device.decode_error_share) / limits.min_tokens_per_second - (whole - weights_seconds)
    rates = [rate.decode_bytes_per_second for rate in device.rates.values()]
    slowest = min([device.decode_bytes_per_second.value, *rates])
    held = sum(tensor.size_bytes for tensor in read)
    looked_up = [tensor for tensor in plan.tensors if tensor.name not in shares]
    spared = sum(tensor.size_bytes - least_tensor_bytes(tensor, types) for tensor in looked_up)
    return plan.size_bytes - spared - held + allowed * slowest * held / sum(shares.values())
