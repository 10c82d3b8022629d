"""Sizes that are told before a file is made, against the files that llama.cpp then makes, to the byte."""

import pytest

from export.converter import convert, convert_header
from export.device.sizes import as_it_is, planned_file
from export.errors import ExportError
from export.formats._gguf_quantize import quantize_file
from export.formats.gguf import FILE_TYPES
from export.readers.gguf import read_gguf
from tests.export.tiny_models import ARCHITECTURES, build


@pytest.fixture(scope="module", params=[(name, size) for name in ARCHITECTURES for size in (64, 256)], ids=str)
def converted(request, tmp_path_factory):
    """A tiny model's real 16-bit file and its skeleton; rows of 64 divide by no block of 256."""
    architecture, hidden_size = request.param
    folder = tmp_path_factory.mktemp("sizes")
    model = build(folder / "model", architecture, tied=hidden_size == 64, hidden_size=hidden_size)
    (folder / "real").mkdir()
    real, _ = convert(model.folder, "a name", folder / "real")
    skeleton = folder / "skeleton.gguf"
    convert_header(model.folder, "a name", skeleton)
    return real, skeleton


def test_a_skeleton_has_the_header_and_the_length_of_the_converted_file(converted):
    real, skeleton = converted
    header = as_it_is(read_gguf(real), "f16").header_bytes
    assert skeleton.stat().st_size == real.stat().st_size
    with real.open("rb") as first, skeleton.open("rb") as second:
        assert first.read(header) == second.read(header)
    assert set(skeleton.read_bytes()[header:]) == {0}, "the weights were not read"


def test_every_file_type_has_the_size_and_the_tensor_types_that_were_told(converted, tmp_path):
    real, skeleton = converted
    content = read_gguf(skeleton)
    assert planned_file(skeleton, content, "f16").size_bytes == real.stat().st_size
    for file_type in FILE_TYPES:
        made = tmp_path / f"{file_type}.gguf"
        try:
            told = planned_file(skeleton, content, file_type)
        except ExportError:
            with pytest.raises(ExportError):
                quantize_file(real, file_type, made)
            continue
        quantize_file(real, file_type, made)
        assert told.size_bytes == made.stat().st_size, file_type
        assert _by_name(told) == _by_name(as_it_is(read_gguf(made), file_type)), file_type
        made.unlink()


def _by_name(file):
    """llama.cpp writes tensors in an order of its own."""
    return {tensor.name: tensor for tensor in file.tensors}


def test_nothing_is_written_by_telling(converted, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    _, skeleton = converted
    planned_file(skeleton, read_gguf(skeleton), "q8_0")
    assert list(tmp_path.iterdir()) == []


def test_what_llama_cpp_would_refuse_is_an_error_with_its_reason(tmp_path):
    model = build(tmp_path / "model", "qwen3", tied=True, hidden_size=64)
    skeleton = tmp_path / "skeleton.gguf"
    convert_header(model.folder, "a name", skeleton)
    with pytest.raises(ExportError, match=r"would not make q1_0 .*fallback"):
        planned_file(skeleton, read_gguf(skeleton), "q1_0")
