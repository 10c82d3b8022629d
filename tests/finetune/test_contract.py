"""The contract with the runtimes: LoRA -> merge -> GGUF and GPTQ, for each architecture, head and awkward width."""

import json

import numpy as np
import pytest
from transformers import AutoConfig

from export.engines import Subject, hf, llama_cpp
from finetune import cli
from finetune.data import read_conversations
from tests.export.tiny_models import build

pytestmark = pytest.mark.slow
RECIPE = """\
name: test
model: {{name: {model}, dtype: float32}}
data: {{path: rows.jsonl, template: question_answer, max_tokens: 128}}
train: {{max_steps: 3, batch_size: 4, learning_rate: 1e-2}}
export:
  gguf: {{types: [q8_0]}}
  gptq: {{bits: 8, calibration_rows: 30}}
"""


@pytest.mark.parametrize("hidden_size", [256, 224])
@pytest.mark.parametrize("tied", [True, False], ids=["tied", "untied"])
@pytest.mark.parametrize("architecture", ["qwen2", "qwen3", "qwen3_5"])
def test_what_ships_says_what_the_merged_model_says(tmp_path, start_in_folder, architecture, tied, hidden_size):
    model = build(tmp_path / "model", architecture, tied=tied, hidden_size=hidden_size).folder
    rows = [{"question": f"What is {n} and {n}?", "answer": f"It is {n + n}. 是{n + n}。"} for n in range(60)]
    start_in_folder(RECIPE.format(model=model), rows)
    assert cli.main(["quantize", "recipe.yaml"]) == 0

    run = tmp_path / "runs/test"
    merged = _open(run / "merged")
    adapter = hf.load(
        Subject(name="adapter", engine="hf", path=model, adapter=run / "adapter"), vocabulary_size=None, threads=1
    )
    ids = _held_out_ids(run)
    expected = merged.log_probs(ids, range(1, len(ids)))
    trained = _open(model).log_probs(ids, range(1, len(ids)))
    assert _divergence(expected, trained) > 1e-4, "the adapter changed nothing, so the rest proves nothing"
    assert _divergence(expected, adapter.log_probs(ids, range(1, len(ids)))[:, : expected.shape[1]]) < 1e-3

    f16 = llama_cpp.load(
        run / "export/gguf-f16/model-f16.gguf", vocabulary_size=expected.shape[1], context_tokens=512, threads=1
    )
    assert _divergence(expected, f16.log_probs(ids, range(1, len(ids)))) < 1e-3
    gptq = _open(run / "export/gptq-8bit")
    assert _divergence(expected, gptq.log_probs(ids, range(1, len(ids)))) < 2e-2


def _open(folder):
    from export.chat_tokenizer import load_tokenizer

    size = len(load_tokenizer(folder))
    return hf.load(Subject(name=folder.name, engine="hf", path=folder), vocabulary_size=size, threads=1)


def _held_out_ids(run):
    from export.chat import encode
    from export.chat_tokenizer import load_tokenizer

    tokenizer = load_tokenizer(run / "merged")
    conversations = list(read_conversations(run / "data/held_out.jsonl"))[:6]
    return [token for conversation in conversations for token in encode(tokenizer, conversation).ids]


def _divergence(p, q):
    """Mean KL(p, q) over positions, both as log-probabilities of shape (time, vocabulary)."""
    p, q = np.asarray(p, dtype=np.float64), np.asarray(q, dtype=np.float64)
    return float(np.mean(np.sum(np.exp(p) * (p - q), axis=1)))


@pytest.mark.parametrize(
    ("model_type", "architecture", "exports"),
    [("qwen4_exp", "Qwen4ExpForCausalLM", "{gguf: {}}"), ("qwen3_moe", "Qwen3MoeForCausalLM", "{gptq: {}}")],
)
def test_an_architecture_that_a_runtime_cannot_carry_is_refused_by_name_before_training(
    tmp_path, start_in_folder, capsys, model_type, architecture, exports
):
    model = build(tmp_path / "model", "qwen3", tied=True, hidden_size=64).folder
    config = AutoConfig.for_model(model_type).to_dict() | {"architectures": [architecture]}
    (model / "config.json").write_text(json.dumps(config, default=str), encoding="utf-8")
    recipe = RECIPE.format(model=model).split("export:")[0] + f"export: {exports}\n"
    start_in_folder(recipe, [{"question": "a", "answer": "b"}])
    assert cli.main(["run", "recipe.yaml"]) == 2
    said = capsys.readouterr()
    assert architecture in said.err
    assert "running" not in said.out
