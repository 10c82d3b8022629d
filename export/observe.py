"""Runs one subject on the held-out items and records what it did: the only place where checks meet a running model.

`observe` starts a process per subject, so that its peak memory is its own, a runtime that crashes takes nothing with
it, and no library's patches reach another engine. The process is `python -m export.observe REQUEST FOLDER`.
"""

import os
import signal
import subprocess
import sys
import time
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from export.artifacts import StageResult
from export.budgeted import answer_within
from export.checks import Item, ItemObservation, Items, Observation, SafetyItem
from export.engines import Engine, Generation, Subject
from export.errors import EngineError, MachineError
from export.frozen import Frozen
from export.hardware import SHARES_CORES
from export.likelihood import option_log_probs
from export.thought import Thought
from export.tokenizer_file import TokenizerFile

if TYPE_CHECKING:
    from export.reference import Reference, ReferenceWriter

# A subject that takes minutes says how far it is about this often.
_SECONDS_BETWEEN_LINES = 30.0

# How the observing process ends when an engine refused the artifact; and the crashes that a broken file can cause.
_REFUSED = 3
_THE_ARTIFACTS_OWN = (_REFUSED, -signal.SIGSEGV, -signal.SIGABRT, -signal.SIGFPE, -signal.SIGBUS)

_REFERENCE = "reference.npy"


# Single-stream speed is timed on this many rows: enough for an interval, few enough to cost seconds.
_TIMED_ITEMS = 8


class Observed(StageResult):
    """A subject's record on disk."""

    subject: str

    def read(self) -> Observation:
        """What the subject did."""
        return Observation.model_validate_json((self.folder / "observation.json").read_text(encoding="utf-8"))

    @property
    def reference(self) -> Path:
        """The stored predictions; exists when the subject was observed as the reference."""
        return self.folder / _REFERENCE


class Request(Frozen):
    """What the observing process is asked to do. Without `reference` the subject becomes the reference itself.

    `tokenizer` is the folder whose tokenizer turns every subject's generated ids into text.
    """

    subject: Subject
    items: Path
    tokenizer: Path
    reference: Path | None
    size_bytes: int
    threads: int


def observe(request: Request, out: Path, say: Callable[[str], None]) -> Observed:
    """Observes a subject in a process of its own, which writes into `out`; `say` hears how far it is.

    Raises EngineError, with that process's last words, when the artifact is at fault: its engine refused it or crashed
    on it. MachineError for any other end, such as too little memory.
    """
    request_path = out / "request.json"
    request_path.write_text(request.model_dump_json(indent=2), encoding="utf-8")
    log = out / "log.txt"
    # all it needs is on this machine, so no library of it has anything to ask a hub
    environment = {**SHARES_CORES, **os.environ, "HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1"}
    reading, writing = os.pipe()  # apart from its output, which libraries print into
    # -P: a folder called export in the working directory is the user's, not this package
    command = [sys.executable, "-P", "-m", "export.observe", str(request_path), str(out), str(writing)]
    with log.open("w", encoding="utf-8") as file, os.fdopen(reading, encoding="utf-8") as progress:
        process = subprocess.Popen(command, stdout=file, stderr=subprocess.STDOUT, env=environment, pass_fds=(writing,))
        os.close(writing)
        try:
            _follow(progress, request.subject.name, say)
            status = process.wait()
        except BaseException:
            process.kill()
            process.wait()
            raise
    request_path.unlink()
    if status != 0:
        said = f"{request.subject.name} could not be measured. {_last_words(log, status)}"
        raise EngineError(said) if status in _THE_ARTIFACTS_OWN else MachineError(said)
    return Observed(folder=out, subject=request.subject.name)


def _follow(progress: Iterable[str], name: str, say: Callable[[str], None]) -> None:
    """Passes on a line of the observing process now and then, until it has no more to say."""
    last = time.monotonic()
    for line in progress:
        if time.monotonic() - last > _SECONDS_BETWEEN_LINES:
            last = time.monotonic()
            say(f"  {name}: {line.strip()}")


