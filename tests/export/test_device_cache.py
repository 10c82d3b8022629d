"""The cache's size: worked by hand for published models, and against llama.cpp's own account."""

import re

import pytest

from export.converter import convert
from export.device import skeleton
from export.device.cache import CacheShape, cache_shape
from export.device.profile import CACHE_TYPES
from export.device.skeleton import Shape
from export.engines.llama_library import captured_log, model_parameters
from export.readers.gguf import read_gguf
from tests.export.tiny_models import ARCHITECTURES, build


def metadata(layers, heads, key_value_heads, hidden_size, head_size=None):
    found = {
        "general.architecture": "qwen3",
        "qwen3.block_count": layers,
        "qwen3.embedding_length": hidden_size,
        "qwen3.attention.head_count": heads,
        "qwen3.attention.head_count_kv": key_value_heads,
    }
    if head_size is not None:
        found |= {"qwen3.attention.key_length": head_size, "qwen3.attention.value_length": head_size}
    return found


@pytest.mark.parametrize(
    ("shape", "per_token"),
    [
        # 2 x layers x heads x width x 2 bytes, from the published configs
        (metadata(24, 14, 2, 896), 12_288),  # Qwen2.5-0.5B
        (metadata(28, 12, 2, 1536), 28_672),  # Qwen2.5-1.5B
        (metadata(28, 28, 4, 3584), 57_344),  # Qwen2.5-7B
        (metadata(28, 16, 8, 1024, 128), 114_688),  # Qwen3-0.6B
        (metadata(28, 16, 8, 2048, 128), 114_688),  # Qwen3-1.7B
        (metadata(36, 32, 8, 2560, 128), 147_456),  # Qwen3-4B
        (metadata(36, 32, 8, 4096, 128), 147_456),  # Qwen3-8B
    ],
)
def test_bytes_of_a_token_of_published_models(shape, per_token):
    found = cache_shape(shape)
    assert found.bytes_per_token("f16") == per_token
    assert found.cache_bytes(4096, "f16") == 4096 * per_token
    # blocks of 32: 34 bytes in q8_0, 18 in q4_0, where f16 has 64
    assert found.bytes_per_token("q8_0") == per_token * 34 // 64
    assert found.bytes_per_token("q4_0") == per_token * 18 // 64


def test_qwen3_at_4096_tokens_is_448_mib():
    assert cache_shape(metadata(28, 16, 8, 1024, 128)).cache_bytes(4096, "f16") == 448 * 2**20


def test_a_context_is_rounded_up_to_256_tokens():
    shape = CacheShape(layers=1, values_per_token=64)
    assert shape.cache_bytes(1, "f16") == shape.cache_bytes(256, "f16") == 256 * 128
    assert shape.cache_bytes(257, "f16") == 512 * 128


def test_a_window_bounds_what_its_layers_keep_and_read():
    shape = CacheShape(layers=2, values_per_token=32, window_values_per_token=32, window_tokens=512)
    assert shape.cache_bytes(8192, "f16") == (8192 + 1024) * 64
    assert shape.read_bytes(8192, "f16") == (8192 + 512) * 64
    assert shape.read_bytes(100, "f16") == 200 * 64


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("cache_type", CACHE_TYPES)
def test_llama_cpp_allocates_what_was_told(architecture, cache_type, tmp_path):
    import llama_cpp

    model = build(tmp_path / "model", architecture, tied=True, hidden_size=64)
    path, _ = convert(model.folder, "tiny", tmp_path)
    shape = cache_shape(read_gguf(path).metadata)
    for context_tokens in (300, 8192):
        said = _said_of_a_context(llama_cpp, path, context_tokens, cache_type)
        sizes = re.findall(r"(?:KV|RS) buffer size = +([\d.]+) MiB", said)
        assert len(sizes) == (2 if architecture == "qwen3_5" else 1)
        told = shape.cache_bytes(context_tokens, cache_type)
        # llama.cpp rounds each to a hundredth of a MiB
        assert told == pytest.approx(sum(map(float, sizes)) * 2**20, abs=len(sizes) * 0.006 * 2**20)


def test_llama_cpp_allocates_a_window_where_it_is_asked_for_no_more(tmp_path):
    import llama_cpp

    _write_windowed(tmp_path / "windowed.gguf")
    shape = cache_shape(read_gguf(tmp_path / "windowed.gguf").metadata)
    assert shape.window_values_per_token == 5 * shape.values_per_token  # all layers but the sixth
    said = _said_of_a_context(llama_cpp, tmp_path / "windowed.gguf", 8192, "f16")
    sizes = re.findall(r"KV buffer size = +([\d.]+) MiB", said)
    assert len(sizes) == 2
    assert shape.cache_bytes(8192, "f16") == pytest.approx(sum(map(float, sizes)) * 2**20, abs=0.012 * 2**20)


def _write_windowed(path):
    """Six layers of Gemma 3's kind, five of which look back on 512 tokens."""
    settings = {"context_length": 32768, "block_count": 6, "embedding_length": 256, "feed_forward_length": 512}
    settings |= {"attention.head_count": 4, "attention.head_count_kv": 2, "attention.layer_norm_rms_epsilon": 1e-6}
    settings |= {"attention.key_length": 64, "attention.value_length": 64, "vocab_size": 512}
    settings |= {"attention.sliding_window": 512, "attention.sliding_window_pattern": 6}
    matrices = {"attn_q": (256, 256), "attn_k": (128, 256), "attn_v": (128, 256), "attn_output": (256, 256)}
    matrices |= {"ffn_gate": (512, 256), "ffn_up": (512, 256), "ffn_down": (256, 512)}
    norms = {"attn_norm": 256, "ffn_norm": 256, "post_attention_norm": 256, "post_ffw_norm": 256}
    norms |= {"attn_q_norm": 64, "attn_k_norm": 64}
    tensors = [Shape("token_embd.weight", "f16", (512, 256)), Shape("output_norm.weight", "f32", (256,))]
    for layer in range(6):
        tensors += [Shape(f"blk.{layer}.{name}.weight", "f16", size) for name, size in matrices.items()]
        tensors += [Shape(f"blk.{layer}.{name}.weight", "f32", (size,)) for name, size in norms.items()]
    metadata = {f"gemma3.{key}": value for key, value in settings.items()} | {"tokenizer.ggml.model": "no_vocab"}
    skeleton.write(path, "gemma3", metadata, tensors)


def _said_of_a_context(llama_cpp, path, context_tokens, cache_type):
    parameters = llama_cpp.llama_context_default_params()
    parameters.n_ctx = context_tokens
    parameters.swa_full = False
    parameters.type_k = parameters.type_v = getattr(llama_cpp, f"GGML_TYPE_{cache_type.upper()}")
    with captured_log() as log:
        model = llama_cpp.llama_model_load_from_file(str(path).encode(), model_parameters())
        context = llama_cpp.llama_init_from_model(model, parameters)
        assert context, log.reason()
        llama_cpp.llama_free(context)
        llama_cpp.llama_model_free(model)
    return log.text
