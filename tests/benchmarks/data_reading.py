"""How many rows a second are read, mapped and looked up among those seen: `python -m tests.benchmarks.data_reading`.

Short rows of our own making, of the three commonest forms, on one core. Timings are never tests: what is expected of
them (20,000 rows a second for the three steps together) is for a person to hold the printed numbers against.
"""

import argparse
import cProfile
import json
import pstats
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from export.hardware import peak_memory_bytes
from finetune.data.belonging import Belonging
from finetune.data.intake import opened
from finetune.data.sources import read_rows
from finetune.data.splitting import split_groups
from finetune.data.template import RowMapper, find, load

MakeRow = Callable[[int], dict[str, Any]]


def _question(number: int) -> str:
    return f"What does code {number} on the robot's display mean? 第{number}号代码是什么意思？"


def _answer(number: int) -> str:
    return f'Code {number}: the brush is "blocked". Turn it over, and remove what is caught in it. 请清理滚刷。'


FORMS: dict[str, tuple[str, MakeRow]] = {
    "question/answer": ("question_answer", lambda n: {"question": _question(n), "answer": _answer(n)}),
    "alpaca": ("instruction", lambda n: {"instruction": "Explain.", "input": _question(n), "output": _answer(n)}),
    "messages": (
        "chat_messages",
        lambda n: {
            "messages": [
                {"role": "system", "content": "You are a cleaning robot."},
                {"role": "user", "content": _question(n)},
                {"role": "assistant", "content": _answer(n)},
            ]
        },
    ),
}


def _read(path: Path) -> int:
    return sum(1 for _ in read_rows(path))


def _take(path: Path, mapper: RowMapper) -> Belonging:
    """Reads, maps and drops what was seen before, as the data stage does; by what rows belong together."""
    belonging = Belonging()
    with opened(path.with_suffix(".kept"), max_tokens=1, tolerated=False, mask=False) as intake:
        for taken in intake.take(read_rows(path), mapper):
            belonging.add(taken.conversation)
    return belonging


def main() -> None:
    """Prints rows a second of reading alone and of all steps, seconds of splitting, and memory."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=200_000)
    parser.add_argument("--profile", action="store_true", help="print where the time goes")
    parsed = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        for name, (template, make) in FORMS.items():
            path = Path(folder) / "rows.jsonl"
            with path.open("w", encoding="utf-8") as file:
                file.writelines(json.dumps(make(number), ensure_ascii=False) + "\n" for number in range(parsed.rows))
            mapper = RowMapper(load(find(template)))
            profile = cProfile.Profile() if parsed.profile else None
            begin = time.process_time()
            _read(path)
            middle = time.process_time()
            if profile is not None:
                profile.enable()
            belonging = _take(path, mapper)
            if profile is not None:
                profile.disable()
            end = time.process_time()
            assert len(belonging.questions) == parsed.rows
            split_groups(belonging.groups(), valid_share=0.05, held_out_share=0.2, seed=0)
            split = time.process_time()
            print(
                f"{name:16} reading {parsed.rows / (middle - begin):9,.0f} rows/s; "
                f"reading, mapping, duplicates and keys {parsed.rows / (end - middle):9,.0f} rows/s; "
                f"splitting {split - end:.1f} s; peak memory so far {peak_memory_bytes() / 1e6:,.0f} MB"
            )
            if profile is not None:
                pstats.Stats(profile, stream=sys.stdout).sort_stats("tottime").print_stats(12)


if __name__ == "__main__":
    main()
