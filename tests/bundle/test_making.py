"""A bundle of a small run: what is in it, that every part agrees with its source, and which file of a run ships."""

import hashlib
import json
import shutil
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest

from export.artifacts import sha256_of_folder
from export.bundle import damaged, making, unpack
from export.bundle.packing import pack
from export.bundle.prompt import turn_texts
from export.bundle.texts import modelfile
from export.chat import Message, render
from export.errors import ExportError
from finetune import cli
from finetune.bundling import choose_file
from tests.bundle.making import read


def test_every_file_is_there_and_is_what_the_sums_say(bundle):
    listed = dict(line.split("  ")[::-1] for line in (bundle / "SHA256SUMS").read_text().splitlines())
    there = {path.name for path in bundle.iterdir()} - {"SHA256SUMS"}
    assert set(listed) == there
    assert {name: hashlib.sha256((bundle / name).read_bytes()).hexdigest() for name in there} == listed
    assert there == {
        *("model-q8_0.gguf", "bundle.json", "client.py", "schema.json", "grammar.gbnf", "grammar_check.json"),
        *("known_values.json", "prefix.state", "prefix.state.sha256", "serve.sh", "Modelfile", "INSTALL.md"),
        *("certificate.json", "certificate.md", "rows.jsonl"),
    }


def test_the_archive_holds_the_folder_and_is_the_same_whenever_it_is_packed(bundle, tmp_path):
    archive = bundle.with_name(f"{bundle.name}.tar.gz")
    unpacked = unpack(archive, tmp_path)
    assert {p.name: p.read_bytes() for p in unpacked.iterdir()} == {p.name: p.read_bytes() for p in bundle.iterdir()}
    assert damaged(unpacked) == []
    for path in unpacked.iterdir():
        path.touch()
    pack(unpacked, tmp_path / "again.tar.gz", bundle.name)
    assert (tmp_path / "again.tar.gz").read_bytes() == archive.read_bytes()


def test_the_archive_is_the_same_whatever_the_modes_are(bundle, tmp_path):
    archives = []
    for mode in (0o600, 0o644):
        copy = Path(shutil.copytree(bundle, tmp_path / f"{mode}" / bundle.name))
        for path in copy.iterdir():
            path.chmod(mode)
        pack(copy, copy.with_suffix(".tar.gz"), bundle.name)
        archives.append(copy.with_suffix(".tar.gz").read_bytes())
    assert archives[0] == archives[1]


def test_what_stands_where_a_bundle_would_go_is_not_removed(run, capsys):
    """As with --out runs --for the run's own name."""
    before = sorted(path.name for path in run.iterdir())
    asked = [
        "bundle",
        str(run),
        "--file",
        "gguf/q8_0",
        "--accept-unproven",
        "--for",
        run.name,
        "--out",
        str(run.parent),
    ]
    assert cli.main(asked) == 2
    assert "is there already, and is no bundle" in capsys.readouterr().err
    assert sorted(path.name for path in run.iterdir()) == before


def _bundle_again(run, out, *words):
    asked = ["bundle", str(run), "--file", "gguf/q8_0", "--accept-unproven", "--for", "robot", "--out", str(out)]
    return cli.main([*asked, *words])


def test_a_file_of_the_users_is_not_replaced_by_the_archive(run, bundle, tmp_path, capsys):
    (tmp_path / "robot.tar.gz").write_text("my backup")
    assert _bundle_again(run, tmp_path) == 2
    assert "no bundle's archive" in capsys.readouterr().err
    assert (tmp_path / "robot.tar.gz").read_text() == "my backup"
    assert [path.name for path in tmp_path.iterdir()] == ["robot.tar.gz"]


def test_an_archive_of_another_project_with_sums_of_its_own_is_not_replaced(run, bundle, tmp_path, capsys):
    (tmp_path / "SHA256SUMS").write_text("")
    with tarfile.open(tmp_path / "robot.tar.gz", "w:gz") as tar:
        tar.add(tmp_path / "SHA256SUMS", "project/SHA256SUMS")
    assert _bundle_again(run, tmp_path) == 2
    assert "no bundle's archive" in capsys.readouterr().err


def test_a_file_of_a_bundle_that_was_edited_is_not_lost(run, bundle, tmp_path, capsys):
    earlier = Path(shutil.copytree(bundle, tmp_path / "robot"))
    (earlier / "Modelfile").write_text("FROM mine")
    assert _bundle_again(run, tmp_path) == 2
    assert "added or changed, which would be lost: Modelfile" in capsys.readouterr().err


