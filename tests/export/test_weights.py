"""What safetensors headers say, against the library that wrote them."""

import json

import gguf
import numpy as np
import pytest
import torch
from gguf import GGUFWriter
from safetensors.torch import save_file

from export.errors import ModelError
from export.weights import declared_bits, gguf_facts, weight_facts


def test_facts_are_those_of_the_tensors(tmp_path):
    save_file({"a": torch.zeros(3, 5, dtype=torch.bfloat16), "b": torch.zeros(7)}, tmp_path / "model-1.safetensors")
    (tmp_path / "tokenizer.json").write_text("{}" * 1000, encoding="utf-8")
    save_file({"c": torch.zeros((), dtype=torch.int32)}, tmp_path / "model-2.safetensors", metadata={"format": "pt"})
    facts = weight_facts(tmp_path)
    assert facts.weight_bytes == 3 * 5 * 2 + 7 * 4 + 4
    # what a device must hold: the weight files, with their headers, and nothing else that lies in the folder
    assert facts.size_bytes == sum(path.stat().st_size for path in tmp_path.glob("*.safetensors"))
    assert facts.weights == 15 + 7 + 1
    assert facts.tensor_types == {"bf16": 1, "f32": 1, "i32": 1}


def test_a_vocabulary_adds_to_a_gguf_files_size_and_not_to_its_bits_per_weight(tmp_path):
    path = tmp_path / "model.gguf"
    writer = GGUFWriter(path, "qwen2")
    writer.add_token_list([f"token {number}" for number in range(1000)])
    writer.add_tensor("token_embd.weight", np.zeros((4, 32), np.float16))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    facts = gguf_facts(path)
    assert (facts.bits_per_weight, facts.weights, facts.tensor_types) == (16, 128, {"f16": 1})
    assert facts.size_bytes == path.stat().st_size > 10 * facts.weight_bytes


@pytest.mark.parametrize(
    ("file_type", "bits"),
    [
        (gguf.LlamaFileType.MOSTLY_Q4_K_M, 4),
        (gguf.LlamaFileType.MOSTLY_IQ3_S, 3),
        (gguf.LlamaFileType.MOSTLY_F16, 16),
        (gguf.LlamaFileType.GUESSED, None),
        (None, None),
    ],
)
def test_a_file_declares_the_bits_of_its_type_whatever_it_is_called(tmp_path, file_type, bits):
    path = tmp_path / "mine-q8_0.gguf"
    writer = GGUFWriter(path, "qwen2")
    if file_type is not None:
        writer.add_file_type(file_type)
    writer.add_tensor("token_embd.weight", np.zeros((4, 32), np.float16))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    assert declared_bits(path) == bits
    assert declared_bits(tmp_path / "nothing.gguf") is None


@pytest.mark.parametrize(
    ("settings", "bits"),
    [({"quant_method": "gptq", "bits": 4}, 4), ({"quant_method": "other", "bits": 4}, None), (None, None)],
)
def test_a_folder_declares_the_bits_of_its_layers_and_a_dense_one_none(tmp_path, settings, bits):
    (tmp_path / "config.json").write_text(json.dumps({"quantization_config": settings} if settings else {}))
    assert declared_bits(tmp_path) == bits


def test_a_file_that_is_cut_short_is_refused(tmp_path):
    path = tmp_path / "model.safetensors"
    save_file({"a": torch.zeros(100)}, path)
    path.write_bytes(path.read_bytes()[:-40])
    with pytest.raises(ModelError, match="cut short"):
        weight_facts(tmp_path)


@pytest.mark.parametrize(
    "content", [b"", b"12345", b"<!DOCTYPE html><html>not found</html>", b"\x08" + b"\0" * 7 + b"[1, 2] "]
)
def test_what_is_no_safetensors_file_is_refused(tmp_path, content):
    (tmp_path / "model.safetensors").write_bytes(content)
    with pytest.raises(ModelError, match=r"is no safetensors file|cut short"):
        weight_facts(tmp_path)


def test_a_folder_without_weights_is_refused(tmp_path):
    with pytest.raises(ModelError, match="no safetensors"):
        weight_facts(tmp_path)
