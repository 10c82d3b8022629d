"""Whatever the rows: what is encoded is what is rendered, what carries loss is what the assistant says, and no row
stands in two splits.
"""

import json
import unicodedata

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from export.chat import Conversation, Message, encode, render
from finetune.data import DataSettings, prepare
from tests.export.chat_tokenizers import build_tokenizer

END = "<|im_end|>"
# Any text that is no half of a surrogate pair and spells no special token; think tags are the template's business.
TEXT = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=40).filter(
    lambda text: text.strip() and "<|" not in text and "think>" not in text
)
TURNS = st.lists(st.tuples(TEXT, TEXT), min_size=1, max_size=4)
SYSTEM = st.none() | TEXT


def conversation(system, rounds):
    opening = [] if system is None else [Message(role="system", content=system)]
    turns = [
        Message(role=role, content=text)
        for pair in rounds
        for role, text in zip(("user", "assistant"), pair, strict=True)
    ]
    return Conversation(messages=(*opening, *turns))


def scored_runs(tokenizer, encoded):
    """The text of each unbroken run of tokens that carry loss; turn ends part two runs."""
    runs, open_run = [], []
    for token, is_scored in zip(encoded.ids, encoded.scored, strict=True):
        if is_scored:
            open_run.append(token)
        if open_run and (not is_scored or token == tokenizer.eos_token_id):
            runs.append(tokenizer.decode(open_run))
            open_run = []
    return runs


@settings(max_examples=300, deadline=None)
@given(system=SYSTEM, rounds=TURNS)
def test_the_ids_decode_to_the_rendered_text_and_the_mask_is_the_assistants(system, rounds):
    tokenizer = build_tokenizer("plain")
    item = conversation(system, rounds)
    encoded = encode(tokenizer, item)
    # Qwen's tokenizer composes characters (NFC) before it cuts them
    rendered = render(tokenizer, item.messages, thinking=False, open_turn=False)
    assert tokenizer.decode(encoded.ids) == unicodedata.normalize("NFC", rendered)
    assert scored_runs(tokenizer, encoded) == [unicodedata.normalize("NFC", answer) + END for _, answer in rounds]


ROW = st.fixed_dictionaries({"question": TEXT, "answer": TEXT})


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    rows=st.lists(ROW, min_size=6, max_size=25), copies=st.lists(st.integers(0, 5), max_size=6), seed=st.integers(0, 9)
)
def test_every_row_is_accounted_for_and_none_stands_in_two_splits(tmp_path_factory, rows, copies, seed):
    from export.errors import DataError

    folder = tmp_path_factory.mktemp("rows")
    content = rows + [rows[index] for index in copies]
    path = folder / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in content), encoding="utf-8")
    out = folder / "out"
    out.mkdir()
    chosen = DataSettings(path=str(path), template="question_answer")
    tokenizer = build_tokenizer("plain")
    try:
        splits = prepare(
            chosen, tokenizer, name="x", seed=seed, thinking=False, offline=True, out=out, say=lambda line: None
        )
    except DataError as error:
        assert "fewer than 3 groups" in str(error)
        return
    assert splits.read == len(content) == splits.kept + sum(splits.dropped.values())
    places = {}
    for name in ("train", "valid", "held_out"):
        for item in splits.conversations(name):
            places.setdefault(" ".join(item.prompt[-1].content.split()).casefold(), set()).add(name)
    assert all(len(names) == 1 for names in places.values())
    assert sum(getattr(splits, name).rows for name in ("train", "valid", "held_out")) == splits.kept
