"""Measures the machine it runs on: llama.cpp itself runs a model without knowledge, tensor type by tensor type.

A stream of plain reads would tell the memory's bandwidth, and not what llama.cpp's kernels get of it: on few cores most
types are limited by unpacking, and differ by factors. The models are skeletons, whose weights read as zeros; kernels
take the same time for any values. Repeats are interleaved, since other programs may run.
"""

import statistics
import tempfile
import time
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

from export.device import skeleton
from export.device.alone import Ran, RunSettings, run
from export.device.profile import CACHE_TYPES, CacheRate, CacheType, DeviceProfile, Figure, TypeRate
from export.device.skeleton import Shape
from export.hardware import BUSY_SHARE, available_cores, busy_processors, environment
from export.readers.gguf import block_size

# What llama.cpp's file types are made of; the device's own figures are those of the first.
PROBED_TYPES = (
    *("q8_0", "f16", "q6_k", "q5_k", "q5_1", "q5_0", "q4_k", "q4_1", "q4_0", "iq4_nl", "iq4_xs"),
    *("q3_k", "iq3_s", "q2_k"),
)
REPEATS = 3
CONTEXT_TOKENS = 512
_LAYERS, _HEAD_SIZE, _VOCABULARY = 6, 64, 512
# Larger than a processor's caches in every type; and so small that starting its operations is most of its time.
_LARGE, _SMALL = (1024, 4096), (64, 64)
_SMALL_MODEL = "small"
# Attention is most of the time of narrow layers with many heads behind a long text.
_ATTENDING_HEADS, _KEY_HEADS, _ATTENDED_TOKENS = 8, 2, 1024
# Models that are not to measure attention have little of it; rows of 4 heads still fill a block of 256 weights.
_FEW_HEADS, _FEW_TOKENS = 4, 16
_UNATTENDED = "attention of nothing"
_PROMPT_TOKENS, _NEW_TOKENS = 256, 16
_COPIED_BYTES = 1 << 28


def probe(say: Callable[[str], None], *, types: Sequence[str] = PROBED_TYPES, repeats: int = REPEATS) -> DeviceProfile:
    """The profile of this machine. Raises EngineError where llama.cpp cannot run here.

    `say` hears it where others use the processors: what is measured then is too slow, and no error says by how much.
    """
    settings = RunSettings(context_tokens=CONTEXT_TOKENS, threads=available_cores())
    passes = []
    is_busy = (busy := busy_processors()) > BUSY_SHARE * settings.threads
    if is_busy:
        say(
            f"this machine is not idle: {busy:.1f} of {settings.threads} processors were in use over the last minute. "
            "What is measured will be too slow: let it rest, and probe again"
        )
    for repeat in range(repeats):
        say(f"probing, {repeat + 1} of {repeats}: {', '.join(types)}")
        passes.append(one_pass(types, settings))
    found = profile_of(passes, settings.threads)
    return found.model_copy(update={"busy_processors": round(busy, 1)}) if is_busy else found


def one_pass(types: Sequence[str], settings: RunSettings) -> dict[str, Ran]:
    """A run of each type, by its name, and of the small model; `settings` need CONTEXT_TOKENS. Raises EngineError."""
    with tempfile.TemporaryDirectory(prefix="fieldtune-") as folder:
        path = Path(folder) / "model.gguf"
        runs = {}
        for name in (_SMALL_MODEL, *types):
            write_model(path, "f16" if name == _SMALL_MODEL else name, *(_SMALL if name == _SMALL_MODEL else _LARGE))
            prompt = _FEW_TOKENS if name == _SMALL_MODEL else _PROMPT_TOKENS
            runs[name] = run(path, settings, prompt_tokens=prompt, new_tokens=_NEW_TOKENS)
        write_model(path, "f16", *_SMALL, heads=_ATTENDING_HEADS, key_heads=_KEY_HEADS)
        runs[_UNATTENDED] = run(path, settings, prompt_tokens=_FEW_TOKENS, new_tokens=_NEW_TOKENS)
        for cache in CACHE_TYPES:
            update = {"context_tokens": _ATTENDED_TOKENS + _NEW_TOKENS, "cache_type": cache}
            longer = settings.model_copy(update=update)
            runs[_cached(cache)] = run(path, longer, prompt_tokens=_ATTENDED_TOKENS, new_tokens=_NEW_TOKENS)
    return runs


