"""The base model and the settings that a machine is sent off with: from its GPU's memory, and valid as a recipe."""

import pytest

from export import hardware
from export.hardware import Accelerator
from finetune import starting_point as module
from finetune.estimate import estimate, known_hardware
from finetune.recipe import Recipe
from finetune.starting_point import starting_point, starting_point_for

GIB = 2**30


def given(gib, dtype="bfloat16"):
    gpu = None if gib is None else Accelerator(name="A GPU", memory_bytes=int(gib * GIB))
    return starting_point_for(gpu, "2 processor cores, 13 GiB of memory", dtype)


@pytest.mark.parametrize(
    ("gib", "model", "quantization", "rows", "recomputes"),
    [
        (None, "starter", "none", 16, False),
        (2.0, "Qwen/Qwen2.5-0.5B-Instruct", "none", 2, True),
        (3.8, "Qwen/Qwen2.5-1.5B-Instruct", "nf4", 2, True),
        (7.9, "Qwen/Qwen2.5-1.5B-Instruct", "none", 2, True),
        (14.7, "Qwen/Qwen2.5-1.5B-Instruct", "none", 4, False),
        (79.2, "Qwen/Qwen2.5-1.5B-Instruct", "none", 4, False),
    ],
)
def test_memory_decides(gib, model, quantization, rows, recomputes):
    start = given(gib)
    assert (start.model, start.quantization, start.gradient_checkpointing) == (model, quantization, recomputes)
    assert start.accumulation == 16 // rows
    assert model.rpartition("/")[2] in start.sentence
    assert ("QLoRA" in start.sentence) == (quantization == "nf4")


@pytest.mark.parametrize("gib", [3.8, 7.9, 14.7])
def test_even_the_higher_end_of_the_estimate_fits_what_is_there(gib, tmp_path):
    start = given(gib)
    rows = tmp_path / "nowhere.jsonl"
    recipe = Recipe.model_validate(
        {"name": "a", "model": {"name": start.model}, "data": {"path": str(rows)}, "train": start.train()}
    )
    machine = known_hardware()["l4"].model_copy(update={"memory_bytes": int(gib * GIB)})
    found = estimate(recipe, machine)
    assert found.rows.longest_tokens == 512
    assert found.fits is True


@pytest.mark.parametrize("gib", [None, 6, 15, 24])
def test_what_it_says_is_a_recipe(gib):
    start = given(gib)
    recipe = Recipe.model_validate(
        {"name": "a", "model": {"name": start.model}, "data": {"path": "rows.csv"}, "train": start.train()}
    )
    assert recipe.train.quantization == start.quantization
    assert recipe.train.batch_size == 16
    if gib is not None:
        assert f"{16 // recipe.train.accumulation} rows at a time" in start.sentence


def test_a_t4_is_told_why_it_computes_in_float16():
    assert "float16: this GPU has no bfloat16" in given(14.7, "float16").sentence
    assert "no bfloat16" not in given(14.7).sentence


def test_this_machine_is_looked_at(monkeypatch):
    monkeypatch.setattr(module, "accelerator", lambda: Accelerator(name="Tesla T4", memory_bytes=15 * GIB))
    monkeypatch.setattr(module, "compute_dtype", lambda: "float16")
    assert starting_point().sentence.startswith(f"Tesla T4 with 15 GiB ({hardware.available_cores()} processor cores")
