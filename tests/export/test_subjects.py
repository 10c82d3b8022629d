"""What lies at a path, and what is said where no model does."""

import pytest

from export.errors import ModelError
from export.licence import licence_of
from export.subjects import shown_path, subject_at


def _files(folder, *names):
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).touch()


@pytest.mark.parametrize(
    ("files", "said"),
    [
        ((), ["holds neither config.json nor a .gguf file", "expected a .gguf file, a model folder (config.json)"]),
        (("a.gguf", "b.gguf"), ["holds 2 .gguf files", "Name one of them", "run/a.gguf, ", "run/b.gguf."]),
        (
            ("merged/config.json", "adapter/adapter_config.json", "export/gguf-q8_0/m.gguf", "export/gptq/config.json"),
            ["no config.json of its own", "run/adapter, ", "run/export/gguf-q8_0/m.gguf, ", "run/merged."],
        ),
        (tuple(f"model-{number}/config.json" for number in range(12)), ["and 4 more."]),
    ],
    ids=["nothing", "two files", "a run", "many"],
)
def test_a_folder_that_is_no_model_names_what_it_holds(tmp_path, files, said):
    (tmp_path / "run").mkdir()
    _files(tmp_path / "run", *files)
    with pytest.raises(ModelError) as caught:
        subject_at(tmp_path / "run")
    for words in said:
        assert words in str(caught.value)


def test_a_file_of_another_kind_is_no_folder(tmp_path):
    _files(tmp_path, "model.bin")
    with pytest.raises(ModelError, match=r"is a file of another kind: expected a \.gguf file"):
        subject_at(tmp_path / "model.bin")


def test_a_path_is_shown_as_it_is_found_from_the_report(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    _files(tmp_path, "report/model/config.json", "elsewhere/config.json")
    assert shown_path(tmp_path / "report/model", tmp_path / "report") == "model"
    # given relative to the working directory, it would be looked for below the report
    assert shown_path(tmp_path.relative_to(tmp_path) / "elsewhere", tmp_path / "report") == str(tmp_path / "elsewhere")


def test_the_licence_of_a_file_is_what_the_model_card_beside_it_states(tmp_path):
    _files(tmp_path, "model.gguf")
    (tmp_path / "LICENSE").write_text("A licence of a project\n", encoding="utf-8")
    assert licence_of(tmp_path / "model.gguf") is None
    (tmp_path / "README.md").write_text("---\nlicense: apache-2.0\n---\n", encoding="utf-8")
    assert licence_of(tmp_path / "model.gguf") == "apache-2.0"
