"""What an artifact costs: bytes on disk, memory, and time per token on the machine that measured it."""

from export.checks._base import Check, Items, Measurement, Observation, measurement

_ONE_FACT = "a fact about one file, not an estimate: it has no standard error"
_ONE_RUN = "one run on the machine that made this report: no standard error"
_WHOLE_PROCESS = "the whole measuring process: runtime, weights, cache, scoring buffers, stored reference predictions"
# What the engines' seconds contain (`export.engines.Generation`).
_TIMED: dict[str, str] = {"hf": "reading the prompt included", "llama_cpp": "decoding only"}


class Resources(Check):
    """Size of the weights on disk, peak memory of the process that ran them, and single-stream decoding speed."""

    def measure(self, work: Items, seen: Observation) -> tuple[Measurement, ...]:
        """Size and memory in bytes, speed in tokens per second (mean over the timed rows)."""
        device = ", and on a CUDA device torch's peak there" if seen.engine == "hf" else ""
        memory_note = f"{_WHOLE_PROCESS}{device}; {_ONE_RUN}"
        speeds = [[value] for value in seen.tokens_per_second]
        return (
            self._fact(seen, "size_bytes", seen.size_bytes, _ONE_FACT),
            self._fact(seen, "peak_memory_bytes", seen.peak_memory_bytes, memory_note),
            measurement(
                "tokens_per_second",
                seen.subject,
                speeds,
                unit="tokens/s",
                higher_is_better=True,
                note=_TIMED.get(seen.engine, ""),
            ),
        )

    @staticmethod
    def _fact(seen: Observation, check: str, value: int, note: str) -> Measurement:
        return Measurement(
            check=check,
            subject=seen.subject,
            value=value,
            stderr=None,
            n=1,
            unit="bytes",
            higher_is_better=False,
            note=note,
        )


step = Resources
