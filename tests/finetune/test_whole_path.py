"""The whole path on the starter, in a short form: every stage, every subject, and what the report must hold."""

import json
import shutil
from pathlib import Path

import pytest

from finetune import cli

ROOT = Path(__file__).parents[2]
SHORT = (
    "data.rows=700",
    "train.max_steps=30",
    "check.rows=40",
    "check.max_new_tokens=48",
    "export.gptq.calibration_rows=32",
)
SUBJECTS = ["merged", "base", "adapter", "gguf/f16", "gguf/q8_0", "gguf/q4_k_m", "gptq/4bit"]
pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def run_folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("run") / "quickstart"
    assert cli.main(["run", str(ROOT / "recipes/quickstart.yaml"), "--out", str(folder), *_set(SHORT)]) == 0
    return folder


@pytest.fixture(scope="module")
def report(run_folder):
    return json.loads((run_folder / "report.json").read_text(encoding="utf-8"))


def _set(overrides):
    return [word for override in overrides for word in ("--set", override)]


def _value(report, check, subject):
    (found,) = (m for m in report["measurements"] if (m["check"], m["subject"]) == (check, subject))
    return found["value"]


def test_the_run_folder_holds_every_stage(run_folder):
    names = {path.relative_to(run_folder).as_posix() for path in run_folder.glob("*")}
    names |= {path.relative_to(run_folder).as_posix() for path in run_folder.glob("export/*")}
    expected = {"recipe.yaml", "data", "adapter", "merged", "report.json", "check"}
    assert names >= expected | {f"export/{name}" for name in ("gguf-f16", "gguf-q8_0", "gguf-q4_k_m", "gptq-4bit")}
    assert not list(run_folder.rglob("*.partial"))


def test_every_subject_is_measured_by_every_check(report):
    assert [subject["name"] for subject in report["subjects"]] == SUBJECTS
    for check in ("perplexity", "exact_match", "stops", "size_bytes", "peak_memory_bytes", "tokens_per_second"):
        assert [m["subject"] for m in report["measurements"] if m["check"] == check] == SUBJECTS, check
    for check in ("kl_mean", "kl_percentile_99", "same_top_token"):
        assert [m["subject"] for m in report["measurements"] if m["check"] == check] == SUBJECTS[1:], check


def test_every_number_carries_n_and_an_error_or_says_why_not(report):
    for measured in report["measurements"]:
        assert measured["n"] >= 1
        assert measured["stderr"] is not None or measured["note"], measured
    for compared in report["comparisons"]:
        assert compared["interval"] is not None or compared["note"], compared


def test_subjects_say_what_was_really_made(report, run_folder):
    by_name = {subject["name"]: subject for subject in report["subjects"]}
    assert by_name["gguf/q4_k_m"]["tensor_types"].keys() >= {"q4_k", "q6_k", "f32"}
    assert by_name["gptq/4bit"]["tensor_types"]["int4 (group 128)"] == 6 * 7
    assert by_name["gguf/q8_0"]["bits_per_weight"] == pytest.approx(8.5, abs=0.2)
    assert by_name["merged"]["bits_per_weight"] == 16
    for name in ("gguf/f16", "gguf/q8_0", "gguf/q4_k_m"):
        path = run_folder / by_name[name]["path"]
        assert path.stat().st_size >= by_name[name]["size_bytes"] * 0.9
    assert all(len(subject["sha256"]) == 64 for subject in report["subjects"])


def test_fine_tuning_helps_and_the_f16_file_says_what_the_merged_model_says(report):
    assert _value(report, "perplexity", "merged") < _value(report, "perplexity", "base") / 1.5
    assert _value(report, "kl_mean", "gguf/f16") < 1e-3
    assert _value(report, "kl_mean", "adapter") < 1e-2
    assert _value(report, "kl_mean", "gguf/q8_0") < _value(report, "kl_mean", "gguf/q4_k_m")


def test_merging_and_exports_are_judged_and_fine_tuning_is_not(report):
    pairs = {(c["before"], c["after"]) for c in report["comparisons"]}
    assert pairs == {("base", "merged"), ("adapter", "merged"), *(("merged", s) for s in SUBJECTS[3:])}
    assert all(c["verdict"] is None for c in report["comparisons"] if c["before"] == "base")
    assert report["verdict"] in ("pass", "fail", "cannot tell")


def test_held_out_combinations_were_never_trained_on(run_folder):
    def groups(split):
        lines = (run_folder / "data" / f"{split}.jsonl").read_text(encoding="utf-8").splitlines()
        return {json.loads(line)["group"] for line in lines}

    train, valid, held_out = groups("train"), groups("valid"), groups("held_out")
    assert train and valid and held_out
    assert not train & held_out and not train & valid and not valid & held_out


def test_a_second_run_does_nothing_again_and_a_changed_type_only_what_it_must(run_folder, tmp_path, capsys):
    copy = tmp_path / "moved"
    shutil.copytree(run_folder, copy)
    recipe = [str(ROOT / "recipes/quickstart.yaml"), "--out", str(copy), *_set(SHORT)]
    capsys.readouterr()
    assert cli.main(["run", *recipe]) == 0
    assert "running" not in capsys.readouterr().out
    assert cli.main(["run", *recipe, "--set", "export.gguf.types=[q8_0, q5_0]"]) == 0
    running = [line.split(":")[0] for line in capsys.readouterr().out.splitlines() if ": running" in line]
    assert running == ["quantize gguf-q5_0", "check gguf/q5_0"]


def test_every_artifact_can_be_talked_to(run_folder, monkeypatch, capsys):
    for name in ("adapter", "merged", "export/gptq-4bit", "export/gguf-q4_k_m/model-q4_k_m.gguf"):
        lines = iter(["sweep the kitchen"])
        monkeypatch.setattr("builtins.input", lambda prompt, lines=lines: next(lines, None) or _end())
        capsys.readouterr()
        assert cli.main(["chat", str(run_folder / name), "--max-new-tokens", "40"]) == 0
        assert '{"' in capsys.readouterr().out, name


def _end():
    raise EOFError
