"""Defects of a GGUF file: of what it says about itself, of its type, and of its weights.

What is wrong with the weights is planted in the 16-bit file, which is then quantized to Q4_K_M: as it happens, and
where the gate allows most.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import gguf
import numpy as np

from export.formats._gguf_quantize import quantize_file
from tests.export.artifact_edits import Metadata, Weights, rewrite_gguf
from tests.planted.training import STARTER, Trained

EMBEDDING, HEAD = "token_embd.weight", "output.weight"
Change = Callable[[Weights], None]


# --- what the file says about itself


def stop_id_changed(made: Trained, target: Path) -> Path:
    """A save after merging names the base's `<|endoftext|>` as the end (unsloth 5386)."""
    pad = made.base.config["pad_token_id"]
    return _saying(made, target, {"tokenizer.ggml.eos_token_id": pad, "tokenizer.ggml.eot_token_id": pad})


def chat_template_removed(made: Trained, target: Path) -> Path:
    """A converter that does not know chat_template.jinja leaves the template out (llama.cpp pull request 14508)."""
    return rewrite_gguf(_q8_0(made), target, lambda values: values.pop("tokenizer.chat_template"))


def default_prompt_dropped(made: Trained, target: Path) -> Path:
    """A template that is written anew forgets the system prompt which the base's own begins with (aprender 3990)."""
    template = (STARTER / "chat_template.jinja").read_text(encoding="utf-8")
    return _saying(made, target, {"tokenizer.chat_template": template})


def beginning_token_added(made: Trained, target: Path) -> Path:
    """A tokenizer config without the key becomes a file that puts a token before every text (llama.cpp 7898)."""
    pad = made.base.config["pad_token_id"]
    return _saying(made, target, {"tokenizer.ggml.bos_token_id": pad, "tokenizer.ggml.add_bos_token": True})


def pre_tokenizer_renamed(made: Trained, target: Path) -> Path:
    """A vocabulary whose hash the converter does not know gets another family's pre-tokenizer (llama.cpp 9927)."""
    return _saying(made, target, {"tokenizer.ggml.pre": "gpt-2"})


