"""Runs a GGUF file in a small fresh process, as a device would, or lets llama.cpp tell what a context would take.

What is measured is the process's own: its peak resident memory, and the seconds of prompt and tokens. The process is
`python -m export.device.alone REQUEST ANSWER`; llama.cpp aborts on some files, which must not end ours.
"""

import os
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal

from pydantic import Field

from export.device.profile import CacheType
from export.errors import EngineError, MachineError
from export.frozen import Frozen
from export.hardware import SHARES_CORES

_SAID = 600
# Tokens that are run: ids from the lower end of any vocabulary, in turns.
_FIRST_TOKEN, _DIFFERENT_TOKENS = 10, 300


class RunSettings(Frozen):
    """How a file is run. `batch_tokens` is how much of a prompt is computed at once (n_batch and n_ubatch).

    `weights`: mapped from the file, as llama.cpp does by default, or read into memory. `clock`: seconds that passed, or
    those of the processor, which on one thread are what an idle machine would take, whatever else runs.
    """

    context_tokens: int = Field(ge=1)
    cache_type: CacheType = "f16"
    batch_tokens: int = Field(default=512, ge=1)
    threads: int = Field(default=1, ge=1)
    weights: Literal["mapped", "copied"] = "mapped"
    clock: Literal["wall", "processor"] = "wall"


class Ran(Frozen):
    """What a run took: peak resident memory, mapped pages of the file included, and seconds.

    `start_bytes` is the process before it has a model; `packed_bytes` are weights that llama.cpp packed anew.
    `prompt_seconds` are those of the whole prompt, `token_seconds` those of each token behind it, in order.
    """

    start_bytes: int
    peak_bytes: int
    packed_bytes: int
    prompt_seconds: float
    token_seconds: tuple[float, ...]


class Reserved(Frozen):
    """Memory that llama.cpp reserves for a context besides the cache: for computing, and for what it puts out."""

    compute_bytes: int
    output_bytes: int


class _Run(Frozen):
    kind: Literal["run"] = "run"
    path: Path
    settings: RunSettings
    prompt_tokens: int
    new_tokens: int


class _Reserve(Frozen):
    kind: Literal["reserve"] = "reserve"
    path: Path
    settings: tuple[RunSettings, ...]


class _Request(Frozen):
    asked: _Run | _Reserve = Field(discriminator="kind")


class Reservations(Frozen):
    """What contexts of a file would take, and what the model takes besides its weights: its vocabulary, above all."""

    vocabulary_bytes: int
    each: tuple[Reserved, ...]


def run(path: Path, settings: RunSettings, *, prompt_tokens: int, new_tokens: int) -> Ran:
    """Runs a prompt of so many tokens and so many tokens one by one behind it.

    Raises EngineError, with llama.cpp's reason, when it refuses the file, and MachineError when the process ends
    otherwise, such as for want of memory.
    """
    asked = _Run(path=path, settings=settings, prompt_tokens=prompt_tokens, new_tokens=new_tokens)
    return Ran.model_validate_json(_ask(_Request(asked=asked), path))


def reserve(path: Path, settings: Sequence[RunSettings]) -> Reservations:
    """What llama.cpp would reserve for each of these contexts of a file, a skeleton too; nothing is allocated.

    Raises EngineError or MachineError as `run` does.
    """
    asked = _Reserve(path=path, settings=tuple(settings))
    return Reservations.model_validate_json(_ask(_Request(asked=asked), path))


def _ask(request: _Request, path: Path) -> str:
    # without the second, a process that aborts calls a debugger to print where it was
    environment = {**SHARES_CORES, **os.environ, "GGML_NO_BACKTRACE": "1"}
    with tempfile.TemporaryDirectory(prefix="fieldtune-") as folder:
        question, answer = Path(folder) / "request.json", Path(folder) / "answer.json"
        question.write_text(request.model_dump_json(), encoding="utf-8")
        # -P: a folder called export in the working directory is the user's, not this package
        command = [sys.executable, "-P", "-m", "export.device.alone", str(question), str(answer)]
        done = subprocess.run(command, env=environment, capture_output=True, text=True, errors="replace")
        if done.returncode == 0:
            return answer.read_text(encoding="utf-8")
    said = (done.stdout.strip() or done.stderr.strip())[-_SAID:]
    if done.returncode > 0:
        raise EngineError(f"llama.cpp could not run {path}: {said}")
    raise MachineError(f"the process that ran {path} was killed by signal {-done.returncode}: {said}")


def main() -> int:
    """The process: reads the request, writes the answer; 1 with the reason where llama.cpp refuses."""
    request = _Request.model_validate_json(Path(sys.argv[1]).read_text(encoding="utf-8")).asked
    try:
        answer = _run_here(request) if isinstance(request, _Run) else _reserve_here(request)
    except EngineError as error:
        print(error)
        return 1
    Path(sys.argv[2]).write_text(answer.model_dump_json(), encoding="utf-8")
    return 0


