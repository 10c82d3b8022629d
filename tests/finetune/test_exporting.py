"""What is tried where no file passes: the next that the recipe names, as long as every one failed, and told why."""

import json
from pathlib import Path
from types import SimpleNamespace

import pytest

from export.artifacts import QuantizedModel
from export.errors import ExportError
from export.formats.gguf import Gguf
from export.formats.gptq import Gptq
from finetune import cli
from finetune.exporting import Exporting

SIZES = {"f16": 100, "q2_k": 20, "q3_k_m": 30, "q8_0": 60, "4bit": 25, "8bit": 50}


def _no_device(variant, inputs, work):
    raise AssertionError("no target names a device here")


def _exporting(*steps):
    made, said = [], []

    def run_stage(variant, inputs, work):
        made.append(variant)
        name = variant.partition("-")[2]
        return QuantizedModel(
            folder=Path(variant),
            subject=variant.replace("-", "/"),
            file_name=None,
            engine="llama_cpp",
            size_bytes=SIZES[name] * 10**6,
            bits_per_weight=4,
            sha256=variant,
            tensor_types={},
            fallbacks=(),
            tools={},
        )

    rows = SimpleNamespace(inputs=lambda wanted: {})
    return Exporting(steps, None, "merged", rows, run_stage, _no_device, said.append), made, said


def test_while_every_file_fails_the_next_is_tried_and_says_why():
    exporting, made, said = _exporting(Gguf(types="q2_k", when_failing=("q3_k_m", "q8_0")))
    assert [file.subject for file in exporting.all()] == ["gguf/f16", "gguf/q2_k"]
    assert exporting.try_next({"gguf/f16": "pass", "gguf/q2_k": "fail"})
    assert exporting.try_next({"gguf/f16": "pass", "gguf/q2_k": "fail", "gguf/q3_k_m": "fail"})
    third, last = exporting.all()[2:]
    assert (third.subject, last.subject) == ("gguf/q3_k_m", "gguf/q8_0")
    (fallback,) = last.fallbacks
    assert (fallback.asked, fallback.used) == ("gguf/q2_k, gguf/q3_k_m", "gguf/q8_0")
    assert fallback.reason == "none of them passed; +30.0 MB beside gguf/q3_k_m"
    assert not exporting.try_next({"gguf/q2_k": "fail", "gguf/q3_k_m": "fail", "gguf/q8_0": "pass"})
    assert made == ["gguf-f16", "gguf-q2_k", "gguf-q3_k_m", "gguf-q8_0"]
    assert said == [
        "every file failed (gguf/q2_k): trying gguf-q3_k_m",
        "every file failed (gguf/q2_k, gguf/q3_k_m): trying gguf-q8_0",
    ]


@pytest.mark.parametrize("verdict", ["pass", "cannot tell"])
def test_a_file_that_did_not_fail_leads_to_nothing_more(verdict):
    exporting, made, _ = _exporting(Gguf(types=("q2_k", "q3_k_m"), when_failing="q8_0"))
    exporting.all()
    assert not exporting.try_next({"gguf/q2_k": "fail", "gguf/q3_k_m": verdict})
    assert "gguf-q8_0" not in made


def test_what_cannot_be_made_is_told_and_the_next_is_tried(monkeypatch):
    exporting, _, said = _exporting(Gptq(bits=4, when_failing=("tuned", 8)))
    exporting.all()
    plain = exporting._quantize

    def quantize(step, variant):
        if variant.endswith("tuned"):
            raise ExportError("AutoRound did not come to its end")
        return plain(step, variant)

    monkeypatch.setattr(exporting, "_quantize", quantize)
    assert exporting.try_next({"gptq/4bit": "fail"})
    assert not exporting.try_next({"gptq/4bit": "fail", "gptq/8bit": "fail"})
    first, last = exporting.all()
    assert last.subject == "gptq/8bit"
    (told,) = first.fallbacks
    assert (told.asked, told.used) == ("gptq-4bit-tuned", "none") and "AutoRound did not" in told.reason
    assert "gptq-4bit-tuned could not be made: AutoRound did not come to its end" in said


def test_each_format_has_its_own_and_the_end_is_told():
    exporting, made, said = _exporting(Gguf(types="q8_0"), Gptq(bits=4, when_failing=8))
    exporting.all()
    verdicts = {"gguf/q8_0": "fail", "gptq/4bit": "fail"}
    assert exporting.try_next(verdicts)
    assert made[-1] == "gptq-8bit"
    assert not exporting.try_next({**verdicts, "gptq/8bit": "fail"})
    assert said[-1] == "every file failed (gptq/4bit, gptq/8bit), and nothing is left to try"


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"types": "q8_0", "when_failing": "q8_0"}, "q8_0 is made anyway"),
        ({"types": "q8_0", "when_failing": "q9"}, "unknown GGUF file type"),
        ({"types": "q8_0", "when_failing": "iq2_xs"}, "importance data"),
    ],
)
def test_what_cannot_be_tried_is_refused(settings, words):
    with pytest.raises(ValueError, match=words):
        Gguf(**settings)


RECIPE = """
name: small
model: {name: starter}
data: {path: generated:cleaning_robot, template: cleaning_robot, rows: 400, held_out_share: 0.2}
train: {max_steps: 20, batch_size: 8, learning_rate: 4e-3, lora: {rank: 16, alpha: 32}}
export: {gguf: {types: [q1_0], when_failing: [q8_0]}}
check: {rows: 30, max_new_tokens: 32}
"""


@pytest.mark.slow
def test_from_a_file_that_fails_to_the_one_that_is_tried(tmp_path, capsys):
    (tmp_path / "recipe.yaml").write_text(RECIPE, encoding="utf-8")
    command = ["run", str(tmp_path / "recipe.yaml"), "--out", str(tmp_path / "run")]
    assert cli.main(command) == 1  # what was asked for failed, whatever was tried
    said = capsys.readouterr()
    assert "every file failed (gguf/q1_0): trying gguf-q8_0" in said.out + said.err
    report = json.loads((tmp_path / "run/report.json").read_text(encoding="utf-8"))
    subjects = {subject["name"]: subject for subject in report["subjects"]}
    assert subjects["gguf/q1_0"]["verdict"] == "fail"
    assert subjects["gguf/q8_0"]["verdict"] != "fail"
    assert subjects["gguf/q8_0"]["fallbacks"][-1]["asked"] == "gguf/q1_0"
    assert "none of them passed" in (tmp_path / "run/export/gguf-q8_0/README.md").read_text(encoding="utf-8")

    # a second run makes and measures nothing again, and comes to the same
    assert cli.main(command) == 1
    said = capsys.readouterr()
    assert "running" not in said.out + said.err
    assert "from an earlier run" not in said.out + said.err
    assert json.loads((tmp_path / "run/report.json").read_text(encoding="utf-8"))["subjects"] == report["subjects"]
