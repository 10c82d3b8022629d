"""A thinking model's answers in a batch and in a chat: the thought stands apart, and is held to the run's budget."""

from pathlib import Path

import pytest

from export.engines import Generation
from export.thought import ThinkingBudget
from finetune import chatting, cli
from finetune.batching import work
from finetune.partner import Partner, Said, Thinking, answers, trained_thinking
from tests.finetune.batching.speaking import ASK, read_answers, write_rows

BUDGET = ThinkingBudget(max_thinking_tokens=20)


class _Thinker:
    """Says one scripted text, from where the prompt leaves off in it; its tokens are characters."""

    prompts_at_once = 4
    rounding = ""

    def __init__(self, said):
        self.said = said

    def generate(self, prompts, max_new_tokens):
        made = []
        for prompt in prompts:
            written = "".join(map(chr, prompt)).partition("|")[2]
            behind = self.said.partition("</think>")[2] if written.endswith("</think>") else self.said[len(written) :]
            ids = tuple(map(ord, behind))
            made.append(Generation(ids=ids[:max_new_tokens], stopped=len(ids) <= max_new_tokens, seconds=0.0))
        return made

    def close(self):
        """Holds nothing."""


def _partner(said, thinking):
    return Partner(
        engine=_Thinker(said),
        encode=lambda messages: [*map(ord, messages[-1].content + "|")],
        decode=lambda ids: "".join(map(chr, ids)),
        thinking=thinking,
        encode_text=lambda text: [*map(ord, text)],
    )


@pytest.mark.parametrize(
    ("said", "thinking", "expected"),
    [
        ("<think>so</think>\n\nyes", Thinking(asked=True), Said("yes", "so", True)),
        ("<think>so</think>yes", Thinking(asked=True, budget=BUDGET), Said("yes", "so", True)),
        # cut in the thought: an answer is there only where a budget closes it
        ("<think>" + "x" * 50 + "</think>yes", Thinking(asked=True), Said("", "x" * 33, False)),
        ("<think>" + "x" * 50 + "</think>yes", Thinking(asked=True, budget=BUDGET), Said("yes", "x" * 13, True)),
        ("yes", Thinking(asked=True), Said("yes", "", True)),
        # a model that was not made to think may write of thoughts
        ("<think>so</think>yes", Thinking(), Said("<think>so</think>yes", "", True)),
    ],
)
def test_a_thought_is_told_from_its_answer(said, thinking, expected):
    (found,) = answers(_partner(said, thinking), [[*map(ord, "q|")]], 40)
    assert found == expected


@pytest.fixture
def batch(model, tmp_path, monkeypatch):
    """Runs the command on a model that thinks and says one thing, in a run's folder."""
    monkeypatch.chdir(tmp_path)
    write_rows("a", "b")

    def run(said, *arguments, check="{}", thinking="true"):
        (tmp_path / "run" / "data").mkdir(parents=True, exist_ok=True)
        recipe = f"name: x\nmodel: {{thinking: {thinking}}}\ncheck: {check}\n"
        (tmp_path / "run" / "recipe.yaml").write_text(recipe, encoding="utf-8")
        folder = tmp_path / "run" / "merged"
        if not folder.exists():
            folder.mkdir()
            for path in Path(model).iterdir():
                (folder / path.name).write_bytes(path.read_bytes())
        monkeypatch.setattr(work, "open_partner", lambda path: _partner(said, trained_thinking(path)))
        return cli.main(["batch", str(folder), *ASK, "--max-new-tokens", "40", *arguments])

    return run


def test_a_batch_writes_the_thought_beside_the_answer(batch):
    assert batch('<think>{"x": 2}</think>{"x": 1}', "--json") == 0
    expected = {"answer": {"x": 1}, "thought": '{"x": 2}', "stopped": True, "valid": True}
    assert [row | {"id": 0, "text": ""} for row in read_answers()] == 2 * [{"id": 0, "text": "", **expected}]


def test_the_runs_budget_cuts_the_thought_and_belongs_to_the_batch(batch, capsys):
    endless = "<think>" + "x" * 90 + "</think>yes"
    assert batch(endless, check="{thinking_budget: {max_thinking_tokens: 20}}") == 0
    assert [(row["answer"], row["thought"]) for row in read_answers()] == 2 * [("yes", "x" * 13)]
    assert batch(endless, check="{thinking_budget: {max_thinking_tokens: 30}}") == 2
    assert "thinking budget" in capsys.readouterr().err
    assert batch(endless, "--restart", check="{thinking_budget: {max_thinking_tokens: 30}}") == 0
    assert read_answers()[0]["thought"] == "x" * 23


def test_a_model_that_does_not_think_has_no_thoughts(batch):
    assert batch("yes", thinking="false") == 0
    assert set(read_answers()[0]) == {"id", "text", "answer", "stopped"}


def test_a_broken_budget_is_an_error(batch, capsys):
    assert batch("yes", check="{thinking_budget: {max_thinking_tokens: 0}}") == 2
    assert "check.thinking_budget cannot be read" in capsys.readouterr().err


def test_a_chat_shows_the_thought_apart_and_goes_on_without_it(tmp_path, monkeypatch, capsys):
    heard = []
    partner = _partner("<think>so</think>yes", Thinking(asked=True))
    plain = partner.encode
    partner = partner._replace(encode=lambda messages: heard.append([m.content for m in messages]) or plain(messages))
    monkeypatch.setattr(chatting, "open_partner", lambda path: partner)
    typed = iter(["a", "b"])
    monkeypatch.setattr("builtins.input", lambda prompt: next(typed, None) or _end())
    assert cli.main(["chat", str(tmp_path)]) == 0
    assert capsys.readouterr().out.splitlines()[1:3] == ["(thought: so)", "yes"]
    assert heard[-1] == ["a", "yes", "b"]


def _end():
    raise EOFError
