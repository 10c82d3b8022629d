"""Full fine-tuning: every weight is trained and kept whole, tied weights stay tied, and 16 bits are rounded once."""

import json

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from export.chat_tokenizer import load_tokenizer
from export.engines import hf
from export.errors import ModelError, TrainingError
from finetune import cli
from finetune.base_model import ModelSettings, open_base
from finetune.merge import convert
from finetune.methods import FullModel
from finetune.recipe import load
from tests.export.tiny_models import build

RECIPE = """\
name: test
model: {{name: {model}, dtype: float32}}
data: {{path: rows.jsonl, template: question_answer, max_tokens: 128}}
train: {{method: full, max_steps: 4, batch_size: 4, learning_rate: 1e-3, schedule: constant, warmup_share: 0}}
"""


@pytest.fixture
def work(model, start_in_folder):
    rows = [{"question": f"What is {n}?", "answer": "It is " + f"{n} " * (1 + n % 7)} for n in range(40)]
    return start_in_folder(RECIPE.format(model=model), rows)


def _run(verb, out, *overrides):
    arguments = [word for override in overrides for word in ("--set", override)]
    assert cli.main([verb, "recipe.yaml", "--out", str(out), *arguments]) == 0
    manifest = json.loads((out / "trained/manifest.json").read_text(encoding="utf-8"))
    return load_file(out / "trained/model.safetensors"), manifest["result"]


def test_every_weight_is_trained_and_kept_in_float32(work, model, capsys):
    before = load_file(model / "model.safetensors")
    after, told = _run("train", work / "run")
    # the base has tied embeddings: the head is not stored a second time
    assert after.keys() == before.keys()
    assert all(tensor.dtype == torch.float32 for tensor in after.values())
    assert all(not torch.equal(after[name], before[name].float()) for name in before)
    assert told["trainable_parameters"] == sum(tensor.numel() for tensor in before.values())
    losses = [point["loss"] for point in told["losses"] if point["loss"] is not None]
    assert len(losses) == 4
    assert losses[-1] < losses[0]
    said = capsys.readouterr().out
    assert "full fine-tuning" in said
    # weights, gradients and two moments in float32; two checkpoints of weights and moments, and the model
    parameters = told["trainable_parameters"]
    assert f"{parameters * 16 / 1e6:.0f} MB of memory" in said
    assert f"up to {parameters * 28 / 1e6:.0f} MB of disk" in said


def test_small_steps_are_not_lost_when_16_bits_are_computed_in(work, model):
    # a step of AdamW is as large as the learning rate: in bfloat16 one of 1e-5 would leave weights of 0.08 as they were
    before = load_file(model / "model.safetensors")
    overrides = ("model.dtype=bfloat16", "train.learning_rate=1e-5", "train.max_steps=1")
    after, told = _run("train", work / "run", *overrides)
    assert told["dtype"] == "bfloat16"
    name = "model.layers.0.mlp.down_proj.weight"
    moved = (after[name] - before[name].float()).abs()
    assert (moved > 0).float().mean() > 0.99
    assert (after[name].bfloat16() != before[name]).float().mean() < 0.2


@pytest.mark.parametrize("tied", [True, False])
def test_tied_weights_stay_one_tensor_and_others_two(tmp_path, start_in_folder, tied):
    base = build(tmp_path / "base", "qwen2", tied=tied, hidden_size=64).folder
    work = start_in_folder(RECIPE.format(model=base), [{"question": f"{n}?", "answer": f"{n}."} for n in range(20)])
    weights, _ = _run("merge", work / "run")
    for folder in ("trained", "merged"):
        stored = load_file(work / "run" / folder / "model.safetensors")
        assert ("lm_head.weight" in stored) is not tied
        opened = AutoModelForCausalLM.from_pretrained(work / "run" / folder)
        embedding, head = opened.get_input_embeddings().weight, opened.get_output_embeddings().weight
        assert (embedding.data_ptr() == head.data_ptr()) is tied
        assert json.loads((work / "run" / folder / "config.json").read_text())["tie_word_embeddings"] is tied
    assert all(torch.isfinite(tensor).all() for tensor in weights.values())


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_the_merged_folder_is_the_trained_weights_rounded_once(work, model, dtype):
    trained, _ = _run("merge", work / "run", f"merge.dtype={dtype}")
    merged = load_file(work / "run/merged/model.safetensors")
    assert merged.keys() == trained.keys()
    assert all(torch.equal(merged[name], trained[name].to(getattr(torch, dtype))) for name in trained)
    assert (work / "run/merged/tokenizer.json").read_bytes() == (model / "tokenizer.json").read_bytes()
    generation = json.loads((work / "run/merged/generation_config.json").read_text())
    assert generation["eos_token_id"][0] == load_tokenizer(model).eos_token_id
    manifest = json.loads((work / "run/merged/manifest.json").read_text(encoding="utf-8"))
    assert manifest["result"]["merged_onto"] is None
    assert "trained" in manifest["inputs"] and "adapter" not in manifest["inputs"]


