"""Builds tiny random Qwen models whose folders look like a real one, for tests of what is exported from them.

They are like the real ones where exports go wrong: a vocabulary of their own under Qwen's pre-tokenizer, special
tokens behind it, logits rows padded beyond the real ids, tied or untied heads, grouped attention, and (Qwen3.5) both
linear and full attention. They know nothing: weights are noise, spread widely enough that distributions are far from
uniform. Nothing is downloaded.
"""

import hashlib
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from export.artifacts import ModelFolder, QuantizedModel
from export.subjects import describe, describe_made, subject_at

if TYPE_CHECKING:
    from transformers import PreTrainedConfig, PreTrainedTokenizerBase

Architecture = Literal["qwen2", "qwen3", "qwen3_5"]
ARCHITECTURES: tuple[Architecture, ...] = ("qwen2", "qwen3", "qwen3_5")
MODEL_VOCABULARY_SIZE = 512
HEAD_SIZE = 32
CONTEXT_TOKENS = 1024
SPECIAL_TOKENS = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")

CHAT_TEMPLATE = """\
{%- for message in messages -%}
{{ '<|im_start|>' + message.role + '\\n' + message.content + '<|im_end|>\\n' }}
{%- endfor -%}
{%- if add_generation_prompt -%}
{{ '<|im_start|>assistant\\n' }}
{%- endif -%}
"""

CORPUS = (
    "The quick brown fox jumps over the lazy dog; the dog sleeps, and the fox is gone.",
    "What is the time? It's ten past nine, they'll say, and then we've all been told.",
    "把客厅的灯打开。好的,客厅的灯已经打开。今天天气怎么样?今天多云,气温二十度。",
    "def add(first, second):\n    return first + second\n\nprint(add(12, 345))\n",
    "Turn on the light in the kitchen. Turn off the light in the bedroom, please.",
)


def build(
    folder: Path,
    architecture: Architecture,
    *,
    tied: bool,
    hidden_size: int,
    seed: int = 0,
    dtype: Literal["bfloat16", "float32"] = "bfloat16",
    intermediate_size: int = 512,
) -> ModelFolder:
    """A complete model folder of random weights at `folder`, the same for the same arguments.

    `hidden_size` must be a multiple of 32 (the attention heads are 32 wide). The vocabulary has 512 logits rows, of
    which `len(tokenizer)` are real.
    """
    import torch
    from transformers import AutoModelForCausalLM, GenerationConfig

    tokenizer = _tokenizer(architecture)
    assert len(tokenizer) < MODEL_VOCABULARY_SIZE, "the model must have rows beyond the real ids"
    config = _config(architecture, tokenizer, tied=tied, hidden_size=hidden_size, intermediate_size=intermediate_size)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
        _make_uneven(model)
    model.to(getattr(torch, dtype))
    stops = [tokenizer.convert_tokens_to_ids(token) for token in ("<|im_end|>", "<|endoftext|>")]
    model.generation_config = GenerationConfig(eos_token_id=stops, pad_token_id=stops[1], do_sample=False)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return ModelFolder(
        folder=folder,
        dtype=dtype,
        base=f"tiny random {architecture}",
        chat_template_sha256=hashlib.sha256(CHAT_TEMPLATE.encode()).hexdigest(),
    )


def _tokenizer(architecture: Architecture) -> "PreTrainedTokenizerBase":
    """A byte-level BPE of about 400 ids learned from `CORPUS`, in transformers' own class for the architecture."""
    from tokenizers import AddedToken, Tokenizer, models, trainers
    from tokenizers.pre_tokenizers import ByteLevel
    from transformers import Qwen2Tokenizer
    from transformers.models.qwen3_5.tokenization_qwen3_5 import Qwen3_5Tokenizer

    family: Any = Qwen3_5Tokenizer if architecture == "qwen3_5" else Qwen2Tokenizer
    learner = Tokenizer(models.BPE())
    learner.pre_tokenizer = family().backend_tokenizer.pre_tokenizer
    alphabet = ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=400, min_frequency=2, initial_alphabet=alphabet, show_progress=False)
    learner.train_from_iterator(CORPUS * 2, trainer)
    learned = json.loads(learner.to_str())["model"]
    # Qwen's specials come right behind the vocabulary, in this order
    vocabulary = learned["vocab"] | {token: len(learned["vocab"]) + i for i, token in enumerate(SPECIAL_TOKENS)}
    tokenizer: PreTrainedTokenizerBase = family(
        vocab=vocabulary,
        merges=[tuple(pair) for pair in learned["merges"]],
        unk_token=None,
        pad_token="<|endoftext|>",
        eos_token="<|im_end|>",
        additional_special_tokens=["<|im_start|>"],
        model_max_length=CONTEXT_TOKENS,
    )
    if architecture != "qwen2":
        tokenizer.add_tokens([AddedToken(token, normalized=False) for token in ("<think>", "</think>")])
    tokenizer.chat_template = CHAT_TEMPLATE
    return tokenizer


def _config(
    architecture: Architecture,
    tokenizer: "PreTrainedTokenizerBase",
    *,
    tied: bool,
    hidden_size: int,
    intermediate_size: int,
) -> "PreTrainedConfig":
    """A config with every dimension small, and grouped attention whose heads are 32 wide."""
    from transformers import Qwen2Config, Qwen3Config
    from transformers.models.qwen3_5 import Qwen3_5TextConfig

    heads = hidden_size // HEAD_SIZE
    shared: dict[str, Any] = {
        "vocab_size": MODEL_VOCABULARY_SIZE,
        "hidden_size": hidden_size,
        "intermediate_size": intermediate_size,
        "num_attention_heads": heads,
        "num_key_value_heads": 2 if heads % 2 == 0 else 1,
        "max_position_embeddings": CONTEXT_TOKENS,
        "tie_word_embeddings": tied,
        "initializer_range": 0.08,
        "bos_token_id": None,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
    }
    if architecture == "qwen2":
        return Qwen2Config(num_hidden_layers=2, **shared)
    if architecture == "qwen3":
        return Qwen3Config(num_hidden_layers=2, head_dim=HEAD_SIZE, **shared)
    linear = {"linear_num_key_heads": 2, "linear_num_value_heads": 4}
    sizes = {"linear_key_head_dim": 64, "linear_value_head_dim": 64}
    # the order every released Qwen3.5 has, and the only one a GGUF can express
    layers = ["linear_attention"] * 3 + ["full_attention"]
    return Qwen3_5TextConfig(
        num_hidden_layers=len(layers), layer_types=layers, head_dim=HEAD_SIZE, **linear, **sizes, **shared
    )


def _make_uneven(model: Any) -> None:
    """Moves norms and biases off ones and zeros, where a transposed or forgotten one would not show."""
    import torch

    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim == 1:
                parameter += 0.1 * torch.randn_like(parameter)


def assert_described_alike(made: QuantizedModel) -> None:
    """A file has the same facts whether it was just made (`run`) or was found where it lies (`compare`)."""
    of_run = describe_made(made, shown_as="x").record
    of_compare = describe(subject_at(made.path), ships=True, shown_as="x").record
    for fact in ("sha256", "size_bytes", "bits_per_weight", "tensor_types"):
        assert getattr(of_run, fact) == getattr(of_compare, fact), fact
