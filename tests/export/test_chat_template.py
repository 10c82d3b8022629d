"""Whether a template has a thinking mode is read off it, in whichever of its homes it lies."""

import json

import pytest

from export.chat_template import chat_template_in, reads_thinking, thinking_is_ignored
from tests.export.chat_tokenizers import PLAIN, REWRITING, THINKING, build_tokenizer


@pytest.mark.parametrize(("template", "reads"), [(PLAIN, False), (THINKING, True), (REWRITING, False)])
def test_a_template_that_reads_the_switch_writes_otherwise_with_it(template, reads):
    tokenizer = build_tokenizer.__wrapped__("plain")
    tokenizer.chat_template = template
    turns = [{"role": "user", "content": "a"}]
    on, off = (
        tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=True, enable_thinking=thinking)
        for thinking in (True, False)
    )
    assert (on != off) is reads
    assert reads_thinking(template) is reads


def test_a_comment_about_it_is_no_switch():
    assert not reads_thinking("{# enable_thinking: not here #}" + PLAIN)


@pytest.mark.parametrize("stored", [PLAIN, [{"name": "tool", "template": "x"}, {"name": "default", "template": PLAIN}]])
def test_it_is_found_in_the_tokenizers_settings_and_in_a_file_of_its_own(tmp_path, stored):
    assert chat_template_in(tmp_path) is None
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"chat_template": stored}), encoding="utf-8")
    assert chat_template_in(tmp_path) == PLAIN
    told = thinking_is_ignored(tmp_path)
    assert told is not None and "no thinking mode" in told and str(tmp_path) in told
    (tmp_path / "chat_template.jinja").write_text(THINKING, encoding="utf-8")
    assert chat_template_in(tmp_path) == THINKING
    assert thinking_is_ignored(tmp_path) is None
