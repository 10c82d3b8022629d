"""The peak resident memory of the process that runs a file, from its parts.

Counted is what Linux counts as resident: pages of the mapped file too, which every token reads again. Tensors that
llama.cpp packs anew for the processor are in memory twice where the file is mapped; the mapped ones are not read again,
and Linux drops them where memory is short. So a device needs less than the peak that is seen where memory is plenty.
Work buffers of single operations, a few megabytes, are left out.
"""

from collections.abc import Sequence
from pathlib import Path

from export.device.alone import Reservations, RunSettings, reserve
from export.device.cache import CacheShape
from export.device.profile import CACHE_TYPES, CacheType, DeviceProfile
from export.device.sizes import PlannedFile, PlannedTensor
from export.frozen import Frozen

_EMBEDDING, _OUTPUT = "token_embd.weight", "output.weight"
# llama.cpp packs rows in fours or eights; a matrix that these do not divide is left as it is
_PACKED_ROWS = 8
# Peak memory was within this share of what was measured: tests/benchmarks/fit.py.
MEMORY_ERROR_SHARE = 0.1


class Memory(Frozen):
    """Memory by its parts, in bytes. `dropped_bytes` are mapped pages of weights that were packed anew."""

    runtime_bytes: int
    vocabulary_bytes: int
    weight_bytes: int
    cache_bytes: int
    compute_bytes: int
    dropped_bytes: int

    @property
    def needed_bytes(self) -> int:
        """What the device must have."""
        return self.peak_bytes - self.dropped_bytes

    @property
    def peak_bytes(self) -> int:
        """The peak resident memory where there is plenty."""
        return sum(getattr(self, part) for part in type(self).model_fields)


class ContextNeeds(Frozen):
    """What llama.cpp reserves for one context with each type of cache, and for the vocabulary; alike for all files."""

    context_tokens: int
    vocabulary_bytes: int
    reserved_bytes: dict[CacheType, int]


def context_needs(source: Path, contexts: Sequence[int], batch_tokens: int) -> dict[int, ContextNeeds]:
    """What each context of `source`, which may be a skeleton, would take. Raises EngineError as `alone.reserve`."""
    asked = [(tokens, kind) for tokens in contexts for kind in CACHE_TYPES]
    settings = [RunSettings(context_tokens=t, cache_type=kind, batch_tokens=batch_tokens) for t, kind in asked]
    told: Reservations = reserve(source, settings)
    sizes = dict(zip(asked, (each.compute_bytes + each.output_bytes for each in told.each), strict=True))
    return {
        tokens: ContextNeeds(
            context_tokens=tokens,
            vocabulary_bytes=told.vocabulary_bytes,
            reserved_bytes={kind: sizes[tokens, kind] for kind in CACHE_TYPES},
        )
        for tokens in contexts
    }


def peak_memory(
    file: PlannedFile, shape: CacheShape, needs: ContextNeeds, cache_type: CacheType, device: DeviceProfile
) -> Memory:
    """The peak memory of a file on a device, its context filled to the end."""
    packs = frozenset(device.packs)
    is_mapped = device.weights == "mapped"
    # a tied embedding that is packed as the output matrix is kept as it was too: copied, it cannot be dropped
    twice = 0 if is_mapped else _packed_embedding(file.tensors, packs)
    return Memory(
        runtime_bytes=round(device.runtime_bytes.value),
        vocabulary_bytes=needs.vocabulary_bytes,
        weight_bytes=file.weight_bytes + twice,
        cache_bytes=shape.cache_bytes(needs.context_tokens, cache_type),
        compute_bytes=needs.reserved_bytes[cache_type],
        dropped_bytes=packed_bytes(file.tensors, packs) if is_mapped else 0,
    )


def packed_bytes(tensors: Sequence[PlannedTensor], packs: frozenset[str]) -> int:
    """Bytes of the matrices that are packed anew where a processor packs these types."""
    blocks = sum(t.size_bytes for t in tensors if t.name != _EMBEDDING and _is_packed(t, packs))
    return blocks + _packed_embedding(tensors, packs)


def output_of(tensors: Sequence[PlannedTensor]) -> PlannedTensor:
    """The output matrix: the token embedding where the two are one."""
    by_name = {tensor.name: tensor for tensor in tensors}
    return by_name.get(_OUTPUT, by_name[_EMBEDDING])


def _packed_embedding(tensors: Sequence[PlannedTensor], packs: frozenset[str]) -> int:
    """A tied embedding is packed as the output matrix, and kept as it is for looking tokens up."""
    output = output_of(tensors)
    return output.size_bytes if output.name == _EMBEDDING and _is_packed(output, packs) else 0


def _is_packed(tensor: PlannedTensor, packs: frozenset[str]) -> bool:
    return tensor.stored_as in packs and tensor.rows % _PACKED_ROWS == 0 and tensor.rows > 1
