"""What a notebook needs beside the verbs: they run with their output as it comes, pages show inline, files are listed.

Nothing is measured, judged or drawn here: verdicts are those of report.json, pages those that a run wrote. Objects
that a notebook shows have `_repr_html_`, which Jupyter and Colab call, so that neither is needed to import this.
"""

import html
import json
import shlex
import signal
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

from export.compare import Verdict
from export.errors import CommandError, ModelError
from export.frozen import Frozen
from export.plugins import nearest
from finetune.exit_status import EXIT_BROKEN_CONTRACT, EXIT_INTERRUPTED, EXIT_STATUS_OF

_MEANING: Mapping[int, str] = {
    EXIT_STATUS_OF["pass"]: "done; where files were judged, they passed",
    EXIT_BROKEN_CONTRACT: "fail: a file failed the gate, or rows are not as they must be; the lines above say which",
    EXIT_STATUS_OF["cannot tell"]: "cannot tell: these rows are too few to say that nothing was lost, or that it was",
}
_SECONDS_TO_STOP = 10.0
_PAGE_HEIGHT_PIXELS = 900


def fieldtune(*arguments: str | Path, typed: str = "") -> None:
    """Runs `fieldtune` with these arguments, prints its output line by line, and says how it ended.

    It runs in a process of its own: the GPU's memory is free again behind it, and it uses the installed libraries
    whatever older ones the notebook has loaded. `typed` is what it reads, as if from a keyboard. A verdict is a result,
    a `fail` too, and is printed; raises CommandError where there is none, so that no later cell runs on nothing.
    """
    words = shlex.join(map(str, arguments))
    here_document = f" <<END\n{typed}END" if typed else ""
    print(f"$ fieldtune {words}{here_document}", flush=True)
    status = _streamed([sys.executable, "-P", "-m", "finetune", *map(str, arguments)], typed)
    if status == EXIT_INTERRUPTED:
        raise CommandError(f"fieldtune {words} was interrupted. Finished stages are kept: run the cell again to go on.")
    if status not in _MEANING:
        raise CommandError(f"fieldtune {words} could not be done (exit status {status}). The lines above say why.")
    print(f"exit status {status}: {_MEANING[status]}", flush=True)


def _streamed(command: list[str], typed: str) -> int:
    """Runs a command, printing what it says as it says it; its exit status."""
    process = subprocess.Popen(
        command,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        encoding="utf-8",
        errors="replace",
    )
    assert process.stdin is not None and process.stdout is not None, "both are pipes"
    with process:
        try:
            process.stdin.write(typed)
            process.stdin.close()
            for line in process.stdout:
                print(line, end="", flush=True)
        except KeyboardInterrupt:
            _interrupt(process)
            raise
    return process.returncode


def _interrupt(process: "subprocess.Popen[str]") -> None:
    """Lets a process end as Ctrl-C lets it end on a terminal, leaving nothing half-written.

    Jupyter interrupts the kernel and all it started; where only the kernel was told, the process is told here.
    """
    try:
        process.wait(_SECONDS_TO_STOP)
    except subprocess.TimeoutExpired:
        process.send_signal(signal.SIGINT)
        process.wait()


class Page(Frozen):
    """A page that a run wrote, shown inside the notebook."""

    path: Path
    content: str

    def _repr_html_(self) -> str:
        """The page in a frame, itself part of the notebook: Colab serves no files. Nothing in it may run a script."""
        return (
            f'<iframe title="{html.escape(self.path.name)}" sandbox srcdoc="{html.escape(self.content)}" '
            f'style="width: 100%; height: {_PAGE_HEIGHT_PIXELS}px; border: 1px solid #8886; border-radius: 4px">'
            "</iframe>"
        )

    def __repr__(self) -> str:
        """Where it lies, for whoever reads the notebook as text."""
        return f"page: {self.path}"


def page(path: Path) -> Page:
    """A report's page, to be the last line of a cell. Raises CommandError where the run has not written it."""
    return Page(path=path, content=_read(path))


class ShippedFile(Frozen):
    """A file or folder that ships, where it lies, and what was said of it."""

    name: str
    path: Path
    size_bytes: int
    verdict: Verdict


class ShippedFiles(Frozen):
    """The files of a run with the verdict on each, and on the run as a whole."""

    files: tuple[ShippedFile, ...]
    verdict: Verdict

    def named(self, name: str) -> ShippedFile:
        """The file of that name. Raises ModelError, with the nearest, where the run made none."""
        names = tuple(file.name for file in self.files)
        if name not in names:
            raise ModelError(f"this run has no file {name!r}. {nearest(name, names)}")
        return self.files[names.index(name)]

    def __str__(self) -> str:
        """A line for each file, and the verdict on the run."""
        width = max((len(file.name) for file in self.files), default=0)
        lines = [f"{f.name:{width}}  {f.size_bytes / 1e6:9,.1f} MB  {f.verdict:11}  {f.path}" for f in self.files]
        return "\n".join([*lines, f"verdict of the run: {self.verdict}"])


def shipped_files(run_folder: Path) -> ShippedFiles:
    """What a run made that ships, by its report.json. Raises CommandError where there is none yet."""
    report = json.loads(_read(run_folder / "report.json"))
    _reference, *others = report["subjects"]
    files = tuple(
        ShippedFile(
            name=subject["name"],
            path=run_folder / subject["path"],
            size_bytes=subject["size_bytes"],
            verdict=subject["verdict"],
        )
        for subject in others
        if subject["verdict"] is not None
    )
    return ShippedFiles(files=files, verdict=report["verdict"])


def _read(path: Path) -> str:
    """The text of a file that a run writes."""
    if not path.is_file():
        raise CommandError(
            f"there is no {path}: the run has not come so far. Run the cells above; the last lines of what they print "
            "say what stopped it."
        )
    return path.read_text(encoding="utf-8")
