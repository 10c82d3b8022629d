"""Model cards say what the report says, can be followed to the letter, and are no part of the model."""

import contextlib
import io
import re
import shlex
import subprocess
import sys

import pytest
import yaml

from export.artifacts import sha256_of_folder
from export.card import Background, card, write_cards
from export.chat import Conversation, Message
from export.converter import convert
from export.formats.gptq import _copy_other_files
from export.stage import MANIFEST
from export.wording.values import value_text
from tests.export import tiny_models
from tests.export.page_reports import FILES, findings, run_report

EXPECTED = [f"answer {index}" for index in range(40)]
NASTY = 'Answer `in` "JSON" | it\'s $HOME\n```\nnow\n```\n<b>你好</b>'


@pytest.fixture(scope="module")
def report():
    return run_report(EXPECTED, findings=findings(list(FILES), broken="gptq/4bit"))[0]


@pytest.fixture(scope="module")
def tiny_model(tmp_path_factory):
    return tiny_models.build(tmp_path_factory.mktemp("tiny") / "merged", "qwen2", tied=True, hidden_size=64)


def _subject(report, name):
    return next(subject for subject in report.subjects if subject.name == name)


def _with(report, **recipe):
    return report.model_copy(update={"recipe": report.recipe | recipe})


def _front_matter(text):
    opening, block, _ = text.split("---\n", 2)
    assert opening == ""
    return yaml.safe_load(block)


def _rows(text, heading):
    """The cells of the first table below a heading, its heading row first."""
    lines = text.partition(f"## {heading}\n")[2].partition("\n## ")[0].splitlines()
    return [re.split(r"(?<!\\)\|", line)[1:-1] for line in lines if line.startswith("|")]


def _code(text, language):
    """The block of code in a language, without its fence."""
    return re.search(rf"^(`{{3,}}){language}\n(.*?)^\1$", text, re.M | re.S).group(2)


def test_a_card_holds_the_figures_before_and_after(report):
    text = card(report, _subject(report, "gguf/q4_k_m"), Background())
    heading, _, *rows = _rows(text, "Measured, before and after")
    assert all(len(row) == len(heading) == 7 for row in rows)
    measured = {(m.subject, m.check): m for m in report.measurements}
    (exact,) = [row for row in rows if row[0].strip() == "exact match, %"]
    for cell, subject in zip(exact[1:4], ("base", "merged", "gguf/q4_k_m"), strict=True):
        assert cell.strip() == value_text(measured[subject, "exact_match"])
    (step,) = [c for c in report.comparisons if (c.after, c.check) == ("gguf/q4_k_m", "exact_match")]
    assert exact[5].strip() == step.verdict
    assert exact[6].strip() == "40 rows"
    assert f"{step.delta * 100:+.2f}".replace("-", "−") in exact[4]
    assert {row[0].strip().partition(",")[0] for row in rows} >= {"perplexity", "mean KL", "stops", "size", "speed"}


def test_a_card_says_what_was_really_made_and_what_was_not_measured(report):
    subject = _subject(report, "gguf/q4_k_m")
    text = card(report, subject, Background())
    made = text.partition("## What was really made\n")[2].partition("\n## ")[0]
    assert "5.10 bits per weight" in made and subject.sha256 in made and "98.71 %" in made
    assert _rows(text, "What was really made")[2][1:3] == [" q4\\_k ", " q5\\_0 "]
    assert "no safety items were given" in text.partition("## Not measured\n")[2]
    origins = text.partition("## Made from\n")[2]
    assert all(_subject(report, name).sha256 in origins for name in ("base", "adapter", "merged"))


@pytest.mark.parametrize(
    ("verdict", "words"),
    [("pass", "**Verdict: pass.**"), ("fail", "Do not ship"), ("cannot tell", "do not decide"), (None, "not judged")],
)
def test_the_verdict_stands_on_top(report, verdict, words):
    subject = _subject(report, "gguf/f16").model_copy(update={"verdict": verdict})
    assert words in card(report, subject, Background()).partition("## How to run it")[0]


def test_a_failed_identity_is_named(report):
    top = card(report, _subject(report, "gptq/4bit"), Background()).partition("## How to run it")[0]
    assert "stop ids" in top and "151643" in top


