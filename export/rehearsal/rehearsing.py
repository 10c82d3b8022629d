"""A rehearsal in order: unpack, compare with the checksums, start under the limit, soak, crash, start again, judge."""

import json
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

from export.artifacts import sha256_of_file
from export.bundle import ROWS, Row, damaged, unpack
from export.bundle.device.client import SCHEMA, SETTINGS, STATE, SUMS
from export.bundle.running import Memory, RunningClient, kill_while_starting
from export.checks import read_json, schema_validator
from export.errors import DataError, EngineError, RecipeError, first_line
from export.frozen import Frozen
from export.hardware import busy_processors, environment
from export.rehearsal import figures
from export.rehearsal.limits import Limit, limit_of
from export.rehearsal.results import AgainstMerged, Rehearsal, Restart
from export.rehearsal.soaking import Asked, soak
from export.verdict import Verdict

_SHOWN_REASONS = 10
# Of right answers, what a bundle may be worse than the merged model, and what at the interval's end: with all answers
# alike 100 rows reach that far.
_POINT, _BOUND = 0.01, 0.03
# Of the model's right answers, what the client may refuse.
_REFUSED = 0.05


class RehearsalSettings(Frozen):
    """What `fieldtune rehearse` was asked for.

    `rows` None takes those in the bundle. `python` is the interpreter that the client runs in: that of the bundle's own
    install note, or this one. `keep` is a new or empty folder for the unpacked bundle; None takes one that is removed.
    """

    bundle: Path
    memory_bytes: int
    cpus: int
    minutes: float
    rows: Path | None = None
    python: str = sys.executable
    keep: Path | None = None


class _Soaked(NamedTuple):
    """A soak that came to its end: the client's first line, all answers, and what the process held at most."""

    ready: dict[str, Any]
    asked: Sequence[Asked]
    memory: Memory


def rehearse(settings: RehearsalSettings, say: Callable[[str], None]) -> Rehearsal:
    """Rehearses a bundle. That it does not fit, is damaged or breaks is a result: `fail`.

    Raises ExportError for what is no bundle, DataError for rows that cannot be read, RecipeError for a limit that this
    machine cannot give.
    """
    _require_python(settings.python)
    limit = limit_of(settings.memory_bytes, settings.cpus)
    busy = busy_processors()
    if settings.minutes * 60 < figures.LEAST_SECONDS_TO_JUDGE:
        least = f"{figures.LEAST_SECONDS_TO_JUDGE / 60:.0f} minutes"
        say(f"whether memory grows is judged over {least} or more: with fewer the best verdict is 'cannot tell'")
    with _unpacked(settings) as folder:
        wrong = damaged(folder)
        record = _Record(folder, limit, busy)
        if wrong:
            return record.failed(f"files are not those of {SUMS}: {', '.join(wrong)}")
        _require_modules(settings.python, folder)
        rows = _rows(settings.rows or folder / ROWS)
        say(f"rehearsing {folder.name}: {limit.memory_bytes / 1e6:,.0f} MB of {limit.kind}, {limit.cpus} processor(s)")
        try:
            soaked = _soaked(folder, limit, settings, rows, say)
            say("restarts: after kill -9, and after a damaged state file")
            restarts = _restarts(folder, limit, settings.python, rows[0].command, soaked.asked[0].answer)
        except EngineError as error:
            counts = "" if limit.kind != "address space" else " This limit counts addresses, and not only what is used."
            return record.failed(f"under this limit it does not run: {error}{_took(folder)}{counts}")
        return record.judged(rows, soaked, restarts)


@contextmanager
def _unpacked(settings: RehearsalSettings) -> Iterator[Path]:
    """The bundle in an empty folder."""
    if settings.keep is not None:
        if settings.keep.exists() and (not settings.keep.is_dir() or any(settings.keep.iterdir())):
            raise RecipeError(f"--keep {settings.keep}: expected a new or an empty folder, and found something there.")
        settings.keep.mkdir(parents=True, exist_ok=True)
        yield unpack(settings.bundle, settings.keep)
        return
    empty = Path(tempfile.mkdtemp(prefix="fieldtune-rehearsal-"))
    try:
        yield unpack(settings.bundle, empty)
    finally:
        shutil.rmtree(empty, ignore_errors=True)


def _require_python(python: str) -> None:
    """Raises RecipeError where there is no such interpreter."""
    if shutil.which(python) is None:
        raise RecipeError(
            f"--python {python}: there is no such program. Give the interpreter of the bundle's own .venv."
        )


