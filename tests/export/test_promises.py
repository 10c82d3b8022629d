"""What names promise: one reading of them for limits, identity and the page."""

import pytest

from export.formats.gguf import FILE_TYPES
from export.limits import Gate
from export.promises import promised


@pytest.mark.parametrize(
    ("name", "file_type", "bits"),
    [
        ("Qwen2.5-0.5B-Instruct-Q4_K_M", "q4_k_m", 4),
        ("gguf/q4_k_m", "q4_k_m", 4),
        ("model-q4_k_m.gguf", "q4_k_m", 4),
        ("model-Q4_K_M-00001-of-00002.gguf", "q4_k_m", 4),
        ("qwen_q8_0", "q8_0", 8),
        ("model.IQ4_XS", "iq4_xs", 4),
        ("qwen2.5-coder-1.5b-iq4_nl", "iq4_nl", 4),
        ("gguf/iq2_xs", "iq2_xs", 2),
        ("model-tq1_0", "tq1_0", 1),
        ("model-f16", "f16", 16),
        ("Qwen3-4B-BF16", "bf16", 16),
        ("f32", "f32", 32),
        ("from-bf16-to-q5_1", "q5_1", 5),
        # bits alone: mixes of somebody's own, and what is no GGUF file
        ("model-Q4_K", None, 4),
        ("model-Q4_K_L", None, 4),
        ("Qwen3-0.6B-UD-Q4_K_XL", None, 4),
        ("UD-Q3_K_XL", None, 3),
        ("model.fp16", None, 16),
        ("Qwen2-7B-Instruct-GPTQ-Int8", None, 8),
        ("gptq/4bit", None, 4),
        ("gptq-4bit-128g", None, 4),
        ("x-4-bit", None, 4),
        ("my-w4a16-model", None, 4),
        # what a model is called besides
        ("Qwen3-8B", None, None),
        ("x-0.5B", None, None),
        ("print4", None, None),
        ("release-2024-12-16", None, None),
        ("best-f1-w2", None, None),
        ("f32c9d0e41", None, None),
        ("merged", None, None),
    ],
)
def test_what_a_name_promises(name: str, file_type: str | None, bits: int | None) -> None:
    assert promised(name) == (file_type, bits)


@pytest.mark.parametrize("file_type", FILE_TYPES)
def test_every_type_that_is_made_here_is_a_promise(file_type: str) -> None:
    assert promised(f"model-{file_type}.gguf").file_type == file_type
    assert promised(f"gguf/{file_type}").bits == int(next(c for c in file_type if c.isdigit()))


def test_limits_go_by_the_name_then_by_the_bits_and_take_the_rest_for_dense() -> None:
    gate = Gate()
    assert gate.limits_for("my-w4a16-model") is gate.below_6_bits
    assert gate.limits_for("model-Q8_0", 3.0) is gate.from_6_bits
    assert gate.limits_for("model", 4.5) is gate.below_6_bits
    assert gate.limits_for("merged") is gate.from_6_bits