def test_frozen_embeddings_stay_those_of_the_base(work, model):
    before = load_file(model / "model.safetensors")
    after, told = _run("train", work / "run", "train.freeze_embeddings=true")
    changed = {name for name in before if not torch.equal(after[name], before[name].float())}
    assert set(before) - changed == {"model.embed_tokens.weight"}
    assert told["embeddings_frozen"] is True
    assert told["trainable_parameters"] == sum(before[name].numel() for name in changed)


def test_an_interrupted_training_goes_on_and_ends_with_the_same_weights(work, monkeypatch, capsys):
    from finetune.progress import TrainingProgress

    whole, _ = _run("train", work / "whole")
    logged = TrainingProgress.logged
    steps = []

    def interrupt(self, step, values):
        logged(self, step, values)
        if step == 3:
            raise KeyboardInterrupt

    def note(self, step, values):
        logged(self, step, values)
        steps.append(step)

    with monkeypatch.context() as patch:
        patch.setattr(TrainingProgress, "logged", interrupt)
        assert cli.main(["train", "recipe.yaml", "--out", str(work / "run")]) == cli.EXIT_INTERRUPTED
    assert not (work / "run/trained").exists()
    capsys.readouterr()
    with monkeypatch.context() as patch:
        patch.setattr(TrainingProgress, "logged", note)
        resumed, _ = _run("train", work / "run")
    assert "going on from checkpoint 2" in capsys.readouterr().out
    assert min(steps) == 3  # from scratch it would end with the same weights too
    assert all(torch.allclose(whole[name], resumed[name], atol=1e-6) for name in whole)
    assert not (work / "run/.checkpoints").exists()


def test_weights_that_are_not_finite_are_neither_kept_nor_rounded(work, model):
    from finetune.methods import _supervised

    class _Broken(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.weight = torch.nn.Parameter(torch.tensor([1.0, float("nan")]))

    with pytest.raises(TrainingError, match="weight holds values that are not finite"):
        _supervised._require_finite(_Broken())
    weights, told = _run("train", work / "run")
    weights["model.norm.weight"][0] = 1e6  # a number in float32, beyond float16's largest
    save_file(weights, work / "run/trained/model.safetensors", metadata={"format": "pt"})
    trained = FullModel.model_validate({**told, "folder": work / "run/trained"})
    (work / "out").mkdir()
    with pytest.raises(ModelError, match="not finite"):
        convert(trained, open_base(ModelSettings(name=str(model))), work / "out", dtype="float16")
    assert not list((work / "out").iterdir())


def test_the_trained_folder_is_a_model_of_its_own(work, model):
    weights, told = _run("train", work / "run")
    trained = FullModel.model_validate({**told, "folder": work / "run/trained"})
    subject = trained.subject(model, "trained")
    assert (subject.path, subject.adapter) == (work / "run/trained", None)
    engine = hf.load(subject, vocabulary_size=None, threads=1)
    ids = [5, 6, 7, 8]
    opened = AutoModelForCausalLM.from_pretrained(work / "run/trained", dtype=torch.float32).eval()
    with torch.inference_mode():
        expected = opened(torch.tensor([ids])).logits[0, 2].log_softmax(-1)
    found = engine.log_probs(ids, [3])[0]
    assert torch.allclose(torch.tensor(found), expected[: len(found)] - expected[: len(found)].logsumexp(0), atol=1e-4)
    assert weights


def test_nf4_has_nothing_to_be_merged_onto(work):
    from export.errors import RecipeError

    with pytest.raises(RecipeError, match=r"merge\.onto is nf4, but full fine-tuning leaves no adapter"):
        load(work / "recipe.yaml", ["merge.onto=nf4"])
    assert load(work / "recipe.yaml", ["merge.onto=16bit"]).merge.onto == "16bit"
