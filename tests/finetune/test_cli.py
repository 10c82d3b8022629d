"""What the command says to someone who got something wrong: the remedy, exit status 2, no traceback, nothing left."""

import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from export import chat
from finetune import cli

ROOT = Path(__file__).parents[2]
RECIPE = """\
name: test
model: {{name: {model}, dtype: float32}}
data: {{path: rows.jsonl, template: question_answer, max_tokens: 128}}
train: {{max_steps: {steps}, batch_size: 2}}
"""


@pytest.fixture
def work(model, start_in_folder):
    """A folder with a recipe and rows that work, to be broken by a test."""
    rows = [{"question": f"What is {n}?", "answer": f"It is {n}."} for n in range(40)]
    return start_in_folder(RECIPE.format(model=model, steps=2), rows)


def _said(capsys, *arguments, status=2):
    assert cli.main(arguments) == status
    said = capsys.readouterr().err
    assert "Traceback" not in said
    return said


def _final_names(folder: Path) -> set[str]:
    return {path.name for path in folder.glob("runs/test/*") if path.is_dir() and any(path.iterdir())}


def test_a_misspelt_key(work, capsys):
    said = _said(capsys, "validate", "recipe.yaml", "--set", "train.max_step=3")
    assert "train.max_step: there is no such key. Did you mean 'max_steps'?" in said


def test_a_wrong_type(work, capsys):
    said = _said(capsys, "run", "recipe.yaml", "--set", "train.batch_size=many")
    assert "train.batch_size" in said
    assert "'many'" in said


def test_a_missing_recipe_and_a_misspelt_shipped_one(work, capsys):
    assert "there is no file" in _said(capsys, "run", "nowhere.yaml")
    assert "Did you mean 'quickstart'?" in _said(capsys, "run", "quickstrat")


def test_a_missing_data_file(work, capsys):
    (work / "rows.jsonl").rename(work / "row.jsonl")
    said = _said(capsys, "run", "recipe.yaml", "--until", "data")
    assert "rows.jsonl" in said
    assert not _final_names(work)


def test_a_row_without_the_templates_field(work, capsys):
    with (work / "rows.jsonl").open("a") as file:
        file.write(json.dumps({"question": "And?", "anwser": "So."}) + "\n")
    said = _said(capsys, "data", "recipe.yaml")
    for expected in ("rows.jsonl", "41", "'answer'", "anwser"):
        assert expected in said
    assert not _final_names(work)


def test_an_empty_split(work, capsys):
    (work / "rows.jsonl").write_text('{"question": "a", "answer": "b"}\n')
    assert "split" in _said(capsys, "data", "recipe.yaml")
    assert not _final_names(work)


def test_an_unknown_model(work, capsys):
    said = _said(capsys, "data", "recipe.yaml", "--set", "model.name=./no-such-model")
    assert "no-such-model" in said


def test_an_unknown_model_on_a_hub_when_offline(work, capsys):
    said = _said(capsys, "data", "recipe.yaml", "--set", "model.name=nobody/nothing", "--set", "model.offline=true")
    assert "nobody/nothing" in said


def test_tied_embeddings_cannot_be_targets(work, capsys):
    said = _said(capsys, "train", "recipe.yaml", "--set", "train.lora.targets=[q_proj, lm_head]")
    assert "tied" in said
    assert not _final_names(work)


def test_a_target_that_is_no_layer(work, capsys):
    said = _said(capsys, "train", "recipe.yaml", "--set", "train.lora.targets=[qproj]")
    assert "no layer is called 'qproj'. Did you mean 'q_proj'?" in said
    assert "adapter" not in _final_names(work)


def test_a_folders_own_code_is_never_run(work, model, capsys, monkeypatch):
    trap = work / "trap"
    shutil.copytree(model, trap)
    config = json.loads((trap / "config.json").read_text(encoding="utf-8"))
    config |= {"model_type": "trap", "auto_map": {"AutoConfig": "trap.C", "AutoModelForCausalLM": "trap.M"}}
    (trap / "config.json").write_text(json.dumps(config), encoding="utf-8")
    (trap / "trap.py").write_text(f"open({str(work / 'sprung')!r}, 'w').close()\n")
    monkeypatch.setattr("builtins.input", lambda *_: "y")
    _said(capsys, "train", "recipe.yaml", "--set", f"model.name={trap}")
    assert not (work / "sprung").exists()


def test_a_loss_that_is_not_finite_stops_training_and_keeps_nothing(work, capsys):
    arguments = ("--set", "train.learning_rate=1e30", "--set", "train.max_steps=8", "--set", "train.warmup_share=0")
    said = _said(capsys, "train", "recipe.yaml", *arguments)
    assert "train.learning_rate" in said
    assert _final_names(work) == {"data"}