def _last_words(log: Path, status: int) -> str:
    """The end of a failed process's output, and what ended it."""
    with log.open(encoding="utf-8", errors="replace") as file:
        lines = [line.rstrip() for line in deque(file, maxlen=12) if line.strip()]
    ended = f"was killed by signal {-status} (out of memory, or a crash)" if status < 0 else f"ended with {status}"
    return f"Its process {ended}; it last said:\n  " + "\n  ".join(lines[-6:])


def main() -> int:
    """The observing process: reads the request it is given, writes `observation.json` (and `reference.npy`)."""
    request, out = Request.model_validate_json(Path(sys.argv[1]).read_text(encoding="utf-8")), Path(sys.argv[2])
    try:
        with os.fdopen(int(sys.argv[3]), "w", encoding="utf-8", buffering=1) as progress:
            observation = _observe_here(request, out, lambda line: print(line, file=progress))
    except MachineError:
        raise
    except EngineError as error:
        print(error)
        return _REFUSED
    (out / "observation.json").write_text(observation.model_dump_json(), encoding="utf-8")
    return 0


def _observe_here(request: Request, out: Path, tell: Callable[[str], None]) -> Observation:
    from export.hardware import device_peak_memory_bytes, peak_memory_bytes
    from export.reference import Reference, writing_reference

    work = Items.model_validate_json(request.items.read_text(encoding="utf-8"))
    engine = _load(request, work)
    if request.reference is None:
        reference = None
        with writing_reference(out / _REFERENCE, tokens=work.scored_tokens, vocabulary_size=work.vocabulary_size) as to:
            scores = _scores(engine, work, tell, to)
    else:
        reference = Reference(request.reference)
        scores = _scores(engine, work, tell, reference)
    options = _options(engine, work, tell)
    tell(f"answering {len(work.items) + len(work.safety)} prompts")
    answers = _answers(engine, work, work.items, work.max_new_tokens, request.tokenizer)
    safety = _answers(engine, work, work.safety, work.most_safety_tokens, request.tokenizer) if work.safety else []
    timed = [engine.generate([item.prompt], work.max_new_tokens)[0] for item in work.items[:_TIMED_ITEMS]]
    rounding = engine.rounding
    peak_bytes = peak_memory_bytes() + (device_peak_memory_bytes() or 0)
    engine.close()
    return Observation(
        subject=request.subject.name,
        engine=request.subject.engine,
        items=tuple(_join(request.tokenizer, scores, answers, options)),
        safety=tuple(_decode(request.tokenizer, [answer.ids for answer in safety])) if safety else (),
        peak_memory_bytes=peak_bytes,
        size_bytes=request.size_bytes,
        tokens_per_second=tuple(_speeds(timed)),
        has_reference=reference is not None,
        top_k=None if reference is None else reference.top_k,
        tail_mass=None if reference is None else reference.tail_mass(),
        rounding=rounding,
    )


def _load(request: Request, work: Items) -> Engine:
    """The subject's engine. Each is imported only when it is the one: llama.cpp is measured without torch in memory."""
    if request.subject.engine == "llama_cpp":
        from export.engines import llama_cpp

        return llama_cpp.load(
            request.subject.path,
            vocabulary_size=work.vocabulary_size,
            context_tokens=work.context_tokens,
            threads=request.threads,
        )
    from export.engines import hf

    return hf.load(request.subject, vocabulary_size=work.vocabulary_size, threads=request.threads)


class _Score(Frozen):
    log_probs: tuple[float, ...]
    kl: tuple[float, ...]
    same_top: tuple[bool, ...]
    finite: bool


