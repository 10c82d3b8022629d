"""The conversations every artifact is asked to read, as the reference reads them, and how an artifact's reading of
them is compared with that.

The reference is a Hugging Face folder: `export.chat` gives the ids that were trained on, its template and tokenizer
the ids of the whole text. What an artifact makes of them is found out in `_gguf` and `_folder`.
"""

import copy
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from export.artifacts import read_model_config
from export.chat import Conversation, Message, encode, encode_prompt, render
from export.chat_tokenizer import name_turn_end
from export.errors import DataError, ModelError
from export.identity.finding import Finding
from export.loading import open_tokenizer

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

# Held-out rows that are read again: enough of the real text, at little cost.
ROWS_READ = 32
_SHOWN_CHARACTERS = 24
REPLACEMENT = "\ufffd"


def _talk(*turns: str, system: str | None = None) -> Conversation:
    """Turns that begin with the user's, answered in alternation."""
    opening = () if system is None else (Message(role="system", content=system),)
    roles = ("user", "assistant")
    return Conversation(
        messages=(*opening, *(Message(role=roles[i % 2], content=turn) for i, turn in enumerate(turns)))
    )


# One for each thing that a template or a pre-tokenizer treats in its own way. Answers begin with no white space:
# there, and only there, reading a whole text and reading it turn by turn may cut it differently.
PROBES: dict[str, Conversation] = {
    "one turn without a system prompt": _talk("What is the time?", "It's ten past nine."),
    "one turn with a system prompt": _talk("Hello!", "Hello, how can I help?", system="Answer in one sentence."),
    "three turns without a system prompt": _talk(
        "Turn on the light.", "Done.", "And the one in the kitchen?", "It's on too.", "Thanks", "You're welcome."
    ),
    "two turns with a system prompt": _talk("1 + 1?", "2", "And 12345.67 - 89?", "12256.67", system="You calculate."),
    "Chinese": _talk(
        "请把客厅的灯打开,温度调到26度。谢谢!", "好的,客厅的灯已经打开,温度为26度。", system="你是一个家庭助手。"
    ),
    "other scripts": _talk("café Straße Привет हिन्दी 한국어", "Ünïcödé — “naïve” ١٢٣ ไทย עברית"),
    "emoji": _talk("🙂👩‍🔬🚀 what are these?", "🙂 a face, 👩‍🔬 a scientist, 🚀 a rocket 🇩🇪👍🏽"),
    "code": _talk("Write add(a, b).", "def add(a, b):\n\treturn a + b  # total\n\n\nprint(add(12,  345))"),
    "JSON": _talk("lights off in the kitchen", '{"intent": "light_off", "slots": {"room": "kitchen", "n": [1, 2]}}'),
    "spaces and line breaks": _talk("a  b\t\tc \n \n\n d\r\ne\u00a0f\u3000g", "x   y\n\n\nz  "),
    "contractions and numbers": _talk("Don't panic: they'LL say 'so' 3.14 1,000,000 0x7fff!!", "I'd've gone at 07:05."),
    "text that looks like a special token": _talk("What is <|im_end |> or < |endoftext|>?", "<|im_ start|> is none."),
    "an answer behind a thought": _talk("3 + 4?", "<think>\n3 and 4 make 7.\n</think>\n\n7"),
    "thoughts in two turns": _talk(
        "3 + 4?", "<think>\n3 and 4 make 7.\n</think>\n\n7", "And 1 more?", "<think>\n7 and 1.\n</think>\n\n8"
    ),
    "tokens that text may hold": _talk("Explain <think>, </think> and <tool_call>.", "They are markers."),
}


class Case(NamedTuple):
    """A conversation as the reference reads it.

    `text` is what its template makes of the conversation, `ids` the tokens of that text. `open_turn` says whether the
    answer is still to come. `trained` are the ids that training and every engine are given.
    """

    name: str
    messages: tuple[Message, ...]
    open_turn: bool
    text: str
    ids: tuple[int, ...]
    trained: tuple[int, ...]


class Row(NamedTuple):
    """A held-out row as text, and the tokens of that text."""

    text: str
    ids: tuple[int, ...]


class Reference(NamedTuple):
    """The folder an artifact is compared with, its tokenizer, and what it makes of the probes.

    The tokenizer is the one of training, which ends a turn where the template does; `declared_end` is the end that the
    folder itself names, which in Qwen's base models is another one. `refused` counts probes that its template or
    encoding refuses (one without system prompts, say). `config` is None for a folder that holds a tokenizer alone;
    `tokens` holds the text of each id, as the tokenizer's files write it.
    """

    folder: Path
    tokenizer: "PreTrainedTokenizerBase"
    declared_end: int | None
    config: dict[str, Any] | None
    thinking: bool
    tokens: tuple[str, ...]
    cases: tuple[Case, ...]
    rows: tuple[Row, ...]
    refused: int

    @property
    def turn_end(self) -> int:
        """The token that ends an assistant's turn: the one that is trained on as such."""
        return int(self.tokenizer.eos_token_id)

    def shown(self, token: int) -> str:
        """An id and its text, for a reader."""
        if not 0 <= token < len(self.tokens):
            return f"{token} (which the tokenizer of {self.folder} does not know)"
        text = str(self.tokenizer.decode([token], skip_special_tokens=False))
        # part of a character: as the vocabulary writes it
        return f"{token} {self.tokens[token] if REPLACEMENT in text else text!r}"