@pytest.mark.parametrize(
    ("base", "path", "base_model"),
    [
        ("Qwen/Qwen2.5-0.5B-Instruct", "/cache/models--Qwen--Qwen2.5-0.5B-Instruct/snapshots/1", True),
        ("hf:Qwen/Qwen2.5-0.5B-Instruct", "/cache/models--Qwen--Qwen2.5-0.5B-Instruct/snapshots/1", True),
        ("Qwen/Qwen2.5-0.5B-Instruct", "/home/me/Qwen/Qwen2.5-0.5B-Instruct", False),
        ("modelscope:Qwen/Qwen2.5-0.5B-Instruct", "/cache/x", False),
        ("starter", "/site-packages/finetune/starter/model", False),
        ("/home/me/secret-project/model", "/home/me/secret-project/model", False),
    ],
)
def test_the_base_is_named_for_a_hub_only_where_it_came_from_one(report, base, path, base_model):
    subjects = [s.model_copy(update={"path": path}) if s.name == "base" else s for s in report.subjects]
    renamed = _with(report, model={"name": base}).model_copy(update={"subjects": tuple(subjects)})
    text = card(renamed, _subject(report, "gguf/f16"), Background())
    fields = _front_matter(text)
    assert fields.get("base_model") == ("Qwen/Qwen2.5-0.5B-Instruct" if base_model else None)
    assert ("base_model_relation" in fields) == base_model
    assert "secret-project" not in text and "/home/me" not in text


@pytest.mark.parametrize(
    ("subject", "library", "tags"),
    [
        ("gguf/q8_0", "gguf", ["fieldtune", "gguf", "llama.cpp"]),
        ("gptq/4bit", "transformers", ["fieldtune", "gptq"]),
        ("merged", "transformers", ["fieldtune"]),
    ],
)
def test_the_front_matter_names_the_library_and_a_licence_only_when_known(report, subject, library, tags):
    fields = _front_matter(card(report, _subject(report, subject), Background()))
    assert fields == {"library_name": library, "pipeline_tag": "text-generation", "tags": tags}
    known = _front_matter(card(report, _subject(report, subject), Background(licence="Apache-2.0")))
    assert known["license"] == "apache-2.0"
    unusable = Background(licence="Some licence of our own")
    assert "license" not in _front_matter(card(report, _subject(report, subject), unusable))


@pytest.mark.parametrize(
    ("path", "datasets"), [("hf:owner/rows", ["owner/rows"]), ("rows.jsonl", None), ("/home/me/rows.jsonl", None)]
)
def test_a_data_set_is_named_without_the_folders_of_this_machine(report, path, datasets):
    text = card(_with(report, data={"path": path}), _subject(report, "gguf/f16"), Background())
    assert _front_matter(text).get("datasets") == datasets
    assert path.rpartition("/")[2] in text and "/home" not in text


def test_text_from_elsewhere_breaks_neither_table_nor_fence(report):
    name = "gguf/a|b`c"
    nasty, _ = run_report([f"{NASTY} {index}" for index in range(12)], {name: (0.01, 0.5)})
    fallback = _subject(report, "gguf/q4_k_m").fallbacks[0].model_copy(update={"reason": NASTY})
    subject = _subject(nasty, name).model_copy(update={"fallbacks": (fallback,)})
    text = card(nasty, subject, Background(system_prompt=NASTY))
    for heading in ("Measured, before and after", "What was really made"):
        rows = _rows(text, heading)
        assert len({len(row) for row in rows}) == 1
    assert re.findall(r"^## .*", text, re.M) == [
        "## How to run it",
        "## Measured, before and after",
        "## What was really made",
        "## Made from",
        "## Not measured",
    ]
    command, server = _code(text, "sh").strip().rsplit("\n", 1)
    assert shlex.split(command)[-2:] == ["-sys", NASTY]
    assert shlex.split(server)[0] == "llama-server"
    compile(_code(text, "python"), "card", "exec")
    assert "<b>" not in re.sub(r"^(`{3,}).*?^\1$", "", text, flags=re.M | re.S)


def test_the_transformers_snippet_runs_as_it_stands(report, tiny_model, monkeypatch):
    monkeypatch.chdir(tiny_model.folder)
    text = card(_with(report, check={"max_new_tokens": 3}), _subject(report, "merged"), Background("Be brief."))
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        exec(_code(text, "python"), {})
    assert printed.getvalue()