LIMITED = """\
import resource, signal, sys
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)  # a write beyond the limit then fails with EFBIG, as on a full disk
resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv[1]), resource.RLIM_INFINITY))
from finetune.cli import main
sys.exit(main(sys.argv[2:]))
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="needs a limit on the size of files")
def test_a_full_disk_while_merged_weights_are_written(work, model):
    weights = (model / "model.safetensors").stat().st_size
    # checkpoints of a small adapter are far below half of the weights, and so are the rows
    arguments = ["merge", "recipe.yaml", "--set", "train.lora.rank=1"]
    done = subprocess.run(
        [sys.executable, "-c", LIMITED, str(weights // 2), *arguments],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        check=False,
    )
    assert done.returncode == 2, done.stderr
    assert "disk is full" in done.stderr
    assert "--out" in done.stderr
    assert "Traceback" not in done.stderr
    assert _final_names(work) == {"data", "adapter"}
    assert not [path for path in (work / "runs/test").iterdir() if "partial" in path.name or path.name == ".lock"]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["run", "recipe.yaml", "--out", "rows.jsonl"], "rows.jsonl is a file where a folder is expected"),
        (["data", "recipe.yaml", "--out", "rows.jsonl/x"], "rows.jsonl is a file where a folder is expected"),
        (["recipes", "quickstart", "--to", "nowhere/x.yaml"], "there is no folder nowhere"),
        (["validate", "recipe.yaml/x"], "cannot be read"),
        (["data", "recipe.yaml", "--out", "x" * 300], "too long"),
    ],
)
def test_a_path_that_cannot_be_is_a_message(work, capsys, arguments, said):
    assert said in _said(capsys, *arguments)


def test_a_folder_that_cannot_be_written(work, capsys, monkeypatch):
    def denied(path, *_, **__):
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(Path, "mkdir", denied)
    assert "out cannot be written: permission denied" in _said(capsys, "data", "recipe.yaml", "--out", "out")


def test_a_library_that_wraps_the_systems_refusal(work, capsys, monkeypatch):
    def wrapped(*_, **__):
        try:
            open("nowhere/x")  # noqa: PTH123, SIM115
        except OSError as error:
            raise ValueError("could not load") from error

    monkeypatch.setattr("finetune.preflight.inspect", wrapped)
    assert "there is no folder nowhere" in _said(capsys, "validate", "recipe.yaml")


def test_a_bug_keeps_its_traceback(work, monkeypatch):
    def broken(*_, **__):
        raise KeyError("x")

    monkeypatch.setattr("finetune.preflight.inspect", broken)
    with pytest.raises(KeyError):
        cli.main(["validate", "recipe.yaml"])


@pytest.mark.parametrize("number", ["0", "-1", "many"])
def test_an_answer_of_no_tokens_cannot_be_asked_for(capsys, number):
    with pytest.raises(SystemExit):
        cli.main(["chat", ".", "--max-new-tokens", number])
    assert "expected a whole number from 1 up" in capsys.readouterr().err


_LOADED = """
import contextlib, io, sys
from finetune import cli
with contextlib.suppress(SystemExit), contextlib.redirect_stdout(io.StringIO()):
    cli.main(sys.argv[1:])
