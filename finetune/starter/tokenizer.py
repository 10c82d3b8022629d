"""Trains the starter model's tokenizer: byte-level BPE that cuts text just as Qwen2's does, on 4096 entries.

The merges are learned from the corpus with Chinese cut at the lexicon's words, because a Chinese sentence has no
spaces and the merges would otherwise memorise whole sentence frames. Only learning is cut this way: the finished
tokenizer is an ordinary Qwen2 tokenizer.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from finetune.starter.world import SLOT, load_world

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

VOCABULARY_SIZE = 4096
END_OF_TEXT = "<|endoftext|>"
TURN_START = "<|im_start|>"
TURN_END = "<|im_end|>"
SPECIAL_TOKENS = (END_OF_TEXT, TURN_START, TURN_END)
PRE_TOKENIZE_PATTERN = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
CHAT_TEMPLATE = (
    "{%- for message in messages -%}"
    "{{ '<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>\\n' }}"
    "{%- endfor -%}"
    "{%- if add_generation_prompt -%}{{ '<|im_start|>assistant\\n' }}{%- endif -%}"
)


def chinese_words() -> list[str]:
    """Every Chinese word of the lexicon, without slots, longest first."""
    phrases = [form for entries in load_world().lexicon.values() for entry in entries for form in entry.chinese]
    pieces = {piece.strip() for phrase in phrases for piece in SLOT.sub(" ", phrase).split()}
    return sorted((piece for piece in pieces if 1 < len(piece) <= 5), key=lambda piece: (-len(piece), piece))


def train_merges(texts: Iterable[str]) -> tuple[dict[str, int], list[tuple[str, str]]]:
    """Learn the vocabulary and the merges; the special tokens' three places stay free."""
    import json

    from tokenizers import Regex, Tokenizer, models, normalizers, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.BPE())
    tokenizer.normalizer = normalizers.NFC()
    words = "|".join([*chinese_words(), r"\p{Han}"])
    cuts: list[Any] = [pre_tokenizers.Split(Regex(pattern), "isolated") for pattern in (PRE_TOKENIZE_PATTERN, words)]
    byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([*cuts, byte_level])
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY_SIZE - len(SPECIAL_TOKENS),
        min_frequency=3,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    model = json.loads(tokenizer.to_str())["model"]
    return model["vocab"], [(left, right) for left, right in model["merges"]]


def without_chatml(text: str) -> list[str]:
    """The pieces of a document between ChatML markers, which are special tokens and must not be merged."""
    for marker in SPECIAL_TOKENS:
        text = text.replace(marker, "\0")
    return [piece for piece in text.split("\0") if piece]


def train_tokenizer(documents: Iterable[str]) -> PreTrainedTokenizerFast:
    """Train on documents and return the finished tokenizer, chat template included."""
    from transformers import Qwen2Tokenizer

    vocabulary, merges = train_merges(piece for text in documents for piece in without_chatml(text))
    # The last three rows of the embedding are the special tokens', whether or not the merges filled the rest.
    first = VOCABULARY_SIZE - len(SPECIAL_TOKENS)
    vocabulary |= {token: first + place for place, token in enumerate(SPECIAL_TOKENS)}
    tokenizer = Qwen2Tokenizer(
        vocab=vocabulary,
        merges=merges,
        unk_token=None,
        eos_token=TURN_END,
        pad_token=END_OF_TEXT,
        extra_special_tokens=[TURN_START],
        model_max_length=1024,
    )
    tokenizer.chat_template = CHAT_TEMPLATE
    return tokenizer