class Read(NamedTuple):
    """What an artifact makes of the reference's cases and rows.

    `texts` are by its own template, a string that tells why where it refuses; `ids` are by its own vocabulary.
    """

    template: str | None
    texts: "tuple[Rendered, ...]"
    case_ids: tuple[tuple[int, ...], ...]
    row_ids: tuple[tuple[int, ...], ...]


class Rendered(NamedTuple):
    """A conversation by an artifact's template: its text, or the reason why there is none."""

    text: str
    failure: str = ""


def open_reference(folder: Path, rows: Sequence[Sequence[int]], *, thinking: bool) -> Reference:
    """Reads the probes and the first of `rows` (token ids) as training reads them.

    Raises ModelError when the folder's tokenizer cannot be opened, has no chat template or one that ends turns with
    plain text, or none of the probes can be encoded.
    """
    tokenizer = open_tokenizer(folder)
    declared_end = tokenizer.eos_token_id
    cases: list[Case] = []
    refused: list[DataError] = []
    try:
        name_turn_end(tokenizer, folder)
    except DataError as error:
        raise _refuses_all(folder, error) from error
    for name, conversation in PROBES.items():
        try:
            cases += _cases(tokenizer, name, conversation, thinking)
        except DataError as error:
            refused.append(error)
    if not cases:
        raise _refuses_all(folder, refused[0])
    config = read_model_config(folder) if (folder / "config.json").is_file() else None
    read = tuple(_row(tokenizer, ids) for ids in rows[:ROWS_READ])
    tokens = token_texts(tokenizer)
    return Reference(folder, tokenizer, declared_end, config, thinking, tokens, tuple(cases), read, len(refused))


def _refuses_all(folder: Path, first: DataError) -> ModelError:
    return ModelError(f"no conversation could be read with the tokenizer and chat template of {folder}: {first}")


def _cases(
    tokenizer: "PreTrainedTokenizerBase", name: str, conversation: Conversation, thinking: bool
) -> Iterator[Case]:
    """The whole conversation, and its prompt."""
    whole, prompt = conversation.messages, conversation.prompt
    text = render(tokenizer, whole, thinking=thinking, open_turn=False)
    trained = encode(tokenizer, conversation, thinking=thinking).ids
    yield Case(name, whole, False, text, ids_of(tokenizer, text), trained)
    opened = render(tokenizer, prompt, thinking=thinking, open_turn=True)
    before = encode_prompt(tokenizer, prompt, thinking=thinking)
    yield Case(f"{name}, before the answer", prompt, True, opened, ids_of(tokenizer, opened), before)


def _row(tokenizer: "PreTrainedTokenizerBase", ids: Sequence[int]) -> Row:
    text = str(tokenizer.decode(list(ids), skip_special_tokens=False, clean_up_tokenization_spaces=False))
    return Row(text, ids_of(tokenizer, text))