def test_what_was_put_into_a_bundle_is_not_removed_with_it(run, bundle, tmp_path, capsys):
    earlier = Path(shutil.copytree(bundle, tmp_path / "robot"))
    (earlier / ".venv").mkdir()
    assert _bundle_again(run, tmp_path) == 2
    assert ".venv" in capsys.readouterr().err
    assert (earlier / ".venv").is_dir()


def test_an_earlier_bundle_is_replaced_and_only_by_a_whole_one(run, bundle, tmp_path, monkeypatch):
    earlier = Path(shutil.copytree(bundle, tmp_path / "robot"))
    pack(earlier, tmp_path / "robot.tar.gz", "robot")
    before = sha256_of_folder(earlier)

    def full(*_arguments):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(making, "pack", full)
    assert _bundle_again(run, tmp_path) == 2
    assert sha256_of_folder(earlier) == before
    assert sorted(path.name for path in tmp_path.iterdir()) == ["robot", "robot.tar.gz"]
    monkeypatch.undo()
    renamed = Path.rename

    def broken(path, target):
        if path.name == ".robot.partial":
            raise KeyboardInterrupt
        return renamed(path, target)

    monkeypatch.setattr(Path, "rename", broken)
    assert _bundle_again(run, tmp_path) == 130
    assert sha256_of_folder(earlier) == before
    assert sorted(path.name for path in tmp_path.iterdir()) == ["robot", "robot.tar.gz"]
    monkeypatch.undo()
    assert _bundle_again(run, tmp_path) == 0
    assert damaged(earlier) == []
    assert sorted(path.name for path in tmp_path.iterdir()) == ["robot", "robot.tar.gz"]


def test_a_schema_that_right_answers_break_is_refused_whatever_the_grammar_holds(run, bundle, tmp_path, capsys):
    schema = json.loads(json.dumps(read(run / "report.json")["recipe"]["check"]["measures"]["fields"]["json_schema"]))
    schema["properties"]["say"]["not"] = {"pattern": "[a-z]"}  # no keyword of the grammar's
    (tmp_path / "schema.json").write_text(json.dumps(schema))
    assert _bundle_again(run, tmp_path / "out", "--schema", str(tmp_path / "schema.json")) == 2
    assert "right answers break the schema" in capsys.readouterr().err


def test_a_reference_that_leads_nowhere_is_refused_wherever_it_stands(run, bundle, tmp_path, capsys):
    schema = {"type": "object", "properties": {"say": {"not": {"$ref": "#/$defs/nope"}}}}
    (tmp_path / "schema.json").write_text(json.dumps(schema))
    assert _bundle_again(run, tmp_path / "out", "--schema", str(tmp_path / "schema.json")) == 2
    assert "'#/$defs/nope', which is not in it" in capsys.readouterr().err


def test_the_certificate_tells_of_another_schema_than_the_one_that_was_measured(run, bundle, tmp_path):
    assert read(bundle / "certificate.json")["schema"]["shipped_sha256"] is not None
    assert "another schema" not in (bundle / "certificate.md").read_text("utf-8")
    (tmp_path / "schema.json").write_text('{"type": "object"}')
    assert _bundle_again(run, tmp_path / "out", "--schema", str(tmp_path / "schema.json")) == 0
    assert "another schema than the one that ships" in (tmp_path / "out/robot/certificate.md").read_text("utf-8")


def test_of_a_folder_the_bundle_is_copied_and_nothing_beside_it(bundle, tmp_path, monkeypatch):
    used = Path(shutil.copytree(bundle, tmp_path / "used"))
    (used / ".venv").mkdir()
    (used / "commands.txt").touch()
    (used / "prefix.state").write_bytes((used / "prefix.state").read_bytes() + b" ")  # as of another llama.cpp
    model, digest = read(used / "bundle.json"), hashlib.sha256((used / "prefix.state").read_bytes()).hexdigest()
    record = f"{digest}  prefix.state\n{model['model_sha256']}  {model['model']}\n"
    (used / "prefix.state.sha256").write_text(record)
    monkeypatch.chdir(used)
    copy = unpack(Path(), tmp_path / "into")
    assert copy.name == "used"
    assert {path.name for path in bundle.iterdir()} - {path.name for path in copy.iterdir()} == {
        "prefix.state",
        "prefix.state.sha256",
    }
    with pytest.raises(ExportError, match="within the bundle itself"):
        unpack(used, used / "kept")
    assert not (used / "kept").exists()