print(*sorted({name.partition(".")[0] for name in sys.modules}))
"""
_SLOW_TO_IMPORT = {
    *("torch", "transformers", "llama_cpp", "datasets", "peft", "trl", "optimum", "gptqmodel", "bitsandbytes"),
    *("auto_round", "accelerate", "safetensors", "gguf", "conversion", "numpy", "scipy", "pandas", "pyarrow"),
}


@pytest.mark.parametrize("arguments", [["--help"], ["validate", "recipes/quickstart.yaml"]], ids=["help", "validate"])
def test_what_needs_no_model_imports_nothing_that_takes_long(arguments):
    done = subprocess.run(
        [sys.executable, "-c", _LOADED, *arguments], cwd=ROOT, capture_output=True, text=True, check=True
    )
    loaded = set(done.stdout.split())
    assert "finetune" in loaded
    assert loaded & _SLOW_TO_IMPORT == set()


@pytest.mark.skipif(not hasattr(os, "setsid"), reason="needs POSIX signals")
def test_control_c_in_training_keeps_finished_stages_and_nothing_half_written(work, model):
    (work / "recipe.yaml").write_text(RECIPE.format(model=model, steps=500), encoding="utf-8")
    process = subprocess.Popen(
        [sys.executable, "-m", "finetune", "run", "recipe.yaml"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        # a shell starts background jobs with the signal ignored, and children inherit that
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    )
    assert process.stderr is not None
    # a line of a training step comes from the very loop that is to be stopped
    seen = next((line for line in process.stderr if line.startswith("  step ")), None)
    assert seen is not None, process.wait(60)
    process.send_signal(signal.SIGINT)
    _, said = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "stopped" in said
    assert "Traceback" not in said
    assert {path.name for path in (work / "runs/test").iterdir()} <= {"data", "recipe.yaml", ".checkpoints"}


def test_copying_a_shipped_recipe_never_overwrites(work, capsys):
    assert cli.main(["recipes", "quickstart"]) == 0
    assert (work / "quickstart.yaml").read_text(encoding="utf-8").startswith("# ")
    assert "exists already" in _said(capsys, "recipes", "quickstart")


@pytest.mark.parametrize("verb", ["validate", "data", "run"])
def test_a_shipped_recipe_whose_rows_are_the_users_says_to_copy_it(work, capsys, verb):
    said = _said(capsys, verb, "question_answer")
    assert "Copy it first: fieldtune recipes question_answer" in said
    assert "--set data.path=FILE" in said
    assert not _final_names(work)
    # rows that were named are not there: that is another mistake
    assert "Copy it first" not in _said(capsys, verb, "question_answer", "--set", "data.path=mine.csv")


def test_a_copied_recipe_says_what_to_do_next(work, capsys):
    assert cli.main(["recipes", "question_answer"]) == 0
    path, next_step = capsys.readouterr().out.splitlines()
    assert path == "question_answer.yaml"
    assert next_step.startswith(f"next: put your rows at {work / 'questions.csv'}")
    assert next_step.endswith("then fieldtune validate question_answer.yaml")
    assert cli.main(["recipes", "quickstart"]) == 0
    assert "next: fieldtune validate quickstart.yaml, then fieldtune run" in capsys.readouterr().out


def test_chat_says_what_it_takes(capsys):
    with pytest.raises(SystemExit):
        cli.main(["chat", "--help"])
    said = " ".join(capsys.readouterr().out.split())
    assert "PATH a .gguf file, a folder that holds one, a model or adapter folder" in said
    assert "Loads a model into the engine" in said


def test_nothing_to_talk_to(work, capsys):
    assert "expected a .gguf file" in _said(capsys, "chat", str(work))


def test_data_then_train_then_merge_skip_what_is_done(work, capsys):
    assert cli.main(["merge", "recipe.yaml"]) == 0
    first = capsys.readouterr().out
    assert cli.main(["merge", "recipe.yaml"]) == 0
    second = capsys.readouterr().out
    assert "train: running" in first
    assert "data: rows: 40 read, 40 kept (dropped: none); held out 8, validation 2, train 30" in first
    assert not (work / "runs/test/adapter/README.md").exists()
    for stage in ("data", "train", "merge"):
        assert f"{stage}: already done" in second
    assert cli.main(["merge", "recipe.yaml", "--set", "train.lora.rank=4"]) == 0
    third = capsys.readouterr().out
    assert "data: already done" in third
    assert "train.lora.rank 16 -> 4" in third
    assert "merge: running again, because of adapter" in third

    # what was trained on other rows is not replaced
    (work / "other").mkdir()
    lines = (work / "rows.jsonl").read_text(encoding="utf-8").splitlines(keepends=True)
    (work / "other/rows.jsonl").write_text("".join(lines[:-1]), encoding="utf-8")
    other = ["--set", "train.lora.rank=4", "--set", "data.path=other/rows.jsonl"]
    assert cli.main(["merge", "recipe.yaml", *other]) == 2
    assert "holds a run of other rows, which would be replaced" in capsys.readouterr().err
    assert (
        cli.main(["merge", "recipe.yaml", "--set", "data.path=generated:cleaning_robot", "--set", "data.rows=40"]) == 2
    )
    assert "holds a run of other rows, which would be replaced" in capsys.readouterr().err
    (work / "other/rows.jsonl").write_text("".join(lines), encoding="utf-8")
    assert cli.main(["merge", "recipe.yaml", *other]) == 0
    assert "train: already done" in capsys.readouterr().out
    assert cli.main(["merge", "recipe.yaml", "--set", "train.lora.rank=4"]) == 0
    assert "train: already done" in capsys.readouterr().out


def test_training_sees_the_turn_end_and_nothing_of_the_prompt(work, model):
    from export.chat_tokenizer import load_tokenizer
    from finetune.methods._supervised import IGNORED, dataset

    tokenizer = load_tokenizer(model)
    messages = (chat.Message(role="user", content="Hi?"), chat.Message(role="assistant", content="Yes."))
    (row,) = dataset(tokenizer, [chat.Conversation(messages=messages)], thinking=False)
    learned = [token for token in row["labels"] if token != IGNORED]
    assert tokenizer.decode(learned) == "Yes.<|im_end|>"
    assert tokenizer.pad_token_id not in learned
