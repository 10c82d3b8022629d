"""The reader of GGUF files, against gguf's own."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import gguf
import pytest

from export.errors import ModelError
from export.readers.gguf import read_gguf, read_tensors, rows_of
from tests.export.artifact_edits import Weights, rewrite_gguf
from tests.export.identity_cases import Made, make


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Made:
    return make(tmp_path_factory.mktemp("made"))


@pytest.fixture(params=["f16", "q4_k_m"])
def file(made: Made, request: pytest.FixtureRequest) -> Path:
    return getattr(made, request.param)


def test_the_header_is_what_gguf_reads(file: Path) -> None:
    reader, found = gguf.GGUFReader(file), read_gguf(file)
    fields = {name: f.contents() for name, f in reader.fields.items() if not name.startswith("GGUF.")}
    assert found.metadata == fields
    assert [tensor.name for tensor in found.tensors] == [str(tensor.name) for tensor in reader.tensors]
    for ours, theirs in zip(found.tensors, reader.tensors, strict=True):
        assert (ours.stored_as, ours.weights) == (theirs.tensor_type.name.lower(), theirs.n_elements)
        assert (ours.row, ours.size_bytes, ours.offset) == (theirs.shape[0], theirs.n_bytes, theirs.data_offset)
        weights = gguf.dequantize(theirs.data, theirs.tensor_type).reshape(ours.rows, ours.row)
        assert (rows_of(ours, 0, ours.rows) == weights).all()
        assert (rows_of(ours, ours.rows // 2, ours.rows) == weights[ours.rows // 2 :]).all()


def test_a_split_model_is_read_whole(made: Made, tmp_path: Path) -> None:
    parts = [tmp_path / f"model-q4_k_m-0000{number}-of-00002.gguf" for number in (1, 2)]
    names = [tensor.name for tensor in read_tensors(made.q4_k_m)]
    halves = set(names[:9]), set(names[9:])

    def keep(half: set[str]) -> Callable[[Weights], None]:
        def drop(tensors: Weights) -> None:
            for name in set(tensors) - half:
                del tensors[name]

        return drop

    for number, (path, half) in enumerate(zip(parts, halves, strict=True)):
        facts = {"split.count": 2, "split.no": number, "split.tensors.count": len(names)}
        rewrite_gguf(made.q4_k_m, path, lambda values, facts=facts: values.update(facts), keep(half))
    assert {tensor.name for tensor in read_tensors(parts[0])} == set(names)
    assert (rows_of(_norm(parts[0]), 0, 1) == rows_of(_norm(made.q4_k_m), 0, 1)).all()


def _norm(path: Path) -> Any:
    return next(tensor for tensor in read_tensors(path) if tensor.name == "output_norm.weight")


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"hello world", "it begins with 'hello wo'; expected 'GGUF'"),
        (b"PK\x03\x04\xff\xfe\x00\x01", "it begins with 50 4b 03 04 ff fe 00 01; expected 'GGUF'"),
        (b"version https://git-lfs.github.com/spec/v1\n", "is a Git LFS pointer and not the model. Run 'git lfs pull'"),
        (b"", "it is empty. Copy it again."),
        (b"GG", "it is too short to be one"),
        (b"GGUF\x03\x00", "it has 6 bytes and ends inside its header"),
    ],
)
def test_what_is_no_gguf_file_is_told_in_words_and_not_in_pythons(tmp_path: Path, content: bytes, said: str) -> None:
    path = tmp_path / "model.gguf"
    path.write_bytes(content)
    with pytest.raises(ModelError) as caught:
        read_gguf(path)
    assert said in str(caught.value)
    assert "b'" not in str(caught.value)
