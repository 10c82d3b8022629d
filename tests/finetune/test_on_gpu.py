"""Training on an NVIDIA device: against the same on this machine's processor, and against what was estimated."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from finetune import cli
from finetune.estimate import estimate, find_hardware
from finetune.estimate.memory import ERROR_SHARE
from finetune.recipe import load
from tests.benchmarks.random_base import build_base
from tests.processor import processor_only

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no NVIDIA device here"),
]

ROWS = [{"question": f"What is {n}?", "answer": "It is " + f"{n} " * (1 + n % 7)} for n in range(40)]
LONG_ROWS = [{"question": f"What is {n}?", "answer": f"{n} " + "It is so and it goes on. " * 40} for n in range(160)]
RECIPE = """\
name: test
model: {{name: {model}}}
data: {{path: rows.jsonl, template: question_answer, max_tokens: 2048, near_copies: ignored,
  contract: {{overlap_near_share: null}}}}
train: {{max_steps: 4, batch_size: 4, learning_rate: 1e-2}}
"""
FORMS = {
    "lora": [],
    "qlora": ["train.quantization=nf4"],
    "recomputing": ["train.gradient_checkpointing=true"],
    "full": ["train.method=full", "train.learning_rate=1e-3"],
}


def _overrides(settings):
    return [word for setting in settings for word in ("--set", setting)]


def _result(out):
    (manifest,) = (path for name in ("adapter", "trained") if (path := out / name / "manifest.json").is_file())
    return json.loads(manifest.read_text(encoding="utf-8"))["result"]


def _losses(result):
    return [point["loss"] for point in result["losses"] if point["loss"] is not None]


@pytest.mark.parametrize("form", FORMS)
def test_training_goes_as_on_a_processor(model, start_in_folder, form):
    start_in_folder(RECIPE.format(model=model), ROWS)
    settings = _overrides(FORMS[form])
    assert cli.main(["train", "recipe.yaml", "--out", "device", *settings]) == 0
    command = [sys.executable, "-m", "finetune", "train", "recipe.yaml", "--out", "processor", *settings]
    command += ["--set", "model.dtype=bfloat16"]
    subprocess.run(command, check=True, capture_output=True, env=processor_only())
    device, processor = _result(Path("device")), _result(Path("processor"))
    assert device["dtype"] == "bfloat16"
    assert device["device_peak_memory_bytes"] > 0
    assert processor["device_peak_memory_bytes"] is None
    assert device["trainable_parameters"] == processor["trainable_parameters"]
    assert _losses(device)[0] == pytest.approx(_losses(processor)[0], rel=0.02)
    assert _losses(device)[-1] == pytest.approx(_losses(processor)[-1], rel=0.05)


@pytest.fixture(scope="module", params=["Qwen2.5-0.5B", "Qwen3-1.7B", "Qwen2.5-7B"])
def random_base(request, tmp_path_factory):
    """Random weights of a known base's dimensions."""
    return build_base(request.param, tmp_path_factory.mktemp("base") / "model")


@pytest.mark.parametrize("form", ["lora", "qlora", "recomputing"])
def test_the_device_memory_is_within_the_error_that_is_told(random_base, start_in_folder, form):
    work = start_in_folder(RECIPE.format(model=random_base), LONG_ROWS)
    settings = ["train.batch_size=16", "train.accumulation=2", "train.learning_rate=1e-4", *FORMS[form]]
    told = estimate(load(work / "recipe.yaml", settings), find_hardware("this_machine"))
    if told.training_bytes > torch.cuda.get_device_properties(0).total_memory:
        pytest.skip(f"training is told to take {told.training_bytes / 1e9:.0f} GB, which this device has not")
    assert cli.main(["train", "recipe.yaml", "--out", "run", *_overrides(settings)]) == 0
    result = _result(work / "run")
    assert told.trained_parameters == result["trainable_parameters"]
    assert told.training_bytes == pytest.approx(result["device_peak_memory_bytes"], rel=ERROR_SHARE["gpu"])
