"""`fieldtune chat`: talk to whatever a run made, through the engine that will run it on the device.

A GGUF is spoken to with its own vocabulary, template and stop tokens, as a device would; a folder with its tokenizer's.
"""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from export.artifacts import read_model_config
from export.chat import Message, encode_prompt
from export.engines import Engine, Subject
from export.errors import DataError, FieldtuneError, ModelError
from export.hardware import available_cores
from export.readers.gguf import read_gguf
from export.subjects import subject_at
from finetune.data import read_conversations
from finetune.yaml_text import read_yaml

if TYPE_CHECKING:
    from export.engines.llama_library import Vocabulary

_CONTEXT_TOKENS = 4096
_SHOWN_CHARACTERS = 60


class Partner(NamedTuple):
    """A loaded model, and how its side of a conversation is turned into ids and back.

    `context_tokens` is what a prompt and its answer may be together; None where nothing says so.
    """

    engine: Engine
    encode: Callable[[Sequence[Message]], Sequence[int]]
    decode: Callable[[Sequence[int]], str]
    context_tokens: int | None = None


def talk(path: Path, *, system: str | None, max_new_tokens: int) -> None:
    """Reads lines and prints answers until the input ends. Raises ModelError when `path` is nothing to talk to.

    What cannot be answered (a conversation beyond the context, a line that spells a special token) is said and taken
    back; the conversation goes on.
    """
    opening, whose = _opening(path, system)
    messages = [Message(role="system", content=opening)] if opening else []
    partner = open_partner(path)
    try:
        partner.encode([*messages, Message(role="user", content="?")])  # a system prompt that no turn could follow
        print(f"{path}: type a message; an empty line starts over, Ctrl-D ends. {whose}", flush=True)
        _converse(partner, messages, max_new_tokens)
    finally:
        partner.engine.close()


def _opening(path: Path, given: str | None) -> tuple[str | None, str]:
    """The system prompt, and a sentence on which it is: a model trained behind one answers worse without it."""
    if given is not None:
        return given, f"System prompt: {_quoted(given)}, as given." if given else "No system prompt, as asked."
    trained = trained_system_prompt(path)
    if trained:
        return trained, f"System prompt: {_quoted(trained)}, as in training."
    if run_folder(path) is not None:
        return None, "No system prompt, as in training."
    return None, "No system prompt: none is recorded beside it; --system TEXT gives one."


def _quoted(text: str) -> str:
    line = " ".join(text.split())
    return f"'{line if len(line) <= _SHOWN_CHARACTERS else line[: _SHOWN_CHARACTERS - 3] + '...'}'"


def _converse(partner: Partner, opening: Sequence[Message], max_new_tokens: int) -> None:
    history = list(opening)
    while (line := _read_line()) is not None:
        if not line.strip():
            history = list(opening)
            continue
        turn = Message(role="user", content=line.strip())
        try:
            answer = reply(partner, [*history, turn], max_new_tokens)
        except FieldtuneError as error:
            print(f"this was not answered: {error} (An empty line starts over.)", flush=True)
            continue
        print(answer, flush=True)
        history += [turn, Message(role="assistant", content=answer)]


def reply(partner: Partner, history: Sequence[Message], max_new_tokens: int) -> str:
    """The model's greedy answer to a conversation that ends with the user's turn."""
    (generation,) = partner.engine.generate([partner.encode(history)], max_new_tokens)
    return partner.decode(generation.ids)


def open_partner(path: Path) -> Partner:
    """Loads an adapter folder, a model folder, a GPTQ folder or a GGUF file, thinking as its run did."""
    thinking = trained_thinking(path)
    subject = subject_at(path)
    open_it = _gguf_partner if subject.engine == "llama_cpp" else _folder_partner
    return open_it(subject, thinking)


def trained_system_prompt(path: Path) -> str | None:
    """The system prompt of the run that `path` belongs to: that of its first training row; None outside a run."""
    folder = run_folder(path)
    rows = None if folder is None else folder / "data" / "train.jsonl"
    if rows is None or not rows.is_file():
        return None
    first = next(read_conversations(rows)).messages[0]
    return first.content if first.role == "system" else None


def trained_thinking(path: Path) -> bool:
    """Whether the run that `path` belongs to was made in thinking mode; False outside a run."""
    folder = run_folder(path)
    model = None if folder is None else read_yaml(folder / "recipe.yaml").get("model")
    return isinstance(model, dict) and model.get("thinking") is True


def run_folder(path: Path) -> Path | None:
    """The run folder that `path` lies in: the nearest that holds a resolved recipe and a stage's result."""
    return next((p for p in path.resolve().parents if (p / "recipe.yaml").is_file() and (p / "data").is_dir()), None)


def _read_line() -> str | None:
    try:
        return input("> ")
    except EOFError:
        print()
        return None


def _folder_partner(subject: Subject, thinking: bool) -> Partner:
    from export.chat_tokenizer import load_tokenizer
    from export.engines import hf

    tokenizer = load_tokenizer(subject.path)
    return Partner(
        engine=hf.load(subject, vocabulary_size=len(tokenizer), threads=available_cores()),
        encode=lambda messages: encode_prompt(tokenizer, messages, thinking=thinking),
        decode=lambda ids: str(tokenizer.decode(list(ids), skip_special_tokens=True)),
        context_tokens=_trained_context(read_model_config(subject.path)),
    )


def _gguf_partner(subject: Subject, thinking: bool) -> Partner:
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
        return engine.tokenize(_render(template, messages, thinking))

    trained = declared.get(f"{declared.get('general.architecture')}.context_length", _CONTEXT_TOKENS)
    return Partner(engine, encode, engine.vocabulary.detokenize, min(trained, _CONTEXT_TOKENS))


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
