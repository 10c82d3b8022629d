"""How many rows a second `fieldtune batch` answers: run `python -m tests.benchmarks.batch [ROWS]`.

The starter model as a q8_0 file answers 1,000 rows (or ROWS) of commands, with and without the cache of what prompts
share, behind a short and a long system prompt; and as a folder, side by side and one by one. Reading, rendering and
writing are part of every time; opening the model is not. The starter is not fine-tuned: its answers are cut at 24
tokens, about the length of a cleaning robot's. On a busy machine put `taskset -c 0` before it: llama.cpp's threads then
do not wait for one another.
"""

import json
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

from export.artifacts import ModelFolder
from export.formats import ExportRows
from export.formats.gguf import Gguf
from finetune.base_model import ModelSettings, open_base
from finetune.batching import BatchSettings, answer_file
from finetune.data.grammar import expand
from finetune.shipped import folder as shipped

STARTER = open_base(ModelSettings()).path
ROWS, FOLDER_ROWS, TOKENS = int(next(iter(sys.argv[1:]), 1000)), 200, 24
SYSTEM = {"short": "Turn the cleaning command into JSON.", "long": "Turn the cleaning command into JSON. " * 40}


def main() -> None:
    """Prints rows/s of each way, and what reuse and answering side by side are worth as ratios."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        rows = folder / "rows.jsonl"
        made = expand(shipped("data_templates") / "cleaning_robot.grammar.yaml", ROWS, 0)
        lines = [json.dumps({"command": fields["command"]}, ensure_ascii=False) for fields in made]
        rows.write_text("\n".join(lines) + "\n", encoding="utf-8")
        file = q8_0(folder)
        for length, system in SYSTEM.items():
            one = BatchSettings(
                model=file, rows=rows, out=folder / "out.jsonl", prompt="{command}", system=system,
                max_new_tokens=TOKENS, restart=True,
            )  # fmt: skip
            with_reuse, without = rows_per_second(one), without_reuse(lambda one=one: rows_per_second(one))
            print(
                f"q8_0, {length:5} system prompt: {with_reuse:7.1f} rows/s; every prompt afresh {without:7.1f}; "
                f"ratio {with_reuse / without:.2f}"
            )
        few = one.model_copy(update={"model": STARTER, "system": SYSTEM["short"], "limit": FOLDER_ROWS})
        together, alone = rows_per_second(few), one_by_one(lambda: rows_per_second(few))
        print(
            f"folder, 32 side by side:    {together:7.1f} rows/s; one by one {alone:7.1f}; ratio {together / alone:.2f}"
        )


def q8_0(folder: Path) -> Path:
    """The starter as a q8_0 file."""
    model = ModelFolder(folder=STARTER, dtype="bfloat16", base="starter", chat_template_sha256="")
    whole = Gguf(types=("q8_0",)).quantize("gguf-f16", model, ExportRows(), folder, {}.__getitem__)
    return Gguf(types=("q8_0",)).quantize("gguf-q8_0", model, ExportRows(), folder, lambda name: whole).path


def rows_per_second(settings: BatchSettings) -> float:
    """The best of three times."""
    outcomes = [answer_file(settings, lambda line: None) for _ in range(3)]
    return max(outcome.tally.rows / outcome.seconds for outcome in outcomes)


def without_reuse(work: Callable[[], float]) -> float:
    """Does the work with an engine that forgets everything between two prompts."""
    from export.engines.llama_cpp import LlamaCppEngine

    forget = LlamaCppEngine._forget
    LlamaCppEngine._forget = lambda self, keep: forget(self, 0)  # type: ignore[method-assign]
    try:
        return work()
    finally:
        LlamaCppEngine._forget = forget  # type: ignore[method-assign]


def one_by_one(work: Callable[[], float]) -> float:
    """Does the work with an engine that is given one prompt at a time."""
    from export.engines.hf import HfEngine

    at_once, HfEngine.prompts_at_once = HfEngine.prompts_at_once, 1
    try:
        return work()
    finally:
        HfEngine.prompts_at_once = at_once


if __name__ == "__main__":
    main()