def _scores(
    engine: Engine, work: Items, tell: Callable[[str], None], reference: "Reference | ReferenceWriter"
) -> list[_Score]:
    """Every item's score, compared with the stored reference; or, when it is the reference, stored."""
    scores: list[_Score] = []
    seen = 0
    for item in work.items:
        scores.append(_score(engine, item, reference, seen))
        seen += len(item.scored)
        tell(f"{len(scores)} of {len(work.items)} rows scored")
    return scores


def _score(engine: Engine, item: Item, reference: "Reference | ReferenceWriter", seen: int) -> _Score:
    """One item's predictions, of which no more than a block is in memory; `seen` scored tokens came before it."""
    import numpy as np

    from export.reference import ReferenceWriter

    chosen: list[float] = []
    kl: list[float] = []
    same_top: list[bool] = []
    finite = True
    for block in engine.log_prob_blocks(item.ids, item.scored):
        targets = [item.ids[position] for position in item.scored[len(chosen) : len(chosen) + len(block)]]
        of_targets = block[np.arange(len(targets)), targets]
        finite = finite and bool(np.isfinite(of_targets).all() and not np.isnan(block).any())
        if isinstance(reference, ReferenceWriter):
            reference.add(block)
        else:
            divergence = reference.compare(seen + len(chosen), block)
            kl += divergence.kl.tolist()
            same_top += divergence.same_top.tolist()
        chosen += of_targets.tolist()
    return _Score(log_probs=tuple(chosen), kl=tuple(kl), same_top=tuple(same_top), finite=finite)


class _Answer(NamedTuple):
    """What was generated behind a prompt; `thought` is None without a thinking budget."""

    ids: tuple[int, ...]
    stopped: bool
    thought: Thought | None


def _options(engine: Engine, work: Items, tell: Callable[[str], None]) -> list[tuple[float, ...]]:
    """How probable each item's options are to the model, read behind one run of its prompt."""
    found: list[tuple[float, ...]] = []
    for item in work.items:
        found.append(option_log_probs(engine, item.prompt, item.options))
        if item.options:
            tell(f"the options of {len(found)} of {len(work.items)} rows scored")
    return found


def _answers(
    engine: Engine, work: Items, asked: Sequence[Item | SafetyItem], max_new_tokens: int, tokenizer: Path
) -> list[_Answer]:
    """Greedy answers, with thoughts within the budget where there is one."""
    prompts = [item.prompt for item in asked]
    if work.thinking_budget is None:
        plain = engine.generate(prompts, max_new_tokens)
        return [_Answer(answer.ids, answer.stopped, None) for answer in plain]
    codec = TokenizerFile(tokenizer)
    within = answer_within(engine, prompts, work.thinking_budget, max_new_tokens, codec)
    return [_Answer(answer.ids, answer.stopped, answer.thought) for answer in within]


def _join(
    tokenizer: Path, scores: list[_Score], answers: list[_Answer], options: list[tuple[float, ...]]
) -> list[ItemObservation]:
    texts = _decode(tokenizer, [answer.ids for answer in answers])
    return [
        ItemObservation(
            log_probs=score.log_probs,
            kl=score.kl,
            same_top=score.same_top,
            generated=text,
            stopped=answer.stopped,
            generated_tokens=len(answer.ids),
            finite=score.finite,
            option_log_probs=of_options,
            thought=answer.thought,
        )
        for score, answer, text, of_options in zip(scores, answers, texts, options, strict=True)
    ]


def _decode(tokenizer_folder: Path, answers: list[tuple[int, ...]]) -> list[str]:
    """Generated ids as text, by the reference's own tokenizer."""
    tokenizer = TokenizerFile(tokenizer_folder)
    return [tokenizer.decode(ids) for ids in answers]


def _speeds(timed: list[Generation]) -> list[float]:
    """Tokens per second of each timed answer that has any tokens."""
    return [len(answer.ids) / answer.seconds for answer in timed if answer.ids and answer.seconds > 0]


if __name__ == "__main__":
    sys.exit(main())
