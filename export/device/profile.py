"""What a device is to a model: memory, bandwidth, arithmetic, runtimes. Every figure names where it is from.

Profiles are data (YAML in `devices/`); reading them, and finding one by its name, is left to `finetune.devices`.
"""

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from export.frozen import Frozen

RuntimeFormat = Literal["gguf", "gptq"]
# What llama.cpp can store keys and values in, and `fit` compares.
CacheType = Literal["f16", "q8_0", "q4_0"]
CACHE_TYPES: tuple[CacheType, ...] = ("f16", "q8_0", "q4_0")

Share = Annotated[float, Field(gt=0, lt=1)]


class Figure(Frozen):
    """A number, in the unit that its key names, and where it is from."""

    value: float = Field(gt=0)
    source: str = Field(min_length=1)


class TypeRate(Frozen):
    """What one tensor type reaches on this device, where it was measured."""

    decode_bytes_per_second: float = Field(gt=0)
    prefill_flops_per_second: float = Field(gt=0)


class CacheRate(Frozen):
    """What attention reaches on one type of cache, where it was measured: keys and values attended to in a second.

    Counted for each head of the queries. On a processor that is what attention costs, and not the cache's bytes: heads
    that share keys each go through them, and rounded ones are unpacked every time.
    """

    token_values_per_second: float = Field(gt=0)
    prompt_values_per_second: float = Field(gt=0)


class DeviceProfile(Frozen):
    """A device. Keys that end in `_bytes`, `_bytes_per_second` or `_flops_per_second` say their unit."""

    title: str = Field(min_length=1, description="What the device is called.")
    processor: str = Field(min_length=1, description="What computes, with its cores.")
    formats: tuple[RuntimeFormat, ...] = Field(min_length=1, description="Formats that a runtime on it can load.")
    memory_bytes: Figure = Field(description="Memory that is built in.")
    usable_memory_bytes: Figure = Field(description="What the system leaves to one program.")
    bandwidth_bytes_per_second: Figure = Field(description="Memory bandwidth by the maker's word.")
    decode_bytes_per_second: Figure = Field(
        description="Bytes of weights and cache that llama.cpp gets through in a second, a token at a time."
    )
    prefill_flops_per_second: Figure = Field(
        description="Floating-point operations in a second that llama.cpp reaches on a prompt."
    )
    token_seconds: Figure = Field(
        default=Figure(value=1e-6, source="none known: next to nothing"),
        description="What a layer adds to a token's time whatever its size: its operations are started one by one.",
    )
    runtime_bytes: Figure = Field(
        default=Figure(value=56_000_000, source="a Python process with llama-cpp-python on x86-64 Linux, measured"),
        description="Memory of the process that runs the model, before it has one.",
    )
    packs: tuple[str, ...] = Field(
        default=(),
        description="Tensor types that llama.cpp packs anew for this processor, so that they are in memory twice.",
    )
    weights: Literal["mapped", "copied"] = Field(
        default="mapped",
        description="Whether weights are run from the mapped file, or copied to memory of the accelerator's.",
    )
    rates: dict[str, TypeRate] = Field(default={}, description="Tensor types that were measured here one by one.")
    cache_rates: dict[CacheType, CacheRate] = Field(default={}, description="Types of cache that were measured here.")
    busy_processors: float = Field(
        default=0.0,
        ge=0,
        description="Processors that other programs used while the machine was measured: what they took, it has not.",
    )
    decode_error_share: Share = Field(default=0.25, description="Error of a predicted speed, as a share.")
    prefill_error_share: Share = Field(default=0.5, description="Error of a predicted first token, as a share.")

    @model_validator(mode="after")
    def _no_more_than_there_is(self) -> Self:
        for part, whole in (
            ("usable_memory_bytes", "memory_bytes"),
            ("decode_bytes_per_second", "bandwidth_bytes_per_second"),
        ):
            found, most = getattr(self, part).value, getattr(self, whole).value
            if found > most:
                raise ValueError(f"{part} is {found:,.0f}, more than {whole} has: {most:,.0f}")
        return self

    def decode_rate(self, stored_as: str) -> float:
        """Bytes per second of a tensor type: as it was measured, else as the device's."""
        measured = self.rates.get(stored_as)
        return self.decode_bytes_per_second.value if measured is None else measured.decode_bytes_per_second

    def prefill_rate(self, stored_as: str) -> float:
        """Floating-point operations per second on a tensor type: as it was measured, else as the device's."""
        measured = self.rates.get(stored_as)
        return self.prefill_flops_per_second.value if measured is None else measured.prefill_flops_per_second