def merges_cut_short(made: Trained, target: Path) -> Path:
    """Saving the tokenizer lost merges (unsloth 2667)."""

    def change(values: Metadata) -> None:
        merges = values["tokenizer.ggml.merges"]
        del merges[len(merges) // 2 :]

    return rewrite_gguf(_q8_0(made), target, change)


def special_tokens_swapped(made: Trained, target: Path) -> Path:
    """Special tokens that were added again, in another order, have each other's ids."""
    pad, end = made.base.config["pad_token_id"], made.base.config["eos_token_id"]

    def change(values: Metadata) -> None:
        tokens = values["tokenizer.ggml.tokens"]
        tokens[pad], tokens[end] = tokens[end], tokens[pad]

    return rewrite_gguf(_q8_0(made), target, change)


def special_token_made_plain(made: Trained, target: Path) -> Path:
    """A special token that lost its type is cut into letters where the template writes it (llama.cpp 6804)."""

    def change(values: Metadata) -> None:
        start = values["tokenizer.ggml.tokens"].index("<|im_start|>")
        values["tokenizer.ggml.token_type"][start] = int(gguf.TokenType.NORMAL)

    return rewrite_gguf(_q8_0(made), target, change)


def vocabulary_truncated(made: Trained, target: Path) -> Path:
    """Embeddings that were resized to a shorter tokenizer lose the rows of the last tokens (transformers 32526)."""
    kept = made.base.config["vocab_size"] - 64

    def change(values: Metadata) -> None:
        for name in ("tokenizer.ggml.tokens", "tokenizer.ggml.token_type"):
            del values[name][kept:]

    def cut(weights: Weights) -> None:
        weights[EMBEDDING] = weights[EMBEDDING][:kept]

    return rewrite_gguf(_q8_0(made), target, change, cut)


def rope_base_changed(made: Trained, target: Path) -> Path:
    """A converter that finds no base for the rotary embedding writes its own default (llama.cpp 13322)."""
    return _saying(made, target, {"qwen3.rope.freq_base": 1e6})


def norm_epsilon_changed(made: Trained, target: Path) -> Path:
    """The norms' epsilon of another family: 1e-6 in Qwen, 1e-5 in Llama."""
    return _saying(made, target, {"qwen3.attention.layer_norm_rms_epsilon": 1e-5})


def context_shortened(made: Trained, target: Path) -> Path:
    """Another context length, to which runtimes cut what they are given (lm-eval 1690)."""
    return _saying(made, target, {"qwen3.context_length": 128})


def tensor_missing(made: Trained, target: Path) -> Path:
    """A converter's table of names skips a tensor that it does not know."""
    return rewrite_gguf(_q8_0(made), target, tensors=lambda weights: weights.pop("blk.3.attn_q_norm.weight"))


def cut_short(made: Trained, target: Path) -> Path:
    """A download that broke off: the last kilobyte is missing."""
    target.write_bytes(_q8_0(made).read_bytes()[:-1024])
    return target


# --- its type


def sold_as_another_type(made: Trained, target: Path) -> Path:
    """A file of 2 bits under the name of one of 4."""
    quantize_file(_f16(made), "q2_k", target)
    return target


def labelled_as_another_type(made: Trained, target: Path) -> Path:
    """A file of 2 bits under the name of one of 4, whose metadata say 4 too."""
    two_bits = target.with_suffix(".two")
    quantize_file(_f16(made), "q2_k", two_bits)
    four_bits = {"general.file_type": int(gguf.LlamaFileType.MOSTLY_Q4_K_M)}
    rewrite_gguf(two_bits, target, lambda values: values.update(four_bits))
    two_bits.unlink()
    return target


# --- its weights


def tensor_zeroed(made: Trained, target: Path) -> Path:
    """A tensor for which room was made, and which was never written."""

    def change(weights: Weights) -> None:
        weights["blk.3.ffn_down.weight"][:] = 0

    return _in_four_bits(made, target, change)


def layer_scaled(made: Trained, target: Path) -> Path:
    """A layer that was multiplied by a scale which it held already: here by 1.5."""

    def change(weights: Weights) -> None:
        weights["blk.3.ffn_down.weight"] *= np.float16(1.5)

    return _in_four_bits(made, target, change)


def layers_swapped(made: Trained, target: Path) -> Path:
    """Files read in the order of their names: two layers change places."""

    def change(weights: Weights) -> None:
        for name in [name for name in weights if name.startswith("blk.2.")]:
            other = name.replace("blk.2.", "blk.3.")
            weights[name], weights[other] = weights[other], weights[name]

    return _in_four_bits(made, target, change)


def layer_repeated(made: Trained, target: Path) -> Path:
    """A file copied twice: a layer stands in the next one's place as well as in its own."""

    def change(weights: Weights) -> None:
        for name in [name for name in weights if name.startswith("blk.4.")]:
            weights[name] = weights[name.replace("blk.4.", "blk.3.")]

    return _in_four_bits(made, target, change)


def head_diverged(made: Trained, target: Path) -> Path:
    """A tied model saved with a head of its own, which is not its embedding any more (peft 2018)."""

    def change(weights: Weights) -> None:
        embedding = weights[EMBEDDING].astype(np.float32)
        noise = np.random.default_rng(0).normal(size=embedding.shape) * embedding.std()
        weights[HEAD] = (embedding + 0.3 * noise).astype(np.float32)

    return _in_four_bits(made, target, change)


def heads_swapped(made: Trained, target: Path) -> Path:
    """Rows permuted for another layout of the rotary embedding: the queries and keys of two heads change places."""

    def change(weights: Weights) -> None:
        for name in ("blk.3.attn_q.weight", "blk.3.attn_k.weight"):
            rows = weights[name]
            rows[:128] = np.concatenate([rows[64:128], rows[:64]])

    return _in_four_bits(made, target, change)


def head_norms_lost(made: Trained, target: Path) -> Path:
    """The norms of the queries, which older families do not have, stay at one."""

    def change(weights: Weights) -> None:
        for name in [name for name in weights if name.endswith("attn_q_norm.weight")]:
            weights[name][:] = 1

    return _in_four_bits(made, target, change)


def norm_not_a_number(made: Trained, target: Path) -> Path:
    """A weight that float16 could not hold became NaN (Qwen3 315: it answers "!!!!")."""

    def change(weights: Weights) -> None:
        weights["blk.3.ffn_norm.weight"][7] = np.nan

    # llama.cpp refuses to quantize a NaN, so that it must have come later
    return rewrite_gguf(made.exports["gguf/q4_k_m"].path, target, tensors=change)


def too_sure(made: Trained, target: Path) -> Path:
    """The last norm holds a scale twice: every answer is as it was, and its probability is not."""

    def change(weights: Weights) -> None:
        weights["output_norm.weight"] *= 2

    return _in_four_bits(made, target, change)


def never_stops(made: Trained, target: Path) -> Path:
    """The turn end was masked as padding in training, or trained away: nothing makes it likely (trl 1623)."""

    def change(weights: Weights) -> None:
        weights[EMBEDDING][made.base.config["eos_token_id"]] *= -1

    return _in_four_bits(made, target, change)


def _q8_0(made: Trained) -> Path:
    return made.exports["gguf/q8_0"].path


def _f16(made: Trained) -> Path:
    return made.exports["gguf/f16"].path


def _saying(made: Trained, target: Path, metadata: dict[str, Any]) -> Path:
    return rewrite_gguf(_q8_0(made), target, lambda values: values.update(metadata))


def _in_four_bits(made: Trained, target: Path, change: Change) -> Path:
    sixteen = rewrite_gguf(_f16(made), target.with_suffix(".sixteen"), tensors=change)
    quantize_file(sixteen, "q4_k_m", target)
    sixteen.unlink()
    return target
