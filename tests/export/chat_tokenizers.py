"""Builds small tokenizers with chat templates that behave like Qwen's, in our own words, for tests of rendering.

Three templates, for the three behaviours that training has met: `plain` (Qwen2.5: a default system message, turns as
they are), `thinking` (Qwen3: an empty think block before the answer when thinking is off, none in earlier turns,
reasoning of earlier turns left out, answers trimmed), `rewriting` (a template nobody can train on: it numbers turns
from the end).
"""

import functools
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

TemplateName = Literal["plain", "thinking", "rewriting"]

PLAIN = """\
{%- if messages[0].role != 'system' -%}<|im_start|>system\nYou are a helper.<|im_end|>\n{% endif -%}
{%- for message in messages -%}
{{ '<|im_start|>' + message.role + '\\n' + message.content + '<|im_end|>\\n' }}
{%- endfor -%}
{%- if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif -%}
"""

THINKING = """\
{%- set last = namespace(query=0) -%}
{%- for message in messages if message.role == 'user' -%}{%- set last.query = messages.index(message) -%}{%- endfor -%}
{%- for message in messages -%}
{%- if message.role != 'assistant' -%}
{{ '<|im_start|>' + message.role + '\\n' + message.content + '<|im_end|>\\n' }}
{%- else -%}
{%- set words = message.content.split('</think>')[-1].lstrip('\\n') -%}
{%- set reasoning = '' -%}
{%- if '</think>' in message.content -%}
{%- set reasoning = message.content.split('</think>')[0].split('<think>')[-1].strip('\\n') -%}
{%- endif -%}
{{ '<|im_start|>assistant\\n' }}
{%- if loop.last or (reasoning and loop.index0 > last.query) -%}
{{ '<think>\\n' + reasoning + '\\n</think>\\n\\n' }}
{%- endif -%}
{{ words + '<|im_end|>\\n' }}
{%- endif -%}
{%- endfor -%}
{%- if add_generation_prompt -%}
{{ '<|im_start|>assistant\\n' }}
{%- if enable_thinking is defined and not enable_thinking %}{{ '<think>\\n\\n</think>\\n\\n' }}{% endif -%}
{%- endif -%}
"""

REWRITING = """\
{%- for message in messages -%}
{{ '<|im_start|>' + message.role ~ loop.revindex + '\\n' + message.content + '<|im_end|>\\n' }}
{%- endfor -%}
{%- if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif -%}
"""

TEMPLATES: dict[TemplateName, str] = {"plain": PLAIN, "thinking": THINKING, "rewriting": REWRITING}

CORPUS = (
    "<|im_start|>user\nTurn on the light in the kitchen, please.<|im_end|>\n",
    "<|im_start|>assistant\nThe light in the kitchen is on now.\n\nAnything else?<|im_end|>\n",
    '{"task":"iot_cleaning","slots":{"house_place":"kitchen","time":"nine am"}}',
    "打开厨房的灯。好的,厨房的灯已经打开。 Hello! Hello, world.\n\n\n",
)


@functools.cache
def build_tokenizer(template: TemplateName = "plain") -> "PreTrainedTokenizerBase":
    """A byte-level BPE under Qwen2's pre-tokenizer, of some hundred ids, with the named chat template."""
    from tokenizers import AddedToken, Tokenizer, models, trainers
    from tokenizers.pre_tokenizers import ByteLevel
    from transformers import Qwen2Tokenizer

    learner = Tokenizer(models.BPE())
    learner.pre_tokenizer = Qwen2Tokenizer().backend_tokenizer.pre_tokenizer
    trainer = trainers.BpeTrainer(vocab_size=420, initial_alphabet=ByteLevel.alphabet(), show_progress=False)
    learner.train_from_iterator(CORPUS * 4, trainer)
    tokenizer = Qwen2Tokenizer(
        vocab=learner.get_vocab(),
        merges=_merges(learner),
        unk_token=None,
        pad_token="<|endoftext|>",
        eos_token="<|im_end|>",
        additional_special_tokens=["<|im_start|>"],
    )
    # as in Qwen3, these are ids of their own but not special: text may hold them
    tokenizer.add_tokens([AddedToken(token, normalized=False) for token in ("<think>", "</think>")])
    tokenizer.chat_template = TEMPLATES[template]
    return tokenizer


def _merges(learner: object) -> list[tuple[str, str]]:
    import json

    content = json.loads(learner.to_str())  # type: ignore[attr-defined]
    return [(left, right) for left, right in content["model"]["merges"]]
