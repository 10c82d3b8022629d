"""The base model and the settings that a machine is sent off with: from its GPU's memory, and valid as a recipe."""

import pytest

from export import hardware
from export.hardware import Accelerator
from finetune import starting_point as module
from finetune.recipe import Recipe
from finetune.starting_point import starting_point, starting_point_for

GIB = 2**30


def given(gib, dtype="bfloat16"):
    gpu = None if gib is None else Accelerator(name="A GPU", memory_bytes=int(gib * GIB))
    return starting_point_for(gpu, "2 processor cores, 13 GiB of memory", dtype)


@pytest.mark.parametrize(
    ("gib", "model", "quantization"),
    [
        (None, "starter", "none"),
        (5.8, "Qwen/Qwen2.5-0.5B-Instruct", "none"),
        (7.9, "Qwen/Qwen2.5-0.5B-Instruct", "none"),
        (8.0, "Qwen/Qwen2.5-1.5B-Instruct", "nf4"),
        (14.7, "Qwen/Qwen2.5-1.5B-Instruct", "nf4"),
        (22.0, "Qwen/Qwen2.5-1.5B-Instruct", "none"),
        (79.2, "Qwen/Qwen2.5-1.5B-Instruct", "none"),
    ],
)
def test_memory_decides(gib, model, quantization):
    start = given(gib)
    assert (start.model, start.quantization) == (model, quantization)
    assert model.rpartition("/")[2] in start.sentence
    assert ("QLoRA" in start.sentence) == (quantization == "nf4")


@pytest.mark.parametrize("gib", [None, 6, 15, 24])
def test_what_it_says_is_a_recipe(gib):
    start = given(gib)
    recipe = Recipe.model_validate(
        {"name": "a", "model": {"name": start.model}, "data": {"path": "rows.csv"}, "train": start.train()}
    )
    assert recipe.train.quantization == start.quantization
    assert recipe.train.batch_size == 16
    passes = {"two rows": 8, "four rows": 4}
    assert recipe.train.accumulation == next((n for said, n in passes.items() if said in start.sentence), 1)


def test_a_t4_is_told_why_it_computes_in_float16():
    assert "float16: this GPU has no bfloat16" in given(14.7, "float16").sentence
    assert "no bfloat16" not in given(14.7).sentence


def test_this_machine_is_looked_at(monkeypatch):
    monkeypatch.setattr(module, "accelerator", lambda: Accelerator(name="Tesla T4", memory_bytes=15 * GIB))
    monkeypatch.setattr(module, "compute_dtype", lambda: "float16")
    assert starting_point().sentence.startswith(f"Tesla T4 with 15 GiB ({hardware.available_cores()} processor cores")
