"""A thinking budget on real engines: transformers and llama.cpp write the same thoughts, ends and answers."""

import json
import os
import sys
from pathlib import Path

import pytest

from export import observe as observe_module
from export.artifacts import ModelFolder
from export.budgeted import Answer, answer_within
from export.chat import Message, encode_prompt
from export.chat_tokenizer import load_tokenizer
from export.checks import Item, Items
from export.engines import Subject, hf, llama_cpp
from export.formats import ExportRows
from export.formats.gguf import Gguf
from export.observe import Request
from export.thought import ThinkingBudget
from export.tokenizer_file import TokenizerFile
from finetune.hub import resolve_model

QUESTIONS = (
    "Explain what the robot does at nine in the morning.",
    "What is the robot doing?",
    "Mop the kitchen.",
    "把厨房拖一遍。",
    "Who are you?",
)
CODEC_FOLDER = resolve_model("starter", revision=None, offline=True)


@pytest.fixture(scope="module")
def prompts():
    tokenizer = load_tokenizer(CODEC_FOLDER)
    return [encode_prompt(tokenizer, [Message(role="user", content=question)]) for question in QUESTIONS]


@pytest.fixture(scope="module")
def engines(tmp_path_factory):
    """The starter in transformers, and as a 16-bit file in llama.cpp with an exact cache."""
    model = ModelFolder(folder=CODEC_FOLDER, dtype="bfloat16", base="starter", chat_template_sha256="0")
    out = tmp_path_factory.mktemp("gguf")
    file = Gguf().quantize("gguf-f16", model, ExportRows(), out, {}.__getitem__).path
    subject = Subject(name="starter", engine="hf", path=CODEC_FOLDER)
    first = hf.load(subject, vocabulary_size=None, threads=1)
    second = llama_cpp.load(file, vocabulary_size=None, context_tokens=512, threads=1, exact=True)
    yield first, second
    first.close()
    second.close()


def _budget(engine, prompts, tokens, waits) -> ThinkingBudget:
    """A budget whose markers are words that the model writes to the first prompt: it opens a thought, and closes it."""
    codec = TokenizerFile(CODEC_FOLDER)
    ids = engine.generate(prompts[:1], 40)[0].ids
    assert len(ids) > 6, "the first answer must be long enough to be a thought and an answer"
    begin, end = codec.decode(ids[:2]).strip(), codec.decode(ids[5:6])
    return ThinkingBudget(max_thinking_tokens=tokens, waits=waits, wait=" so", begin=begin, end=end)


@pytest.mark.parametrize(("tokens", "waits"), [(30, 0), (30, 2), (3, 0)])
def test_both_engines_write_the_same_within_a_budget(engines, prompts, tokens, waits):
    codec = TokenizerFile(CODEC_FOLDER)
    budget = _budget(engines[0], prompts, tokens, waits)
    first, second = (answer_within(engine, prompts, budget, 12, codec) for engine in engines)
    assert first == second
    thought = first[0].thought
    assert thought.ended == ("cut" if tokens == 3 else "closed" if waits == 0 else thought.ended) != "none"
    assert (thought.waits > 0) is (waits > 0)
    assert len(first[0].ids) > thought.tokens  # an end, and an answer
    assert {answer.thought.ended for answer in first[1:]} == {"none"}
    assert all(answer.thought.tokens <= tokens for answer in first)


def test_what_is_observed_has_the_thought_in_its_words_and_in_its_record(engines, prompts, tmp_path, monkeypatch):
    budget = _budget(engines[0], prompts, 3, 0)
    items = Items(
        items=tuple(Item(ids=(*prompt, 5), scored=(len(prompt),), prompt=prompt, answer="x") for prompt in prompts),
        vocabulary_size=len(load_tokenizer(CODEC_FOLDER)),
        max_new_tokens=4,
        thinking_budget=budget,
    )
    (tmp_path / "items.json").write_text(items.model_dump_json(), encoding="utf-8")
    request = Request(
        subject=Subject(name="starter", engine="hf", path=CODEC_FOLDER),
        items=tmp_path / "items.json",
        tokenizer=CODEC_FOLDER,
        reference=None,
        size_bytes=1,
        threads=1,
    )
    (tmp_path / "request.json").write_text(request.model_dump_json(), encoding="utf-8")
    pipe = str(os.open(os.devnull, os.O_WRONLY))
    monkeypatch.setattr(sys, "argv", ["observe", str(tmp_path / "request.json"), str(tmp_path), pipe])
    assert observe_module.main() == 0
    seen = json.loads((tmp_path / "observation.json").read_text(encoding="utf-8"))
    expected: list[Answer] = answer_within(engines[0], prompts, budget, 4, TokenizerFile(CODEC_FOLDER))
    for item, answer in zip(seen["items"], expected, strict=True):
        assert item["generated"] == TokenizerFile(CODEC_FOLDER).decode(answer.ids)
        assert item["thought"] == answer.thought.model_dump()
        assert (item["stopped"], item["generated_tokens"]) == (answer.stopped, len(answer.ids))
    assert seen["items"][0]["thought"]["ended"] == "cut"
    assert Path(tmp_path / "observation.json").is_file()