def _run_here(asked: _Run) -> Ran:
    import llama_cpp

    from export.engines.llama_library import captured_log
    from export.hardware import peak_memory_bytes

    start = peak_memory_bytes()
    with captured_log() as log:
        model = _load(asked.path, asked.settings.weights, allocate=True, reason=log.reason)
        context = _context(model, asked.settings, reason=log.reason)
        batch = llama_cpp.llama_batch_init(asked.settings.batch_tokens, 0, 1)
        spans = [
            (begin, min(asked.prompt_tokens, begin + asked.settings.batch_tokens))
            for begin in range(0, asked.prompt_tokens, asked.settings.batch_tokens)
        ]
        clock = time.perf_counter if asked.settings.clock == "wall" else time.process_time
        prompt = sum(_decode(context, batch, span, span[1] == asked.prompt_tokens, clock) for span in spans)
        places = range(asked.prompt_tokens, asked.prompt_tokens + asked.new_tokens)
        tokens = tuple(_decode(context, batch, (place, place + 1), True, clock) for place in places)
    return Ran(
        start_bytes=start,
        peak_bytes=peak_memory_bytes(),
        packed_bytes=_buffer_bytes("CPU_REPACK model", log.text),
        prompt_seconds=prompt,
        token_seconds=tokens,
    )


def _reserve_here(asked: _Reserve) -> Reservations:
    """What llama.cpp reserves it says in its log only: without allocating, all but the weights and the cache."""
    import llama_cpp

    from export.engines.llama_library import captured_log
    from export.hardware import peak_memory_bytes

    found = []
    start = peak_memory_bytes()
    with captured_log() as log:
        model = _load(asked.path, "copied", allocate=False, reason=log.reason)
    vocabulary = peak_memory_bytes() - start
    for settings in asked.settings:
        with captured_log() as log:
            context = _context(model, settings, reason=log.reason)
            llama_cpp.llama_free(context)
        compute, output = (_buffer_bytes(what, log.text) for what in ("compute", "output"))
        found.append(Reserved(compute_bytes=compute, output_bytes=output))
    return Reservations(vocabulary_bytes=vocabulary, each=tuple(found))


def _load(path: Path, weights: str, *, allocate: bool, reason: Any) -> Any:
    import llama_cpp

    from export.engines.llama_library import model_parameters

    llama_cpp.llama_backend_init()
    parameters = model_parameters()
    mapped = weights == "mapped"
    parameters.load_mode = llama_cpp.LLAMA_LOAD_MODE_MMAP if mapped else llama_cpp.LLAMA_LOAD_MODE_NONE
    parameters.no_alloc = not allocate
    model = llama_cpp.llama_model_load_from_file(str(path).encode(), parameters)
    if not model:
        raise EngineError(reason())
    return model


def _context(model: Any, settings: RunSettings, *, reason: Any) -> Any:
    import llama_cpp

    parameters = llama_cpp.llama_context_default_params()
    parameters.n_ctx = settings.context_tokens
    parameters.n_batch = parameters.n_ubatch = settings.batch_tokens
    parameters.swa_full = False  # as the bundle's client has it, and llama-server
    # of a batch only the last token's logits are wanted: for all of them llama.cpp would reserve hundreds of megabytes
    parameters.n_outputs_max = 1
    parameters.n_threads = parameters.n_threads_batch = settings.threads
    parameters.type_k = parameters.type_v = getattr(llama_cpp, f"GGML_TYPE_{settings.cache_type.upper()}")
    context = llama_cpp.llama_init_from_model(model, parameters)
    if not context:
        raise EngineError(reason())
    return context


def _decode(context: Any, batch: Any, span: tuple[int, int], wanted: bool, clock: Callable[[], float]) -> float:
    """Runs the tokens at these places; the seconds it took by the clock."""
    import llama_cpp

    begin, end = span
    batch.n_tokens = end - begin
    for index, place in enumerate(range(begin, end)):
        batch.token[index] = _FIRST_TOKEN + place % _DIFFERENT_TOKENS
        batch.pos[index] = place
        batch.n_seq_id[index] = 1
        batch.seq_id[index][0] = 0
        batch.logits[index] = wanted and place == end - 1
    began = clock()
    if llama_cpp.llama_decode(context, batch) != 0:
        raise EngineError(f"it refused the tokens {begin} to {end}.")
    llama_cpp.llama_synchronize(context)
    return clock() - began


def _buffer_bytes(what: str, said: str) -> int:
    """The bytes of all buffers of a kind, which llama.cpp tells in its log."""
    sizes = re.findall(rf"{what} buffer size = +([\d.]+) MiB", said)
    return round(sum(map(float, sizes)) * 2**20)


if __name__ == "__main__":
    sys.exit(main())
