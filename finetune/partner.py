"""A model that answers: whatever a run made, spoken to as its run did, with its thoughts told from its answers.

A GGUF is spoken to with its own vocabulary, template and stop tokens, as a device would; a folder with its tokenizer's.
What is said to it is `finetune.chatting`'s and `finetune.batching`'s.
"""

from collections.abc import Callable, Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from pydantic import ValidationError

from export.artifacts import read_model_config
from export.budgeted import answer_within
from export.chat import Conversation, Message, encode_prompt
from export.engines import Engine, Subject
from export.errors import DataError, ModelError, RecipeError
from export.hardware import available_cores
from export.readers.gguf import read_gguf
from export.subjects import subject_at
from export.thought import THINK_BEGIN, THINK_END, ThinkingBudget, answer_behind_thought
from finetune.data import read_conversations
from finetune.yaml_text import read_yaml

if TYPE_CHECKING:
    from export.engines.llama_library import Vocabulary

_CONTEXT_TOKENS = 4096
_ROWS_LOOKED_AT = 200


class Thinking(NamedTuple):
    """How a run's model thinks: whether it is asked to, and within what budget (None: as long as an answer may be)."""

    asked: bool = False
    budget: ThinkingBudget | None = None

    @property
    def told_apart(self) -> bool:
        """Whether answers may come behind thoughts."""
        return self.asked or self.budget is not None

    @property
    def most_tokens(self) -> int:
        """Tokens that a thought may take beside the answer."""
        return 0 if self.budget is None else self.budget.most_tokens


class Said(NamedTuple):
    """An answer, what was thought before it (empty where there is no thought), and whether it ended by itself."""

    text: str
    thought: str
    stopped: bool


class Partner(NamedTuple):
    """A loaded model, and how its side of a conversation is turned into ids and back.

    `context_tokens` is what a prompt and its answer may be together; None where nothing says so. `encode_text` turns
    text into ids with nothing around it.
    """

    engine: Engine
    encode: Callable[[Sequence[Message]], Sequence[int]]
    decode: Callable[[Sequence[int]], str]
    context_tokens: int | None = None
    thinking: Thinking = Thinking()
    encode_text: Callable[[str], list[int]] = lambda text: []


class _Codec(NamedTuple):
    """A partner's text and ids, as a budget needs them."""

    encode: Callable[[str], list[int]]
    decode: Callable[[Sequence[int]], str]


def answers(partner: Partner, prompts: Sequence[Sequence[int]], max_new_tokens: int) -> list[Said]:
    """Greedy answers to prompts of token ids, in order; thoughts are held to the run's budget where it has one."""
    thinking = partner.thinking
    if thinking.budget is None:
        plain = partner.engine.generate(prompts, max_new_tokens)
        return [_said(partner.decode(answer.ids), thinking, stopped=answer.stopped) for answer in plain]
    codec = _Codec(partner.encode_text, partner.decode)
    within = answer_within(partner.engine, prompts, thinking.budget, max_new_tokens, codec)
    return [_said(partner.decode(answer.ids), thinking, stopped=answer.stopped) for answer in within]


def _said(text: str, thinking: Thinking, *, stopped: bool) -> Said:
    if not thinking.told_apart:
        return Said(text, "", stopped)
    budget = thinking.budget
    begin, end = (THINK_BEGIN, THINK_END) if budget is None else (budget.begin_marker, budget.end_marker)
    answer = answer_behind_thought(text, begin, end)
    thought = text[: len(text) - len(answer)].strip().removeprefix(begin).removesuffix(end).strip()
    return Said(answer, thought, stopped)


def open_partner(path: Path) -> Partner:
    """Loads an adapter folder, a model folder, a GPTQ folder or a GGUF file, thinking as its run did."""
    thinking = trained_thinking(path)
    subject = subject_at(path)
    open_it = _gguf_partner if subject.engine == "llama_cpp" else _folder_partner
    return open_it(subject, thinking)


def trained_system_prompt(path: Path) -> str | None:
    """The system prompt of the run that `path` belongs to: that of its first training row; None outside a run."""
    first = next(_training_rows(path), None)
    return first.messages[0].content if first is not None and first.messages[0].role == "system" else None


def trained_on_single_messages(path: Path) -> bool:
    """Whether no training row (of the first ones) of the run that `path` belongs to has two messages of the user."""
    turns = [
        sum(message.role == "user" for message in row.messages) for row in islice(_training_rows(path), _ROWS_LOOKED_AT)
    ]
    return bool(turns) and max(turns) == 1


