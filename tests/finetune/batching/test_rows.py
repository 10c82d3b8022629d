"""Every row once and in order, and answers that are those of one by one."""

from pathlib import Path

import pytest

from export.formats import ExportRows
from export.formats.gguf import Gguf
from finetune import chatting, partner
from finetune.base_model import ModelSettings, open_base
from finetune.batching import BatchSettings, answer_file
from finetune.batching.progress import _clock, shown_speed
from tests.finetune.batching.speaking import ASK, Engine, read_answers, write_rows


@pytest.mark.parametrize("at_once", [1, 2, 3, 7, 32])
def test_every_row_is_there_once_in_order_those_in_error_too(speak, capsys, at_once):
    texts = ["a", "", "b", None, "c" * 150, "d", "e"]
    write_rows(*texts)
    engine = speak(*ASK, "--max-new-tokens", "100", engine=Engine(at_once), status=1)
    rows = read_answers()
    assert [row["id"] for row in rows] == list(range(7))
    assert [row.get("answer") for row in rows] == ["A", None, "B", None, "C" * 100, "D", "E"]
    assert [row.get("stopped") for row in rows] == [True, None, True, None, False, True, True]
    assert "line 2: the prompt is empty" in rows[1]["error"]
    assert "the field 'text' is null" in rows[3]["error"]
    assert engine.closed
    said = capsys.readouterr()
    assert said.out.startswith("7 rows at ")
    assert said.out.endswith("; 2 in error; 1 cut at 100 tokens: out.jsonl\n")
    assert "rows/s" in said.err and " left" in said.err


def test_a_row_that_is_too_long_for_the_context_is_an_error_and_no_more(speak):
    write_rows("a" * 301, "b" * 300)
    speak(*ASK, "--max-new-tokens", "100", status=1)
    too_long, fits = read_answers()
    assert "has 301 tokens; expected at most 300, which leaves room for 100" in too_long["error"]
    assert fits["answer"] == "B" * 100


def test_a_file_of_which_every_row_is_answered_ends_with_status_0(speak, capsys):
    write_rows("a", "b")
    speak(*ASK)
    assert "error" not in capsys.readouterr().out
    assert read_answers()[1] == {"id": 1, "text": "b", "answer": "B", "stopped": True}


def test_a_model_that_is_computed_in_fewer_bits_says_so(speak, capsys):
    write_rows("a")
    speak(*ASK, engine=Engine(rounding="computed in bf16, as it is stored"))
    assert "the model is computed in bf16, as it is stored\n" in capsys.readouterr().err


def _one_by_one(path, texts):
    opened = partner.open_partner(path)
    try:
        return [chatting.reply(opened, [chatting.Message(role="user", content=text)], 12).text for text in texts]
    finally:
        opened.engine.close()


TEXTS = [*("Turn on the light" + " please" * n for n in range(5)), "把客厅的灯打开。", "x", *map(str, range(33))]


@pytest.mark.parametrize("kind", ["starter folder", "folder", "gguf"])
def test_answers_are_those_of_one_by_one(kind, tiny_qwen, tmp_path, monkeypatch):

    monkeypatch.chdir(tmp_path)
    path = open_base(ModelSettings()).path if kind == "starter folder" else tiny_qwen.folder
    if kind == "gguf":
        path = Gguf(types=()).quantize("gguf-f16", tiny_qwen, ExportRows(), tmp_path, {}.__getitem__).path
    write_rows(*TEXTS)
    settings = BatchSettings(
        model=path, rows=Path("in.jsonl"), out=Path("out.jsonl"), prompt="{text}", max_new_tokens=12
    )
    answer_file(settings, lambda line: None)
    assert [row["answer"] for row in read_answers()] == _one_by_one(path, TEXTS)
    assert len({row["answer"] for row in read_answers()}) > 5


def test_speeds_and_times_are_shown_in_few_digits():
    assert [shown_speed(value) for value in (1234.5, 99.94, 0.03456)] == [
        "1,234 rows/s",
        "99.9 rows/s",
        "0.0346 rows/s",
    ]
    assert [_clock(seconds) for seconds in (4.4, 75, 36_001)] == ["0:00:04", "0:01:15", "10:00:01"]