def _cached(cache: CacheType) -> str:
    """The name of the run that measures attention on a type of cache."""
    return f"attention {cache}"


def undisturbed(seconds: Iterable[float]) -> float:
    """The median of the faster half: other programs only ever make a run slower."""
    ordered = sorted(seconds)
    return float(statistics.median(ordered[: (len(ordered) + 1) // 2]))


def write_model(
    path: Path, stored_as: str, hidden: int, inner: int, *, heads: int = _FEW_HEADS, key_heads: int = _FEW_HEADS
) -> None:
    """Writes a skeleton of the Qwen3 architecture with all matrices of one type, and no vocabulary to speak of."""
    metadata: dict[str, Any] = {
        "qwen3.block_count": _LAYERS,
        "qwen3.context_length": CONTEXT_TOKENS,
        "qwen3.embedding_length": hidden,
        "qwen3.feed_forward_length": inner,
        "qwen3.attention.head_count": heads,
        "qwen3.attention.head_count_kv": key_heads,
        "qwen3.attention.key_length": _HEAD_SIZE,
        "qwen3.attention.value_length": _HEAD_SIZE,
        "qwen3.attention.layer_norm_rms_epsilon": 1e-6,
        "qwen3.vocab_size": _VOCABULARY,
        "tokenizer.ggml.model": "no_vocab",
    }
    matrices = _matrices(hidden, inner, heads * _HEAD_SIZE, key_heads * _HEAD_SIZE)
    skeleton.write(path, "qwen3", metadata, _tensors(stored_as, hidden, matrices))


def _tensors(stored_as: str, hidden: int, matrices: list[tuple[str, tuple[int, int]]]) -> list[Shape]:
    embeddings = [Shape(name, "f16", (_VOCABULARY, hidden)) for name in ("token_embd.weight", "output.weight")]
    blocks = []
    for layer in range(_LAYERS):
        vectors = [("attn_norm.weight", hidden), ("ffn_norm.weight", hidden)]
        vectors += [(f"attn_{part}_norm.weight", _HEAD_SIZE) for part in "qk"]
        blocks += [Shape(f"blk.{layer}.{name}", "f32", (size,)) for name, size in vectors]
        blocks += [Shape(f"blk.{layer}.{name}.weight", stored_as, size) for name, size in matrices]
    return [*embeddings, Shape("output_norm.weight", "f32", (hidden,)), *blocks]


def _matrices(hidden: int, inner: int, queries: int, keys: int) -> list[tuple[str, tuple[int, int]]]:
    """The matrices of a layer by their names, each by its rows and columns."""
    attention = [("attn_q", (queries, hidden)), ("attn_k", (keys, hidden)), ("attn_v", (keys, hidden))]
    attention.append(("attn_output", (hidden, queries)))
    return [*attention, ("ffn_gate", (inner, hidden)), ("ffn_up", (inner, hidden)), ("ffn_down", (hidden, inner))]


def profile_of(passes: Sequence[dict[str, Ran]], threads: int) -> DeviceProfile:
    """The profile that passes over the same types, on so many threads, measured."""
    here = environment()
    runs = {name: [each[name] for each in passes] for name in passes[0]}
    small = runs.pop(_SMALL_MODEL)
    unattended = undisturbed(second for ran in runs.pop(_UNATTENDED) for second in ran.token_seconds)
    attending = {cache: runs.pop(_cached(cache)) for cache in CACHE_TYPES}
    token_seconds = undisturbed(second for ran in small for second in ran.token_seconds) / _LAYERS
    rates = {name: _rate(name, of_type, token_seconds * _LAYERS) for name, of_type in runs.items()}
    first, own = next(iter(rates.items()))
    measured = f"measured with llama-cpp-python {here.packages['llama-cpp-python']} on {threads} threads"
    copied = max(_copy_rate(), *(rate.decode_bytes_per_second for rate in rates.values()))
    usable, usable_source = usable_memory()
    return DeviceProfile(
        title=f"this machine ({here.processor}, {threads} cores)",
        processor=f"{here.processor}, {threads} cores",
        formats=("gguf", "gptq"),
        memory_bytes=Figure(value=here.memory_bytes, source="the system's word"),
        usable_memory_bytes=Figure(value=usable, source=usable_source),
        bandwidth_bytes_per_second=Figure(value=copied, source="the fastest of a copy in memory and llama.cpp's reads"),
        decode_bytes_per_second=Figure(value=own.decode_bytes_per_second, source=f"{first}, {measured}"),
        prefill_flops_per_second=Figure(value=own.prefill_flops_per_second, source=f"{first}, {measured}"),
        token_seconds=Figure(value=token_seconds, source=f"a model of {_SMALL[0]} wide layers, {measured}"),
        runtime_bytes=Figure(value=small[0].start_bytes, source="a process with llama-cpp-python, measured"),
        packs=tuple(name for name, of_type in runs.items() if any(ran.packed_bytes for ran in of_type)),
        rates=rates,
        cache_rates={cache: _cache_rate(of_type, unattended) for cache, of_type in attending.items()},
    )


def _cache_rate(runs: Sequence[Ran], unattended_seconds: float) -> CacheRate:
    """What attention reaches: keys and values of each head of the queries, half of them in the mean of a prompt.

    `unattended_seconds` is a token of the same model with next to nothing to attend to.
    """
    values = 2 * _LAYERS * _ATTENDING_HEADS * _HEAD_SIZE * _ATTENDED_TOKENS
    token = undisturbed(second for ran in runs for second in ran.token_seconds)
    prompt = undisturbed(ran.prompt_seconds for ran in runs)
    return CacheRate(
        token_values_per_second=values / max(token - unattended_seconds, token / 2),
        prompt_values_per_second=values * _ATTENDED_TOKENS / 2 / prompt,
    )


def _rate(stored_as: str, runs: Sequence[Ran], overhead_seconds: float) -> TypeRate:
    """What a type reaches: bytes of a token, and operations of a prompt (2 for each weight and token)."""
    width = _FEW_HEADS * _HEAD_SIZE
    weights = _LAYERS * sum(rows * columns for _, (rows, columns) in _matrices(*_LARGE, width, width))
    block, block_bytes = block_size(stored_as)
    token = undisturbed(second for ran in runs for second in ran.token_seconds)
    prompt = undisturbed(ran.prompt_seconds for ran in runs)
    return TypeRate(
        decode_bytes_per_second=weights // block * block_bytes / max(token - overhead_seconds, token / 2),
        prefill_flops_per_second=2 * weights * _PROMPT_TOKENS / prompt,
    )


def usable_memory() -> tuple[int, str]:
    """The memory that one more program can have on this machine now, and whose word that is."""
    limit = Path("/sys/fs/cgroup/memory.max")
    available, said = environment().memory_bytes, "all that is built in: the system does not say what is free"
    status = Path("/proc/meminfo")
    if status.is_file():
        line = next(line for line in status.read_text(encoding="ascii").splitlines() if line.startswith("MemAvailable"))
        available, said = int(line.split()[1]) * 1024, "MemAvailable, when it was probed"
    text = limit.read_text(encoding="ascii").strip() if limit.is_file() else "max"
    if text.isdecimal() and int(text) < available:
        return int(text), "the limit of its control group"
    return available, said


def _copy_rate() -> float:
    """Bytes per second of a copy in memory, read and written, on one thread."""
    import numpy as np

    source = np.zeros(_COPIED_BYTES, dtype=np.uint8)
    source += 1  # pages of zeros that were never written are one page
    seconds = []
    target = source.copy()
    for _ in range(REPEATS):
        began = time.perf_counter()
        np.copyto(target, source)
        seconds.append(time.perf_counter() - began)
    return 2 * _COPIED_BYTES / undisturbed(seconds)