def test_the_llama_cpp_snippet_runs_as_it_stands(report, tiny_model, tmp_path):
    path, _ = convert(tiny_model.folder, "tiny", tmp_path)
    path.rename(tmp_path / "model.gguf")
    text = card(_with(report, check={"max_new_tokens": 3}), _subject(report, "gguf/q8_0"), Background("Be brief."))
    # in a process of its own: llama_cpp keeps files open until its interpreter ends
    command = [sys.executable, "-c", _code(text, "python")]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout


def test_cards_are_written_where_this_run_made_a_model_and_nowhere_else(report, tmp_path):
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    for folder in ("merged", "export/gguf-q8_0", "export/gptq-4bit", "adapter", "data"):
        (tmp_path / folder).mkdir(parents=True)
        (tmp_path / folder / MANIFEST).write_text("{}")
    (tmp_path / "export/gguf-f16").mkdir()  # no stage made it: somebody's own
    (tmp_path / "export/gguf-f16/README.md").write_text("mine")
    (elsewhere / MANIFEST).write_text("{}")
    moved = {"base": str(elsewhere), "gguf/q4_k_m": "../elsewhere"}
    subjects = [s.model_copy(update={"path": moved.get(s.name, s.path)}) for s in report.subjects]
    row = Conversation(messages=(Message(role="system", content="Be brief."), Message(role="assistant", content="?")))
    (tmp_path / "data/train.jsonl").write_text(row.model_dump_json() + "\n", encoding="utf-8")
    written = write_cards(report.model_copy(update={"subjects": tuple(subjects)}), tmp_path)
    assert [path.relative_to(tmp_path).as_posix() for path in written] == [
        "merged/README.md",
        "export/gguf-q8_0/README.md",
        "export/gptq-4bit/README.md",
    ]
    assert (tmp_path / "export/gguf-f16/README.md").read_text() == "mine"
    assert sorted(path.name for path in elsewhere.iterdir()) == [MANIFEST]
    assert "-sys 'Be brief.'" in written[1].read_text(encoding="utf-8")


def test_a_card_is_no_part_of_the_model_it_tells_of(tiny_model, tmp_path):
    before = sha256_of_folder(tiny_model.folder)
    for index in range(2):
        (tmp_path / str(index)).mkdir()
        convert(tiny_model.folder, "tiny", tmp_path / str(index))
        (tiny_model.folder / "README.md").write_text("---\nlicense: mit\nbase_model: a/b\n---\n# A card\n")
    try:
        assert sha256_of_folder(tiny_model.folder) == before
        # llama.cpp's converter would copy its front matter into the file
        first, second = (next((tmp_path / str(index)).glob("*.gguf")).read_bytes() for index in range(2))
        assert first == second
        out = tmp_path / "gptq"
        out.mkdir()
        _copy_other_files(tiny_model.folder, out)
        assert "tokenizer.json" in [path.name for path in out.iterdir()]
        assert not (out / "README.md").exists()
    finally:
        (tiny_model.folder / "README.md").unlink()


def test_a_card_says_how_the_model_was_trained(report):
    adapter = card(report, _subject(report, "merged"), Background())
    assert "with the fine-tuned adapter merged into its weights" in adapter
    assert "- trained by: LoRA: an adapter, rank 16" in adapter
    whole, _ = run_report(EXPECTED, whole=True)
    for name in ("merged", "gguf/q4_k_m"):
        text = card(whole, _subject(whole, name), Background())
        assert "- trained by: full fine-tuning: all weights were trained, in float32; learning rate 1.0×10⁻⁵" in text
        assert "adapter" not in text
        assert _subject(whole, "trained").sha256 in text.partition("## Made from\n")[2]
    merged = card(whole, _subject(whole, "merged"), Background())
    assert "The base model after full fine-tuning" in merged
    assert "The change is from the model as it was trained." in merged
    # the step from trained to merged is in its figures
    assert any(row[-2].strip() == "pass" for row in _rows(merged, "Measured, before and after"))


def test_a_card_says_to_what_thoughts_were_held(report):
    budgeted = _with(report, check={"thinking_budget": {"max_thinking_tokens": 512, "waits": 2}})
    said = card(budgeted, budgeted.subjects[0], Background()).partition("## Not measured\n")[2]
    assert "greedy, with thoughts of at most 512 tokens, made to go on up to 2 times where they ended early" in said