@pytest.mark.parametrize("sums", ["", "abc\n", "0  client.py\n", None])
def test_sums_that_list_nothing_are_damage(bundle, tmp_path, sums):
    copy = Path(shutil.copytree(bundle, tmp_path / "copy"))
    (copy / "SHA256SUMS").unlink() if sums is None else (copy / "SHA256SUMS").write_text(sums)
    assert damaged(copy) == ["SHA256SUMS"]
    done = subprocess.run(
        [sys.executable, str(copy / "client.py"), "--verify"], capture_output=True, text=True, check=False
    )
    assert (done.returncode, json.loads(done.stdout)) == (1, {"wrong": ["SHA256SUMS"]})


@pytest.mark.parametrize("context", ["64", "0", "-5"])
def test_a_context_that_no_command_fits_in_is_refused(run, capsys, context):
    asked = ["bundle", str(run), "--file", "gguf/q8_0", "--accept-unproven", "--context", context]
    try:
        assert cli.main(asked) == 2
    except SystemExit as ended:
        assert ended.code == 2
    said = capsys.readouterr().err
    assert "the rows need 512 tokens" in said or "--context" in said


def test_the_certificate_says_how_the_file_was_measured_and_how_it_runs(bundle):
    content = read(bundle / "certificate.json")
    assert content["measured_with"] == {"cache_type": "f16", "grammar": False}
    assert content["runs_with"] == {"cache_type": "f16", "grammar": True}
    text = (bundle / "certificate.md").read_text("utf-8")
    assert "answers held to the grammar: what that changes, `fieldtune rehearse` measures" in text


def test_what_is_no_bundle_is_refused(tmp_path):
    (tmp_path / "x.tar.gz").write_bytes(b"no archive")
    with pytest.raises(ExportError, match="cannot be unpacked"):
        unpack(tmp_path / "x.tar.gz", tmp_path / "into")
    with tarfile.open(tmp_path / "y.tar.gz", "w:gz") as tar:
        tar.add(tmp_path / "x.tar.gz", "../x")
    with pytest.raises(ExportError, match="cannot be unpacked"):
        unpack(tmp_path / "y.tar.gz", tmp_path / "into")
    with pytest.raises(ExportError, match="no SHA256SUMS"):
        unpack(tmp_path, tmp_path / "into")


