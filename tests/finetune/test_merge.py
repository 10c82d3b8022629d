"""The merged folder: weights by arithmetic of our own, tokenizer files byte for byte, and a turn end that stops."""

import json
import shutil

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from export.chat_tokenizer import load_tokenizer
from export.errors import ModelError, RecipeError
from finetune.base_model import ModelSettings, guard_tied_embeddings, open_base
from finetune.merge import merge
from finetune.methods import Adapter

# peft itself reads this property of transformers when it wraps a model
pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")


def _adapter(base, folder, *, rslora=False, dora=False):
    """A random adapter, as peft saves it."""
    from peft import LoraConfig, get_peft_model

    torch.manual_seed(0)
    dense = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    config = LoraConfig(r=4, lora_alpha=8, target_modules=["q_proj", "down_proj"], use_rslora=rslora, use_dora=dora)
    model = get_peft_model(dense, config)
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.2)
    model.save_pretrained(folder)
    return Adapter(
        folder=folder,
        base=str(base),
        base_sha256="0",
        four_bit_base=False,
        dtype="float32",
        targets=("q_proj",),
        trainable_parameters=1,
        steps=1,
        tokens=1,
        trained_tokens=1,
        seconds=1,
        peak_memory_bytes=1,
        losses=(),
    )


def _merged(base, tmp_path, **adapter):
    out = tmp_path / "merged"
    out.mkdir()
    source = open_base(ModelSettings(name=str(base), dtype="float32"))
    return merge(_adapter(base, tmp_path / "adapter", **adapter), source, out, onto="16bit", dtype="bfloat16")


def test_a_training_tells_what_it_held_of_a_gpu(model, tmp_path):
    adapter = _adapter(model, tmp_path / "adapter")
    assert "GPU" not in adapter.outcome()
    on_gpu = adapter.model_copy(update={"device_peak_memory_bytes": 2_500_000_000})
    assert on_gpu.outcome().endswith("GB of memory and 2.5 GB of the GPU's")


@pytest.mark.parametrize("rslora", [False, True])
def test_merged_weights_are_base_plus_scaled_product(model, tmp_path, rslora):
    merged = _merged(model, tmp_path, rslora=rslora)
    before, after = load_file(model / "model.safetensors"), load_file(merged.folder / "model.safetensors")
    update = load_file(tmp_path / "adapter/adapter_model.safetensors")
    name = "model.layers.0.self_attn.q_proj"
    a, b = (update[f"base_model.model.{name}.lora_{side}.weight"].float() for side in "AB")
    scale = 8 / (4**0.5 if rslora else 4)
    expected = (before[f"{name}.weight"].float() + scale * b @ a).to(torch.bfloat16)
    assert torch.equal(after[f"{name}.weight"], expected)
    untouched = "model.layers.0.self_attn.k_proj.weight"
    assert torch.equal(after[untouched], before[untouched])
    assert set(after) == set(before)


def test_dora_merges_to_what_the_attached_adapter_computes(model, tmp_path):
    from peft import PeftModel

    merged = _merged(model, tmp_path, dora=True)
    ids = torch.arange(5, 40)[None]
    dense = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32)
    attached = PeftModel.from_pretrained(dense, tmp_path / "adapter").eval()
    folded = AutoModelForCausalLM.from_pretrained(merged.folder, dtype=torch.float32).eval()
    with torch.inference_mode():
        p, q = (network(ids).logits.log_softmax(-1) for network in (attached, folded))
    assert torch.nn.functional.kl_div(q, p, log_target=True, reduction="none").sum(-1).mean() < 1e-3


def test_tokenizer_files_are_byte_identical_and_generation_stops_at_the_turn_end(model, tmp_path):
    merged = _merged(model, tmp_path)
    for name in ("tokenizer.json", "chat_template.jinja"):
        assert (merged.folder / name).read_bytes() == (model / name).read_bytes()
    generation = json.loads((merged.folder / "generation_config.json").read_text())
    tokenizer = AutoTokenizer.from_pretrained(merged.folder)
    assert tokenizer.convert_ids_to_tokens(generation["eos_token_id"][0]) == "<|im_end|>"
    assert tokenizer.eos_token == "<|im_end|>"
    assert tokenizer.pad_token == "<|endoftext|>"


def test_a_base_that_names_another_end_learns_and_ships_the_templates(model, tmp_path):
    # Qwen's base models say <|endoftext|> although their template ends turns with <|im_end|>
    base = tmp_path / "base"
    shutil.copytree(model, base)
    config = json.loads((base / "tokenizer_config.json").read_text(encoding="utf-8"))
    config |= {"eos_token": "<|endoftext|>", "pad_token": "<|endoftext|>"}
    (base / "tokenizer_config.json").write_text(json.dumps(config), encoding="utf-8")
    generation = json.loads((base / "generation_config.json").read_text(encoding="utf-8"))
    end = AutoTokenizer.from_pretrained(base).convert_tokens_to_ids("<|endoftext|>")
    (base / "generation_config.json").write_text(json.dumps(generation | {"eos_token_id": end}), encoding="utf-8")

    tokenizer = load_tokenizer(base)
    assert (tokenizer.eos_token, tokenizer.pad_token) == ("<|im_end|>", "<|endoftext|>")
    merged = _merged(base, tmp_path)
    shipped = AutoTokenizer.from_pretrained(merged.folder)
    assert shipped.eos_token == "<|im_end|>"
    ids = json.loads((merged.folder / "generation_config.json").read_text())["eos_token_id"]
    assert ids == [shipped.convert_tokens_to_ids("<|im_end|>"), end]


def test_a_template_that_ends_turns_with_plain_text_is_refused(model, tmp_path):
    base = tmp_path / "base"
    shutil.copytree(model, base)
    (base / "chat_template.jinja").write_text(
        "{% for m in messages %}{{ m.role }}: {{ m.content }}\n\n{% endfor %}"
        "{% if add_generation_prompt %}assistant: {% endif %}"
    )
    with pytest.raises(ModelError, match="could not be stopped"):
        load_tokenizer(base)


def test_a_quantized_base_is_refused_before_anything_else(model, tmp_path):
    base = tmp_path / "base"
    shutil.copytree(model, base)
    config = json.loads((base / "config.json").read_text())
    (base / "config.json").write_text(json.dumps(config | {"quantization_config": {"quant_method": "gptq"}}))
    with pytest.raises(ModelError, match=r"already quantized \(gptq\)"):
        open_base(ModelSettings(name=str(base)))


@pytest.mark.parametrize("nested", [False, True])
def test_tied_heads_are_no_targets(nested):
    config = {"tie_word_embeddings": True}
    config = {"text_config": config} if nested else config
    with pytest.raises(RecipeError, match="lm_head"):
        guard_tied_embeddings(config, ("q_proj", "lm_head"))
    guard_tied_embeddings(config, ("q_proj",))
    guard_tied_embeddings({"tie_word_embeddings": False}, ("lm_head",))