def _training_rows(path: Path) -> Iterator[Conversation]:
    """The training rows of the run that `path` belongs to; none outside a run."""
    folder = run_folder(path)
    rows = None if folder is None else folder / "data" / "train.jsonl"
    return iter(()) if rows is None or not rows.is_file() else iter(read_conversations(rows))


def trained_thinking(path: Path) -> Thinking:
    """How the run that `path` belongs to thinks; outside a run, not at all. Raises RecipeError for a broken budget."""
    folder = run_folder(path)
    recipe = {} if folder is None else read_yaml(folder / "recipe.yaml")
    model, check = recipe.get("model"), recipe.get("check")
    given = check.get("thinking_budget") if isinstance(check, dict) else None
    try:
        budget = None if given is None else ThinkingBudget.model_validate(given)
    except ValidationError as error:
        raise RecipeError(f"{folder}/recipe.yaml: check.thinking_budget cannot be read: {error}") from None
    return Thinking(isinstance(model, dict) and model.get("thinking") is True, budget)


def run_folder(path: Path) -> Path | None:
    """The run folder that `path` lies in: the nearest that holds a resolved recipe and a stage's result."""
    return next((p for p in path.resolve().parents if (p / "recipe.yaml").is_file() and (p / "data").is_dir()), None)


def _folder_partner(subject: Subject, thinking: Thinking) -> Partner:
    from export.chat_tokenizer import load_tokenizer
    from export.engines import hf

    tokenizer = load_tokenizer(subject.path)
    return Partner(
        engine=hf.load(subject, vocabulary_size=len(tokenizer), threads=available_cores()),
        encode=lambda messages: encode_prompt(tokenizer, messages, thinking=thinking.asked),
        decode=lambda ids: str(tokenizer.decode(list(ids), skip_special_tokens=True)),
        context_tokens=_trained_context(read_model_config(subject.path)),
        thinking=thinking,
        encode_text=lambda text: list(tokenizer.encode(text, add_special_tokens=False)),
    )


def _gguf_partner(subject: Subject, thinking: Thinking) -> Partner:
    from export.engines import llama_cpp

    path = subject.path
    declared = read_gguf(path).metadata  # of a file that is broken our own reader says more than llama.cpp does
    engine = llama_cpp.load(path, vocabulary_size=None, context_tokens=_CONTEXT_TOKENS, threads=available_cores())
    template = engine.vocabulary.chat_template()
    if template is None:
        raise ModelError(f"{path} holds no chat template, so there is no telling how it wants to be spoken to.")

    def encode(messages: Sequence[Message]) -> Sequence[int]:
        for message in messages:
            _refuse_special_tokens(engine.vocabulary, message.content)
        return engine.tokenize(_render(template, messages, thinking.asked))

    trained = declared.get(f"{declared.get('general.architecture')}.context_length", _CONTEXT_TOKENS)
    return Partner(
        engine=engine,
        encode=encode,
        decode=engine.vocabulary.detokenize,
        context_tokens=min(trained, _CONTEXT_TOKENS),
        thinking=thinking,
        encode_text=engine.vocabulary.tokenize,
    )


def _trained_context(config: dict[str, Any]) -> int | None:
    """The positions that a folder's model was made for, by its config or that of its text part."""
    length = (config.get("text_config") or config).get("max_position_embeddings")
    return length if isinstance(length, int) else None


def _refuse_special_tokens(vocabulary: "Vocabulary", text: str) -> None:
    """Raises DataError where a turn spells a special token, as `export.chat` does for training rows."""
    if vocabulary.tokenize(text, parse_special=True) != vocabulary.tokenize(text, parse_special=False):
        raise DataError(
            f"a turn holds a special token of the file's vocabulary, which would be read as a command and not as "
            f"text: {text[:60]!r}. Write it without."
        )


def _render(template: str, messages: Sequence[Message], thinking: bool) -> str:
    """The template's text for a conversation that waits for the assistant, by transformers' own renderer."""
    from jinja2 import TemplateError
    from transformers.utils.chat_template_utils import render_jinja_template

    try:
        texts, _ = render_jinja_template(
            conversations=[[message.model_dump() for message in messages]],
            chat_template=template,
            add_generation_prompt=True,
            enable_thinking=thinking,
        )
    except TemplateError as error:
        raise DataError(f"the file's chat template refuses the conversation: {error}.") from error
    return str(texts[0])
