"""Peak memory as it is told, against processes that run the files, and what a processor packs anew."""

import pytest

from export.converter import convert
from export.device.alone import RunSettings, reserve, run
from export.device.cache import cache_shape
from export.device.memory import context_needs, packed_bytes, peak_memory
from export.device.probing import usable_memory, write_model
from export.device.profile import DeviceProfile, Figure
from export.device.sizes import PlannedTensor, as_it_is
from export.errors import EngineError
from export.formats._gguf_quantize import quantize_file
from export.readers.gguf import read_gguf
from tests.export.tiny_models import build

PACKS_ON_THIS_PROCESSOR = frozenset({"q4_0"})


def device(**changes):
    figure = Figure(value=1e9, source="a test")
    names = ("memory_bytes", "usable_memory_bytes", "bandwidth_bytes_per_second", "decode_bytes_per_second")
    figures = dict.fromkeys((*names, "prefill_flops_per_second"), figure)
    return DeviceProfile(**({"title": "a board", "processor": "four cores", "formats": ("gguf",)} | figures | changes))


@pytest.mark.parametrize("weights", ["mapped", "copied"])
@pytest.mark.parametrize(("stored_as", "cache_type"), [("q8_0", "f16"), ("q4_0", "q8_0"), ("f16", "q4_0")])
def test_the_peak_is_within_a_tenth_of_a_process_that_runs_the_file(tmp_path, weights, stored_as, cache_type):
    path = tmp_path / "model.gguf"
    write_model(path, stored_as, 1024, 4096, heads=16, key_heads=16)
    settings = RunSettings(context_tokens=512, cache_type=cache_type, weights=weights)
    ran = run(path, settings, prompt_tokens=500, new_tokens=4)
    packs = (stored_as,) if ran.packed_bytes else ()
    here = device(weights=weights, packs=packs, runtime_bytes=Figure(value=ran.start_bytes, source="a test"))
    content = read_gguf(path)
    needs = context_needs(path, [512], 512)[512]
    told = peak_memory(as_it_is(content, stored_as), cache_shape(content.metadata), needs, cache_type, here)
    assert told.peak_bytes == pytest.approx(ran.peak_bytes, rel=0.1)
    assert told.weight_bytes > 0.1 * told.peak_bytes, "the test is of a model whose weights matter"


@pytest.mark.parametrize("tied", [True, False])
def test_what_is_packed_is_what_llama_cpp_packs(tmp_path, tied):
    model = build(tmp_path / "model", "qwen3", tied=tied, hidden_size=256)
    source, _ = convert(model.folder, "tiny", tmp_path)
    quantize_file(source, "q4_0", tmp_path / "q4_0.gguf")
    ran = run(tmp_path / "q4_0.gguf", RunSettings(context_tokens=256), prompt_tokens=8, new_tokens=1)
    if not ran.packed_bytes:
        pytest.skip("llama.cpp packs no q4_0 on this processor")
    told = packed_bytes(as_it_is(read_gguf(tmp_path / "q4_0.gguf"), "q4_0").tensors, PACKS_ON_THIS_PROCESSOR)
    assert told == pytest.approx(ran.packed_bytes, abs=0.006 * 2**20)


def test_a_tied_embedding_is_packed_as_the_output_and_an_untied_one_is_not():
    embedding = PlannedTensor(name="token_embd.weight", stored_as="q4_0", weights=6400, row=64, size_bytes=3600)
    output = embedding.model_copy(update={"name": "output.weight"})
    norm = PlannedTensor(name="output_norm.weight", stored_as="f32", weights=64, row=64, size_bytes=256)
    odd = PlannedTensor(name="blk.0.ffn_up.weight", stored_as="q4_0", weights=64 * 12, row=64, size_bytes=432)
    packs = frozenset({"q4_0"})
    assert packed_bytes([embedding.model_copy(update={"weights": 64 * 104}), norm], packs) == 3600
    assert packed_bytes([embedding, output.model_copy(update={"weights": 64 * 104}), norm], packs) == 3600
    assert packed_bytes([embedding.model_copy(update={"weights": 64 * 104}), odd], packs) == 3600, "12 rows stay"
    assert packed_bytes([embedding, output], frozenset({"q8_0"})) == 0


def test_mapped_pages_that_were_packed_can_be_dropped_and_copied_ones_are_never_there_twice(tmp_path):
    path = tmp_path / "model.gguf"
    write_model(path, "q4_0", 256, 512)
    content = read_gguf(path)
    file, shape = as_it_is(content, "q4_0"), cache_shape(content.metadata)
    needs = context_needs(path, [256], 128)[256]
    mapped = peak_memory(file, shape, needs, "f16", device(packs=("q4_0",)))
    copied = peak_memory(file, shape, needs, "f16", device(packs=("q4_0",), weights="copied"))
    blocks = sum(t.size_bytes for t in file.tensors if t.stored_as == "q4_0")
    assert mapped.peak_bytes - mapped.needed_bytes == mapped.dropped_bytes == blocks
    assert copied.peak_bytes == copied.needed_bytes == mapped.needed_bytes


def test_more_context_and_larger_batches_take_more_to_compute(tmp_path):
    path = tmp_path / "model.gguf"
    write_model(path, "f16", 256, 512)
    settings = [
        RunSettings(context_tokens=tokens, batch_tokens=batch) for tokens, batch in ((256, 64), (2048, 64), (2048, 512))
    ]
    small, longer, larger = (each.compute_bytes for each in reserve(path, settings).each)
    assert small < longer < larger


def test_what_llama_cpp_refuses_is_an_error_with_its_reason(tmp_path):
    (tmp_path / "model.gguf").write_bytes(b"GGUF" + bytes(20))
    with pytest.raises(EngineError, match="could not run"):
        reserve(tmp_path / "model.gguf", [RunSettings(context_tokens=256)])


def test_usable_memory_is_less_than_there_is():
    from export.hardware import environment

    usable, source = usable_memory()
    assert 0 < usable <= environment().memory_bytes
    assert source
