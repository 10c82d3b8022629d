"""The Hugging Face engine against transformers and peft themselves, on tiny random models."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from export.engines import Subject, hf
from export.engines._base import ROWS_AT_ONCE
from export.errors import EngineError
from tests.export import tiny_models

IDS = [int(i) for i in np.random.default_rng(0).integers(0, 390, 60)]
PROMPTS = [[int(i) for i in np.random.default_rng(n).integers(0, 390, 3 + 5 * n)] for n in (4, 1, 3, 0, 2)]


@pytest.fixture(scope="module", params=tiny_models.ARCHITECTURES)
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("hf") / "model"
    return tiny_models.build(path, request.param, tied=True, hidden_size=128).folder


@pytest.fixture
def own_folder(tmp_path: Path) -> Path:
    """A folder that a test may change."""
    return tiny_models.build(tmp_path / "model", "qwen2", tied=False, hidden_size=64).folder


@pytest.fixture
def engine(folder: Path) -> Iterator[hf.HfEngine]:
    loaded = load(folder)
    yield loaded
    loaded.close()


def load(path: Path, **settings: Any) -> hf.HfEngine:
    return hf.load_hf(Subject(name="x", engine="hf", path=path, **settings), vocabulary_size=None, threads=1)


def direct(path: Path) -> Any:
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32).eval()


def test_log_probs_are_those_of_transformers(engine: hf.HfEngine, folder: Path) -> None:
    from transformers import AutoTokenizer

    real_ids = len(AutoTokenizer.from_pretrained(folder))
    assert real_ids < tiny_models.MODEL_VOCABULARY_SIZE
    positions = [1, 7, 30, len(IDS) - 1]
    with torch.no_grad():
        logits = direct(folder)(input_ids=torch.tensor([IDS])).logits[0]
    expected = logits[[p - 1 for p in positions], :real_ids].log_softmax(-1).numpy()
    seen = engine.log_probs(IDS, positions)
    assert seen.dtype == np.float32
    np.testing.assert_allclose(seen, expected, atol=1e-4)
    np.testing.assert_allclose(np.exp(seen).sum(-1), 1, atol=1e-5)


CONTINUATIONS = [[5], [5, 9, 12], [6, 9], [5, 9, 12, 3, 3], [5]]


def test_what_stands_behind_a_prompt_is_as_likely_as_in_one_sequence(engine: hf.HfEngine) -> None:
    for prompt in (IDS[:1], IDS[:40]):
        found = list(engine.log_probs_behind(prompt, CONTINUATIONS))
        for rows, continuation in zip(found, CONTINUATIONS, strict=True):
            whole = engine.log_probs([*prompt, *continuation], range(len(prompt), len(prompt) + len(continuation)))
            assert rows.shape == whole.shape
            np.testing.assert_allclose(rows, whole, atol=1e-4)


def test_a_prompt_is_run_once_for_all_that_stands_behind_it(engine: hf.HfEngine, monkeypatch) -> None:
    seen = []
    plain = engine.model.forward

    def counted(**given):
        seen.append(given["input_ids"].numel())
        return plain(**given)

    monkeypatch.setattr(engine.model, "forward", counted)
    list(engine.log_probs_behind(IDS[:40], CONTINUATIONS))
    assert seen == [40, 2, 1, 4]


def test_a_prompt_of_no_tokens_is_refused(engine: hf.HfEngine) -> None:
    with pytest.raises(EngineError, match="nothing predicts the first token"):
        list(engine.log_probs_behind([], CONTINUATIONS))


def test_positions_without_anything_before_them_are_refused(engine: hf.HfEngine) -> None:
    assert engine.log_probs(IDS, []).shape[0] == 0
    for position in (0, len(IDS), -1):
        with pytest.raises(EngineError, match="positions must lie in"):
            engine.log_probs(IDS, [position])


def test_positions_out_of_order_are_refused(engine: hf.HfEngine) -> None:
    for positions in ([7, 3], [3, 3]):
        with pytest.raises(EngineError, match="positions must rise"):
            engine.log_probs(IDS, positions)


@pytest.mark.parametrize("head_follows_decoder", [True, False])
def test_a_long_row_comes_in_blocks_that_are_transformers(engine, folder, monkeypatch, head_follows_decoder) -> None:
    ids = [1 + (7 * index) % 90 for index in range(2 * ROWS_AT_ONCE + 30)]
    monkeypatch.setattr(engine, "_head_follows_decoder", head_follows_decoder)
    blocks = list(engine.log_prob_blocks(ids, range(1, len(ids))))
    assert [len(block) for block in blocks] == [ROWS_AT_ONCE, ROWS_AT_ONCE, 29]
    with torch.no_grad():
        logits = direct(folder)(input_ids=torch.tensor([ids])).logits[0, :-1, : engine.vocabulary_size]
    np.testing.assert_allclose(np.concatenate(blocks), logits.log_softmax(-1).numpy(), atol=1e-4)


def test_a_model_that_changes_its_logits_behind_its_head_is_seen(engine, monkeypatch) -> None:
    """As Gemma 2 caps its logits: then the whole model must give them."""
    assert engine._head_follows_decoder
    forward = engine.model.forward

    def capped(**inputs):
        out = forward(**inputs)
        out.logits = torch.tanh(out.logits)
        return out

    monkeypatch.setattr(engine.model, "forward", capped)
    assert not engine._sees_the_same_without_its_head()


def test_greedy_answers_follow_the_most_likely_token(engine: hf.HfEngine) -> None:
    (answer,) = engine.generate([PROMPTS[0]], 6)
    ids = list(PROMPTS[0])
    for token in answer.ids:
        ids.append(token)
        assert engine.log_probs(ids, [len(ids) - 1])[0].argmax() == token or token >= engine.vocabulary_size
    assert len(answer.ids) == 6 or answer.stopped


def test_batches_answer_as_single_prompts_do(engine: hf.HfEngine) -> None:
    together = engine.generate(PROMPTS, 12, batch_size=3)
    alone = engine.generate(PROMPTS, 12, batch_size=1)
    assert [(g.ids, g.stopped) for g in together] == [(g.ids, g.stopped) for g in alone]
    assert len({g.ids for g in alone}) == len(PROMPTS)
    assert all(g.seconds > 0 for g in together)


def test_it_stops_at_what_the_folder_declares(own_folder: Path) -> None:
    free = load(own_folder)
    answers = free.generate(PROMPTS, 8)
    assert not any(answer.stopped for answer in answers)
    first = answers[0].ids
    stop = first[3]
    settings = json.loads((own_folder / "generation_config.json").read_text())
    # sampling settings, which real folders hold, must neither warn nor be followed
    settings |= {"eos_token_id": stop, "do_sample": True, "temperature": 3.0, "top_k": 5}
    (own_folder / "generation_config.json").write_text(json.dumps(settings))
    stopping = load(own_folder)
    assert set(stopping.stop_ids) == {stop, tiny_eos(own_folder)}
    again = stopping.generate(PROMPTS, 8)
    assert again[0].stopped
    assert again[0].ids == first[: first.index(stop)]
    for before, after in zip(answers, again, strict=True):
        end = before.ids.index(stop) if stop in before.ids else len(before.ids)
        assert after.ids == before.ids[:end]


def tiny_eos(folder: Path) -> int:
    from transformers import AutoTokenizer

    token = AutoTokenizer.from_pretrained(folder).eos_token_id
    assert isinstance(token, int)
    return token


# peft reads this deprecated property of transformers
@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning")
def test_an_adapter_attached_computes_what_merging_it_computes(own_folder: Path, tmp_path: Path) -> None:
    from peft import LoraConfig, PeftModel, get_peft_model

    config = LoraConfig(r=4, target_modules=["q_proj", "down_proj"], init_lora_weights=False)
    get_peft_model(direct(own_folder), config).save_pretrained(tmp_path / "adapter")
    merged = PeftModel.from_pretrained(direct(own_folder), tmp_path / "adapter").merge_and_unload()
    with torch.no_grad():
        logits = merged(input_ids=torch.tensor([IDS])).logits[0]
    attached = load(own_folder, adapter=tmp_path / "adapter")
    seen = attached.log_probs(IDS, [5, 40])
    expected = logits[[4, 39], : attached.vocabulary_size].log_softmax(-1).numpy()
    np.testing.assert_allclose(seen, expected, atol=1e-4)
    assert np.abs(seen - load(own_folder).log_probs(IDS, [5, 40])).max() > 0.01
    assert len(attached.generate([IDS[:5]], 3)) == 1


@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning")
def test_an_adapter_with_lost_weights_is_refused(own_folder: Path, tmp_path: Path) -> None:
    from peft import LoraConfig, get_peft_model
    from safetensors.torch import load_file, save_file

    config = LoraConfig(r=4, target_modules=["q_proj"], init_lora_weights=False)
    get_peft_model(direct(own_folder), config).save_pretrained(tmp_path / "adapter")
    file = tmp_path / "adapter" / "adapter_model.safetensors"
    weights = {name: t.clone() for name, t in load_file(file).items() if "layers.1" not in name}
    save_file(weights, file, metadata={"format": "pt"})
    with pytest.raises(EngineError, match="does not fit the model"):
        load(own_folder, adapter=tmp_path / "adapter")


def test_a_four_bit_base_is_near_the_dense_one(own_folder: Path) -> None:
    four_bit = load(own_folder, four_bit_compute="float32")
    assert four_bit.kernel is not None
    assert load(own_folder).kernel is None
    dense, seen = (e.log_probs(IDS, range(1, 60)) for e in (load(own_folder), four_bit))
    kl = float((np.exp(dense) * (dense - seen)).sum(-1).mean())
    assert 1e-4 < kl < 0.5


@pytest.mark.parametrize("change", ["missing", "unexpected", "of another shape"])
def test_weights_that_do_not_fit_are_refused(own_folder: Path, change: str) -> None:
    from safetensors.torch import load_file, save_file

    file = own_folder / "model.safetensors"
    weights = {name: tensor.clone() for name, tensor in load_file(file).items()}
    if change == "missing":
        del weights["lm_head.weight"]
    elif change == "unexpected":
        weights["model.layers.0.mlp.extra.weight"] = torch.zeros(2)
    else:
        weights["lm_head.weight"] = weights["lm_head.weight"][:-1]
    save_file(weights, file, metadata={"format": "pt"})
    with pytest.raises(EngineError, match=change if change != "of another shape" else "another shape|mismatch"):
        load(own_folder)


def test_a_tokenizer_larger_than_the_model_is_refused(own_folder: Path) -> None:
    subject = Subject(name="x", engine="hf", path=own_folder)
    with pytest.raises(EngineError, match="mixes the tokenizer"):
        hf.load(subject, vocabulary_size=513, threads=1)