def _require_modules(python: str, folder: Path) -> None:
    """Raises RecipeError where that interpreter lacks what the client imports: no limit is to blame for it."""
    needed = ["llama_cpp", *(["jsonschema"] if (folder / SCHEMA).is_file() else [])]
    code = "import importlib.util as u, sys; print(*(n for n in sys.argv[1:] if u.find_spec(n) is None))"
    done = subprocess.run([python, "-I", "-c", code, *needed], capture_output=True, text=True, check=False)
    if done.returncode != 0 or done.stdout.strip():
        found = f"lacks {done.stdout.strip()}" if done.stdout.strip() else f"does not run: {done.stderr[-200:].strip()}"
        raise RecipeError(f"--python {python} {found}. Install in it what the bundle's INSTALL.md says.")


def _took(folder: Path) -> str:
    """What the client took where the bundle was made, of both that a limit may count; empty for an older bundle."""
    settings = json.loads((folder / SETTINGS).read_text(encoding="utf-8"))
    if "peak_address_bytes" not in settings:
        return ""
    resident, addresses = settings["peak_resident_bytes"] / 1e6, settings["peak_address_bytes"] / 1e6
    return f" Where it was made it held {resident:,.0f} MB, and {addresses:,.0f} MB of addresses, for one command."


def _rows(path: Path) -> list[Row]:
    """Commands and right answers, one JSON object a line. Raises DataError where there are none."""
    try:
        rows = [Row.model_validate_json(line) for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
    except (OSError, ValueError) as error:
        raise DataError(
            f"{path} cannot be read as rows ({first_line(error)}); expected lines of "
            '{"command": ..., "answer": ...}, as in a bundle\'s own rows.jsonl.'
        ) from None
    if not rows:
        raise DataError(f"{path} holds no rows; expected commands to ask. Name others with --rows.")
    return rows


def _start(folder: Path, limit: Limit, python: str) -> RunningClient:
    return RunningClient(folder, python=python, starts_with=limit.starts_with, before_start=limit.enter())


def _soaked(
    folder: Path, limit: Limit, settings: RehearsalSettings, rows: Sequence[Row], say: Callable[[str], None]
) -> _Soaked:
    told = [0.0]

    def tell(answers: int, seconds: float) -> None:
        if seconds - told[0] >= 60:
            told[0] = seconds
            say(f"  {answers:,} answers in {seconds / 60:,.0f} of {settings.minutes:g} minutes")

    with _start(folder, limit, settings.python) as client:
        asked = soak(client, [row.command for row in rows], settings.minutes, tell)
        return _Soaked(client.ready, asked, client.memory())


def _restarts(
    folder: Path, limit: Limit, python: str, command: str, first_answer: Mapping[str, Any]
) -> tuple[Restart, ...]:
    """Starts again after a crash in the middle of an answer, one in the middle of a start, and a damaged state file."""

    def again(after: Any) -> Restart:
        with _start(folder, limit, python) as client:
            answer, ready = client.ask(command), client.ready
        same = answer.get("text") == first_answer.get("text") and answer["action"] == first_answer["action"]
        return Restart(after=after, state=str(ready["state"]), seconds=ready["seconds"], same_answer=same)

    with _start(folder, limit, python) as client:
        client.send(command)
        time.sleep((first_answer.get("first_token_seconds", 0.0) + first_answer.get("decode_seconds", 0.0)) / 2)
        client.kill()
    found = [again("kill -9 while it answered")]
    with (folder / STATE).open("r+b") as state:
        state.truncate(state.seek(0, 2) // 2)
    found.append(again("a damaged state file"))
    (folder / STATE).unlink()
    half = found[-1].seconds / 2
    kill_while_starting(folder, python, half, starts_with=limit.starts_with, before_start=limit.enter())
    return (*found, again("kill -9 while it started"))


class _Record:
    """What is known of a rehearsal before it begins, made into its result."""

    def __init__(self, folder: Path, limit: Limit, busy: float) -> None:
        here = environment()
        self._folder = folder
        self._known = {
            "bundle": folder.name,
            "bundle_sha256": sha256_of_file(folder / SUMS),
            "limit": limit,
            "machine": here.identity,
            "busy_processors": busy,
            "versions": {name: here.packages[name] for name in ("fieldtune",) if name in here.packages},
        }
        self._limit = limit

    def failed(self, problem: str) -> Rehearsal:
        """The result of one that did not come to its end."""
        return Rehearsal.model_validate({**self._known, "verdict": "fail", "problems": (problem,)})

    def judged(self, rows: Sequence[Row], soaked: _Soaked, restarts: tuple[Restart, ...]) -> Rehearsal:
        """The result of one that did."""
        asked = soaked.asked
        firsts = {one.row: one.answer for one in reversed(asked)}
        answers = [firsts[index] for index in range(len(rows))]
        grown = figures.growth(
            [one.seconds for one in asked], [one.resident_bytes for one in asked], self._limit.memory_bytes
        )
        found = {
            "start_seconds": soaked.ready["seconds"],
            "state": soaked.ready["state"],
            "peak_resident_bytes": soaked.memory.peak_resident_bytes,
            "peak_address_bytes": soaked.memory.peak_address_bytes,
            "soak_seconds": asked[-1].seconds,
            "rows": len(rows),
            "answers": len(asked),
            "first_token_seconds": figures.mean_by_row(asked, figures.first_token_seconds),
            "tokens_per_second": figures.mean_by_row(asked, figures.tokens_per_second),
            "changed_answers": sum(one.answer.get("text") != firsts[one.row].get("text") for one in asked),
            "growth": grown,
            "restarts": restarts,
            "said": tuple(answer.get("text") for answer in answers),
            **self._of_answers(rows, answers, asked),
        }
        found["versions"] = self._known["versions"] | soaked.ready["versions"]
        problems, verdict = _verdict(found)
        return Rehearsal.model_validate({**self._known, **found, "problems": problems, "verdict": verdict})

    def _of_answers(
        self, rows: Sequence[Row], answers: Sequence[Mapping[str, Any]], asked: Sequence[Asked]
    ) -> dict[str, Any]:
        """What the answers are worth: by the schema, which is asked anew here, and by the rows."""
        not_taken = [answer["action"] is None for answer in answers]
        reasons = tuple(dict.fromkeys(str(answer["reason"]) for answer in answers if answer["action"] is None))
        # what the model said, whether the client took it or not; and what came of it
        right = [figures.is_right(a.get("text"), row.answer) for a, row in zip(answers, rows, strict=True)]
        refused = [not_taken[index] for index, is_right in enumerate(right) if is_right]
        merged = [row.merged_answer for row in rows]
        both = [index for index, answer in enumerate(merged) if answer is not None]
        wrong = [not refused and not fits for refused, fits in zip(not_taken, right, strict=True)]
        schema = self._folder / SCHEMA
        keeps = schema_validator(str(schema), SCHEMA) if schema.is_file() else None
        valid = [(one.row, _is_valid(one.answer, keeps)) for one in asked if keeps is not None and "text" in one.answer]
        return {
            "schema_valid": figures.share_by_row(valid) if valid else None,
            "schema_checked": len(valid),
            "wrong_schema": sum(not keeps_it for _, keeps_it in valid) if valid else None,
            "not_taken": figures.share(not_taken),
            "not_taken_because": reasons[:_SHOWN_REASONS],
            "right": figures.share(right),
            "refused_right": figures.share(refused) if refused else None,
            "wrong_actions": figures.share(wrong),
            "against_merged": figures.against_merged(
                [right[i] for i in both], [figures.is_right(merged[i], rows[i].answer) for i in both]
            )
            if both
            else None,
        }


def _is_valid(answer: Mapping[str, Any], keeps: Callable[[Any], bool]) -> bool:
    """Whether the model's text is JSON, by itself, that keeps the schema."""
    read = read_json(answer["text"])
    return read.is_json and keeps(read.plain)


def _verdict(found: Mapping[str, Any]) -> tuple[tuple[str, ...], Verdict]:
    """What is not as it must be, and the verdict: `cannot tell` where nothing failed and something is not decided."""
    against, grown = found["against_merged"], found["growth"]
    failed = []
    if found["wrong_schema"]:
        failed.append(f"{found['wrong_schema']:,} of {found['schema_checked']:,} answers break the schema")
    if found["changed_answers"]:
        failed.append(f"{found['changed_answers']:,} answers differ from the same row's first one")
    refused = found["refused_right"]
    if found["not_taken"].count == found["not_taken"].n:
        failed.append("no answer was taken for an action")
    elif refused is not None and refused.interval[0] > _REFUSED:
        failed.append(f"the client refused {refused.count:,} of {refused.n:,} right answers")
    if against is not None and against.interval[1] < -_POINT:
        failed.append(f"more than one point worse than the merged model: {_beside(against)}")
    failed += [f"after {r.after}: another answer than before" for r in found["restarts"] if not r.same_answer]
    if grown is not None and grown.verdict == "fail":
        failed.append("memory grows by more than one hundredth of the limit an hour")
    if failed:
        return tuple(failed), "fail"
    undecided = []
    if against is None:
        undecided.append("the rows do not say what the merged model answered: nothing to hold it against")
    elif against.difference < -_POINT or against.interval[0] < -_BOUND:
        undecided.append(f"whether it is a point worse than the merged model takes more rows: {_beside(against)}")
    if refused is None or refused.count > _REFUSED * refused.n:
        said = "no answer was right" if refused is None else f"{refused.count:,} of {refused.n:,} were refused"
        undecided.append(f"whether the client lets right answers pass cannot be told: {said}")
    if grown is None or grown.verdict in (None, "cannot tell"):
        undecided.append("whether memory grows cannot be told: rehearse for more minutes (five at least)")
    return tuple(undecided), "cannot tell" if undecided else "pass"


def _beside(against: AgainstMerged) -> str:
    low, high = (f"{end * 100:+.1f}" for end in against.interval)
    return f"{against.right} right against {against.merged_right} of {against.rows} rows, {low} to {high} points"