def test_a_file_that_was_changed_is_seen_by_us_and_by_the_client(bundle, tmp_path):
    copy = Path(shutil.copytree(bundle, tmp_path / "copy"))
    schema = (copy / "schema.json").read_bytes()
    (copy / "schema.json").write_bytes(schema.replace(b"sweep", b"sweap", 1))
    (copy / "known_values.json").unlink()
    (copy / "added.py").touch()
    assert set(damaged(copy)) == {"schema.json", "known_values.json", "added.py (not in SHA256SUMS)"}
    done = subprocess.run([sys.executable, copy / "client.py", "--verify"], capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert set(json.loads(done.stdout)["wrong"]) == {"schema.json", "known_values.json"}


# ---- the certificate and the texts


def test_the_certificates_figures_are_the_reports(bundle, run):
    certificate, report = read(bundle / "certificate.json"), read(run / "report.json")
    mine = [m for m in report["measurements"] if m["subject"] in ("base", "merged", "gguf/q8_0")]
    assert certificate["measured"] == mine
    assert certificate["file"] == next(s for s in report["subjects"] if s["name"] == "gguf/q8_0")
    assert certificate["file"]["sha256"] == hashlib.sha256((bundle / "model-q8_0.gguf").read_bytes()).hexdigest()
    assert certificate["report_sha256"] == hashlib.sha256((run / "report.json").read_bytes()).hexdigest()
    assert certificate["comparisons"] == [c for c in report["comparisons"] if c["after"] in ("merged", "gguf/q8_0")]
    assert certificate["versions"] == report["environment"]["packages"]
    limits = {
        c["check"]: c["limit"] for c in report["comparisons"] if c["after"] == "gguf/q8_0" and c["limit"] is not None
    }
    assert {c["check"]: c["limit"] for c in certificate["promised"]} == limits
    assert {"kl_mean", "exact_match"} <= set(limits)
    text = (bundle / "certificate.md").read_text(encoding="utf-8")
    assert f"{certificate['file']['size_bytes']:,} bytes" in text
    assert "took\nit nevertheless" in text  # twelve rows decide nothing, and the bundle was asked for all the same


def test_the_modelfiles_template_writes_what_the_chat_template_writes(bundle, run):
    from export.chat_tokenizer import load_tokenizer

    tokenizer = load_tokenizer(run / "merged")
    text = (bundle / "Modelfile").read_text(encoding="utf-8")
    template = text.split('TEMPLATE """', 1)[1].split('"""', 1)[0]
    system = text.split('SYSTEM """', 1)[1].split('"""', 1)[0]
    row = json.loads((run / "data/held_out.jsonl").read_text("utf-8").splitlines()[0])["messages"]
    assert system == row[0]["content"]
    messages = [Message.model_validate(message) for message in row]
    filled = template.replace("{{ .System }}", system).replace("{{ .Prompt }}", row[1]["content"])
    whole = render(tokenizer, messages, thinking=False, open_turn=False)
    assert filled.replace("{{ .Response }}", row[2]["content"]) == whole.rstrip("\n")
    assert "PARAMETER temperature 0" in text
    assert 'PARAMETER stop "<|im_end|>"' in text
    with pytest.raises(ExportError, match="Modelfile"):
        modelfile("m.gguf", turn_texts(tokenizer, "a"), 'say """', 512)


def test_the_install_notes_commands_are_the_bundles(bundle):
    note = (bundle / "INSTALL.md").read_text(encoding="utf-8")
    assert "{{" not in note and "}}" not in note
    named = [line.split("`")[1] for line in note.splitlines() if line.startswith("| `")]
    assert all((bundle / name).is_file() for name in named)
    subprocess.run(["sh", "-n", str(bundle / "serve.sh")], check=True)


# ---- which file ships


def _report(**verdicts):
    sizes = {"gguf/f16": 300, "gguf/q8_0": 200, "gguf/q4_k_m": 100, "gptq/4bit": 50}
    subjects = [
        {"name": n, "verdict": v, "size_bytes": sizes[n], "engine": "hf" if n.startswith("gptq") else "llama_cpp"}
        for n, v in ((name.replace("__", "/"), verdict) for name, verdict in verdicts.items())
    ]
    return {"subjects": subjects}


def test_the_smallest_file_that_passed_ships():
    report = _report(gguf__f16="pass", gguf__q8_0="pass", gguf__q4_k_m="fail", gptq__4bit="pass")
    assert choose_file(report, None, accept_unproven=False)["name"] == "gguf/q8_0"
    assert choose_file(report, "gguf/f16", accept_unproven=False)["name"] == "gguf/f16"


@pytest.mark.parametrize(
    ("name", "accept", "said"),
    [
        ("gguf/q4_k_m", True, "failed: it loses more than it may"),
        ("gguf/q8_0", False, "do not decide whether it lost more than it may"),
        ("gptq/4bit", True, "the run has no such GGUF file"),
        (None, True, "no GGUF file of this run passed"),
    ],
)
def test_a_file_that_did_not_pass_does_not_ship(name, accept, said):
    report = _report(gguf__q8_0="cannot tell", gguf__q4_k_m="fail", gptq__4bit="pass")
    with pytest.raises(ExportError, match=said):
        choose_file(report, name, accept_unproven=accept)
    assert choose_file(report, "gguf/q8_0", accept_unproven=True)["name"] == "gguf/q8_0"


def test_a_file_that_changed_since_it_was_measured_does_not_ship(bundle, run, tmp_path, capsys):
    copy = Path(shutil.copytree(run, tmp_path / "run", ignore=shutil.ignore_patterns("bundle")))
    with (copy / "export/gguf-q8_0/model-q8_0.gguf").open("ab") as file:
        file.write(b"x")
    asked = ["bundle", str(copy), "--file", "gguf/q8_0", "--accept-unproven"]
    assert cli.main(asked) == 2
    assert "not the file that was measured" in capsys.readouterr().err
    assert not list(copy.glob("bundle/*"))


def test_a_run_without_a_report_and_a_schema_that_the_rows_break(bundle, run, tmp_path, capsys):
    assert cli.main(["bundle", str(tmp_path)]) == 2
    assert "expected the report of a finished run" in capsys.readouterr().err
    (tmp_path / "schema.json").write_text('{"type": "object", "properties": {"say": {"type": "string"}}}')
    asked = ["bundle", str(run), "--file", "gguf/q8_0", "--accept-unproven", "--out", str(tmp_path / "out")]
    assert cli.main([*asked, "--schema", str(tmp_path / "schema.json")]) == 2
    assert "grammar rejects the right answer" in capsys.readouterr().err
    assert list((tmp_path / "out").iterdir()) == []
