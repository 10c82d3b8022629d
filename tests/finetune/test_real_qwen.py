"""The short form of the whole path on a real Qwen2.5-0.5B and real rows; skips where either is absent."""

import json
import os
from pathlib import Path

import pytest

from finetune import cli

ROOT = Path(__file__).parents[2]
MODEL = Path(os.environ.get("FIELDTUNE_REAL_QWEN", "~/.cache/real-qwen/Qwen2.5-Coder-0.5B-Instruct")).expanduser()
ROWS = ROOT.parent / "shared/data/robot/nlu_home_commands.jsonl"
pytestmark = [
    pytest.mark.real,
    pytest.mark.skipif(
        not (MODEL / "config.json").is_file(),
        reason=f"no real Qwen at {MODEL}: set FIELDTUNE_REAL_QWEN to a Qwen2.5-0.5B folder (CONTRIBUTING.md)",
    ),
    pytest.mark.skipif(not ROWS.is_file(), reason=f"no real rows at {ROWS}"),
]


def test_a_real_qwen_from_real_rows_to_a_measured_gguf(tmp_path):
    overrides = [
        f"model.name={MODEL}",
        f"data.path={ROWS}",
        "data.rows=400",
        "train.max_steps=8",
        "export.gptq=null",
        "export.gguf.types=[q8_0]",
        "check.rows=12",
    ]
    arguments = [word for override in overrides for word in ("--set", override)]
    recipe = str(ROOT / "recipes/cleaning_robot.yaml")
    assert cli.main(["run", recipe, "--out", str(tmp_path / "run"), *arguments]) != cli.EXIT_ERROR
    report = json.loads((tmp_path / "run/report.json").read_text(encoding="utf-8"))
    value = {(m["check"], m["subject"]): m["value"] for m in report["measurements"]}
    assert value["perplexity", "merged"] < value["perplexity", "base"] / 1.5
    assert value["kl_mean", "gguf/f16"] < 1e-3
    assert value["kl_mean", "gguf/q8_0"] < 1e-2
    assert value["stops", "merged"] >= value["stops", "base"]