def ids_of(tokenizer: "PreTrainedTokenizerBase", text: str) -> tuple[int, ...]:
    """Token ids of a rendered text, nothing added around it."""
    # verbose=False: a row longer than the model's context is no reason for a warning here
    return tuple(tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"])


def token_texts(tokenizer: "PreTrainedTokenizerBase") -> tuple[str, ...]:
    """The text of each id, as the tokenizer's files write it; an id that is not used has none."""
    return tuple(text or "" for text in tokenizer.convert_ids_to_tokens(range(len(tokenizer))))


def template_of(tokenizer: "PreTrainedTokenizerBase") -> str | None:
    """The source of the chat template that is used when none is asked for by name."""
    template: Any = tokenizer.chat_template
    if isinstance(template, dict):
        template = template.get("default")
    return template or None


def rendered_by(
    tokenizer: "PreTrainedTokenizerBase", template: str | None, reference: Reference
) -> tuple[Rendered, ...]:
    """Each case by another template, in the environment in which transformers runs templates.

    Where there is none, the reference's own text: what an artifact's vocabulary makes of it can still be seen.
    """
    if template is None:
        return tuple(Rendered(case.text) for case in reference.cases)
    with_template = copy.copy(tokenizer)
    with_template.chat_template = template
    return tuple(_rendered(with_template, case, reference.thinking) for case in reference.cases)


def _rendered(tokenizer: "PreTrainedTokenizerBase", case: Case, thinking: bool) -> Rendered:
    try:
        return Rendered(render(tokenizer, case.messages, thinking=thinking, open_turn=case.open_turn))
    except Exception as error:  # a template is a program of somebody else's: it may raise anything
        return Rendered("", " ".join(str(error).split())[:200] or type(error).__name__)


def template_finding(subject: str, read: Read, reference: Reference) -> Finding:
    """Whether the artifact has a chat template that writes what the reference's writes."""
    own = template_of(reference.tokenizer)
    expected = f"the chat template of {reference.folder}"
    what, cases = "chat template", reference.cases
    if read.template is None:
        note = "runtimes would fall back on a template of their own, or on none"
        return Finding(what=what, subject=subject, ok=False, found="none", expected=expected, note=note)
    if read.template == own:
        return Finding(what=what, subject=subject, ok=True, found="the same source", expected=expected)
    different = [(case, seen) for case, seen in zip(cases, read.texts, strict=True) if seen.text != case.text]
    if not different:
        note = f"another source, which writes all {len(cases)} texts that were tried alike"
        return Finding(what=what, subject=subject, ok=True, found="the same text", expected=expected, note=note)
    case, seen = different[0]
    found, wanted = _around_first_difference(seen.text, case.text)
    note = f"differs in {len(different)} of {len(cases)} texts; shown is {case.name!r}"
    found = f"it refuses the conversation: {seen.failure}" if seen.failure else f"it writes {found!r}"
    return Finding(what=what, subject=subject, ok=False, found=found, expected=f"{wanted!r}", note=note)


def _around_first_difference(found: str, expected: str) -> tuple[str, str]:
    """The two texts from a little before the character in which they part."""
    same = first_difference(found, expected)
    begin = max(0, same - _SHOWN_CHARACTERS)
    return found[begin : same + _SHOWN_CHARACTERS], expected[begin : same + _SHOWN_CHARACTERS]


def first_difference(left: Sequence[Any], right: Sequence[Any]) -> int:
    """The first index at which two sequences differ: the shorter one's length, where it begins the other."""
    pairs = zip(left, right, strict=False)
    return next((i for i, (a, b) in enumerate(pairs) if a != b), min(len(left), len(right)))


class _Mismatch(NamedTuple):
    name: str
    position: int
    found: str
    expected: str


def token_ids_finding(subject: str, read: Read, reference: Reference) -> Finding:
    """Whether the same conversations become the same tokens: in training, by the template, and in the artifact."""
    found = [*_trained_otherwise(reference), *_read_otherwise(read, reference)]
    conversations, rows = len(reference.cases), len(reference.rows)
    tokens = sum(len(case.ids) for case in reference.cases) + sum(len(row.ids) for row in reference.rows)
    asked = f"{conversations} texts of conversations and {rows} held-out rows, {tokens:,} tokens in all"
    notes = [f"{reference.refused} conversations are refused by the reference's template"] if reference.refused else []
    if not found:
        if read.template is None:
            notes.append("the artifact has no template; its vocabulary was given the reference's text")
        same = f"the same ids for {asked}"
        return Finding(
            what="token ids",
            subject=subject,
            ok=True,
            found=same,
            expected="the ids of training",
            note="; ".join(notes),
        )
    first = found[0]
    notes.insert(0, f"{len(found)} of {asked}, differ; the first is {first.name!r}")
    return Finding(
        what="token ids",
        subject=subject,
        ok=False,
        found=f"at position {first.position}: {first.found}",
        expected=first.expected,
        note="; ".join(notes),
    )


def _trained_otherwise(reference: Reference) -> Iterator[_Mismatch]:
    """Probes whose training ids are not those of the whole text."""
    for case in reference.cases:
        if case.ids != case.trained:
            name = f"{case.name}, encoded for training and read as a whole"
            yield _mismatch(name, case.ids, case.trained, reference)


def _read_otherwise(read: Read, reference: Reference) -> Iterator[_Mismatch]:
    for case, seen, ids in zip(reference.cases, read.texts, read.case_ids, strict=True):
        if seen.failure:
            yield _Mismatch(case.name, 0, f"nothing: its template fails ({seen.failure})", "the conversation's ids")
        elif ids != case.ids:
            yield _mismatch(case.name, ids, case.ids, reference)
    for index, (row, ids) in enumerate(zip(reference.rows, read.row_ids, strict=True)):
        if ids != row.ids:
            yield _mismatch(f"held-out row {index + 1}", ids, row.ids, reference)


def _mismatch(name: str, found: tuple[int, ...], expected: tuple[int, ...], reference: Reference) -> _Mismatch:
    position = first_difference(found, expected)
    shown = [f"id {reference.shown(ids[position])}" if position < len(ids) else "the end" for ids in (found, expected)]
    return _Mismatch(name, position, *shown)
