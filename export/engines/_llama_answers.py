"""What llama.cpp makes of a GGUF file's vocabulary, asked in a process of its own.

A vocabulary that contradicts itself (one token listed twice is enough) makes llama.cpp abort its process: a damaged
file must be a finding, and not the end of the run. The process is `python -m export.engines._llama_answers`.
"""

import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from export.errors import EngineError
from export.frozen import Frozen

_ABORTED_WORDS = 300


class Answers(Frozen):
    """A file's vocabulary by llama.cpp's own account.

    `ids` are the token ids of each text, nothing added around it; `stop_ids` all that end a generation, those among
    them that it knows by name; `whole_ids` are those of one more text, with what the file has
    runtimes put around it; `end_of_sequence` and `end_of_turn` are -1 where there is none.
    """

    ids: tuple[tuple[int, ...], ...]
    stop_ids: tuple[int, ...]
    end_of_sequence: int
    end_of_turn: int
    whole_ids: tuple[int, ...]


class Question(Frozen):
    """The file, the texts to cut into tokens, and one to cut as a runtime would that is given nothing but it."""

    path: Path
    texts: tuple[str, ...]
    whole: str


def ask(path: Path, texts: Sequence[str], *, whole: str) -> Answers:
    """Opens the GGUF file at `path` without its weights. Raises EngineError when llama.cpp refuses it, or breaks."""
    # without this, a process that aborts calls a debugger to print where it was
    environment = {**os.environ, "GGML_NO_BACKTRACE": "1"}
    with tempfile.TemporaryDirectory(prefix="fieldtune-") as folder:
        question, answers = Path(folder) / "question.json", Path(folder) / "answers.json"
        question.write_text(Question(path=path, texts=tuple(texts), whole=whole).model_dump_json(), encoding="utf-8")
        # -P: a folder called export in the working directory is the user's, not this package
        command = [sys.executable, "-P", "-m", "export.engines._llama_answers", str(question), str(answers)]
        done = subprocess.run(command, env=environment, capture_output=True, text=True, errors="replace")
        if done.returncode != 0:
            raise EngineError(_reason(path, done))
        return Answers.model_validate_json(answers.read_text(encoding="utf-8"))


def _reason(path: Path, done: "subprocess.CompletedProcess[str]") -> str:
    if done.returncode > 0:
        return done.stdout.strip() or f"llama.cpp could not be asked about {path}: {done.stderr.strip()[-600:]}"
    said = " ".join((done.stderr or done.stdout).split())[:_ABORTED_WORDS]
    return f"llama.cpp broke off while it opened {path} (signal {-done.returncode}): {said or 'it gave no reason'}"


def main() -> int:
    """The asked process: reads the question, writes the answers, prints what llama.cpp said when it refused."""
    from export.engines._llama_model import open_vocabulary

    question = Question.model_validate_json(Path(sys.argv[1]).read_text(encoding="utf-8"))
    try:
        with open_vocabulary(question.path) as vocabulary:
            end_of_sequence, end_of_turn = vocabulary.end_of_turn_ids()
            answers = Answers(
                ids=tuple(tuple(vocabulary.tokenize(text)) for text in question.texts),
                stop_ids=vocabulary.stop_ids(),
                end_of_sequence=end_of_sequence,
                end_of_turn=end_of_turn,
                whole_ids=tuple(vocabulary.tokenize(question.whole, add_around=True)),
            )
    except EngineError as error:
        print(error)
        return 1
    Path(sys.argv[2]).write_text(answers.model_dump_json(), encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
