"""The notebooks from top to bottom, offline on a processor, in a short form: no cell raises, and verdicts are shown."""

import json

import pytest
from nbclient.exceptions import CellExecutionError

from tests.notebooks.executing import FOLDER, cell_with, execute, printed

SHORT = ["check.rows=20", "check.max_new_tokens=24"]
pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def quickstart(tmp_path_factory):
    work = tmp_path_factory.mktemp("quickstart")
    settings = ["export.gptq=null", "data.rows=700", "train.max_steps=20", *SHORT]
    return execute(FOLDER / "01_quickstart.ipynb", work, SETTINGS=settings), work / "runs/quickstart"


@pytest.fixture(scope="module")
def own_data(tmp_path_factory):
    """With a table of the user's: German headings, and a number beside."""
    work = tmp_path_factory.mktemp("own")
    rows = [f"{n},Wie schwer ist Paket {n} von {n % 7}?,{n % 13} Kilogramm." for n in range(60)]
    (work / "pakete.csv").write_text("\n".join(["nr,frage,antwort", *rows]) + "\n", encoding="utf-8")
    settings = ["train.max_steps=8", "data.contract.overlap_near_share=null", "data.near_copies=counted", *SHORT]
    return execute(
        FOLDER / "02_your_own_data.ipynb", work, ROWS="pakete.csv", SETTINGS=settings
    ), work / "runs/my_model"


def verdicts_of(run_folder):
    report = json.loads((run_folder / "report.json").read_text(encoding="utf-8"))
    return report["verdict"], {s["name"]: s["verdict"] for s in report["subjects"] if s["name"].startswith("gguf")}


@pytest.fixture(params=["quickstart", "own_data"])
def executed(request):
    return request.getfixturevalue(request.param)


def test_the_verdict_cell_says_what_the_report_says(executed):
    notebook, run_folder = executed
    verdict, files = verdicts_of(run_folder)
    shown = printed(cell_with(notebook, "shipped_files(RUN)")).splitlines()
    assert shown[-1] == f"verdict of the run: {verdict}"
    assert {line.split()[0]: line.split("MB")[1].split("runs/")[0].strip() for line in shown[:-1]} == files


def test_the_gate_cell_ends_with_the_exit_status_of_the_verdict(executed):
    notebook, run_folder = executed
    verdict, _ = verdicts_of(run_folder)
    status = {"pass": "0: done", "fail": "1: fail", "cannot tell": "3: cannot tell"}[verdict]
    assert printed(cell_with(notebook, 'fieldtune("run"')).splitlines()[-1].startswith(f"exit status {status}")


def test_both_pages_are_shown(executed):
    notebook, run_folder = executed
    for name in ("data/report.html", "report.html"):
        (output,) = cell_with(notebook, f'page(RUN / "{name}")').outputs
        assert "<svg" in (run_folder / name).read_text(encoding="utf-8")
        assert "&lt;svg" in output.data["text/html"]


def test_progress_and_tokens_are_shown(executed):
    notebook, _ = executed
    assert "loss" in printed(cell_with(notebook, 'fieldtune("train"'))
    preview = printed(cell_with(notebook, '"--preview"'))
    assert "carries loss" in preview
    assert "⟦" in preview


def test_the_model_answers(executed):
    notebook, _ = executed
    said = printed(cell_with(notebook, 'fieldtune("chat"')).split("\nEND\n")[1]
    assert any(line.removeprefix("> ").strip() for line in said.splitlines() if line.startswith("> "))


def test_the_users_columns_are_guessed_and_the_starter_is_taken(own_data):
    notebook, run_folder = own_data
    assert "{'prompt': '{frage}', 'answer': '{antwort}'}" in printed(cell_with(notebook, "guess_columns"))
    assert "starter" in printed(cell_with(notebook, "starting_point()"))
    path, verdict = run_folder / "export/gguf-q4_k_m/model-q4_k_m.gguf", verdicts_of(run_folder)[1]["gguf/q4_k_m"]
    shown = printed(cell_with(notebook, "google.colab"))
    assert shown.startswith(f"gguf/q4_k_m: {verdict}, ")
    assert shown.splitlines()[1] == str(path.resolve())


def test_rows_that_break_the_contract_are_said_to_and_nothing_is_trained_on_them(tmp_path):
    """The notebook stops where it would list files, of which there are none."""
    rows = [f"What weighs parcel {n}?,It weighs {n * n % 31} kilograms." for n in range(30)]
    table = ["question,answer", *rows, *rows[:1] * 30]
    (tmp_path / "rows.csv").write_text("\n".join(table) + "\n", encoding="utf-8")
    with pytest.raises(CellExecutionError) as error:
        execute(FOLDER / "02_your_own_data.ipynb", tmp_path, ROWS="rows.csv")
    assert "files = shipped_files(RUN)" in str(error.value)
    assert "has not come so far" in str(error.value)
    clauses = json.loads((tmp_path / "runs/my_model/data/report.json").read_text(encoding="utf-8"))["clauses"]
    assert [clause["name"] for clause in clauses if clause["ok"] is False] == ["duplicate_share"]
    assert not (tmp_path / "runs/my_model/adapter").exists()
