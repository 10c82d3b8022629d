"""Predicted beside measured: `python -m tests.benchmarks.fit FILE.gguf... [--contexts 512,2048] [--repeats 3]`.

Each file is run in a small fresh process with each context, filled to its end, and each type of cache; the machine is
probed in between, so that both see the same neighbours. Printed are predicted over measured: peak resident memory,
tokens per second behind the full context, and the time of the prompt that fills it. On a machine that is not idle two
threads wait for one another; --one-thread measures one, in seconds of the processor.
"""

import argparse
import itertools
from pathlib import Path

from export.device.alone import Ran, RunSettings, run
from export.device.budget import Limits, fit
from export.device.probing import CONTEXT_TOKENS, one_pass, profile_of, undisturbed
from export.device.profile import CACHE_TYPES
from export.hardware import available_cores
from finetune.fitting import BATCH_TOKENS, model_of_file

NEW_TOKENS = 12


def main() -> None:
    """One line for each file, context and type of cache."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("files", nargs="+", type=Path)
    parser.add_argument("--contexts", default="512,2048")
    parser.add_argument("--caches", default="f16,q8_0")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--one-thread", action="store_true", help="on one thread, by the processor's clock")
    parsed = parser.parse_args()
    settings = RunSettings(
        context_tokens=CONTEXT_TOKENS,
        threads=1 if parsed.one_thread else available_cores(),
        clock="processor" if parsed.one_thread else "wall",
        batch_tokens=BATCH_TOKENS,
    )
    contexts = [int(text) for text in parsed.contexts.split(",")]
    cases = list(itertools.product(parsed.files, contexts, parsed.caches.split(",")))
    assert all(kind in CACHE_TYPES for _, _, kind in cases)
    models = {(path, n): model_of_file(path, Limits(context_tokens=n)) for path, n, _ in cases}
    types = {t.stored_as for m in models.values() for t in m.plan("").tensors} - {"f32", "q8_0"}
    passes, runs = [], {case: [] for case in cases}
    for _ in range(parsed.repeats):
        passes.append(
            one_pass(["q8_0", *sorted(types)], settings.model_copy(update={"context_tokens": CONTEXT_TOKENS}))
        )
        for case in cases:
            runs[case].append(_run(*case, settings))
    device = profile_of(passes, settings.threads)
    rates = ", ".join(f"{name} {rate.decode_bytes_per_second / 1e9:.1f}" for name, rate in device.rates.items())
    print(f"{device.title}; GB/s: {rates}; {device.token_seconds.value * 1e6:.0f} µs a layer")
    for path, context, cache in cases:
        filled = context - NEW_TOKENS
        limits = Limits(context_tokens=context, prompt_tokens=filled)
        predicted = fit(models[path, context], device, limits, types=[""], caches=[cache]).candidates[0]
        _print(path, context, cache, predicted, runs[path, context, cache])


def _run(path: Path, context: int, cache: str, settings: RunSettings) -> Ran:
    settings = settings.model_copy(update={"context_tokens": context, "cache_type": cache})
    return run(path, settings, prompt_tokens=context - NEW_TOKENS, new_tokens=NEW_TOKENS)


def _print(path: Path, context: int, cache: str, predicted, runs: list[Ran]) -> None:
    peak = max(ran.peak_bytes for ran in runs)
    speed = 1 / undisturbed(second for ran in runs for second in ran.token_seconds)
    prompt = undisturbed(ran.prompt_seconds for ran in runs)
    told = predicted.speed
    print(
        f"{path.stem:14} {context:5} {cache:5} memory {predicted.memory.peak_bytes / 1e6:7.1f} MB, measured "
        f"{peak / 1e6:7.1f} ({predicted.memory.peak_bytes / peak:.3f}); tokens/s {told.tokens_per_second:7.1f}, "
        f"measured {speed:7.1f} ({told.tokens_per_second / speed:.2f}); prompt {told.first_token_seconds:6.2f} s, "
        f"measured {prompt:6.2f} ({told.first_token_seconds / prompt:.2f})",
        flush=True,
    )


if __name__ == "__main__":
    main()
