"""The notebooks as they are stored: paired with their source, without outputs, explained, and sound Python."""

import ast
import re

import jupytext
import pytest

from tests.notebooks.executing import FOLDER, NOTEBOOKS, read

LONGEST_LINE = 120
each_notebook = pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)


def cells_of(notebook):
    return [(cell.cell_type, cell.source, cell.metadata.get("tags", [])) for cell in notebook.cells]


def test_there_are_notebooks_and_each_has_a_source():
    assert [path.stem for path in NOTEBOOKS] == ["01_quickstart", "02_your_own_data"]
    assert sorted(FOLDER.glob("*.py")) == [path.with_suffix(".py") for path in NOTEBOOKS]


@each_notebook
def test_a_notebook_is_what_its_source_says(path):
    source = path.with_suffix(".py")
    assert cells_of(read(path)) == cells_of(jupytext.read(source)), f"run: jupytext --sync {source.relative_to(FOLDER)}"


@each_notebook
def test_nothing_that_was_executed_is_stored(path):
    code = [cell for cell in read(path).cells if cell.cell_type == "code"]
    assert [cell.outputs for cell in code] == [[]] * len(code)
    assert {cell.execution_count for cell in code} == {None}


@each_notebook
def test_every_code_cell_is_python_and_is_explained_by_the_cell_before_it(path):
    cells = read(path).cells
    for before, cell in zip([None, *cells], cells, strict=False):
        if cell.cell_type != "code":
            continue
        ast.parse(cell.source)
        assert before is not None and before.cell_type == "markdown", cell.source
        words = re.sub(r"^#.*$", "", before.source, flags=re.M).split()
        assert len(words) >= 12, f"hardly explained: {cell.source}"


@each_notebook
def test_no_line_is_too_long_and_no_error_is_hidden(path):
    for cell in read(path).cells:
        assert max(map(len, cell.source.splitlines())) <= LONGEST_LINE
        assert not re.search(r"\bexcept\b|\bsuppress\b|raises-exception", f"{cell.source} {cell.metadata}")


@each_notebook
def test_the_parameters_are_plain_assignments_and_nothing_is_installed_from_a_named_host(path):
    notebook = read(path)
    (parameters,) = (cell for cell in notebook.cells if "parameters" in cell.metadata.get("tags", []))
    for node in ast.parse(parameters.source).body:
        assert isinstance(node, ast.Assign)
        ast.literal_eval(node.value)
    assert not re.search(r"https?:|--(extra-)?index|\bgit\+", "".join(cell.source for cell in notebook.cells))


def test_the_readmes_name_every_notebook():
    for readme in (FOLDER / "README.md", FOLDER.parent / "README.md"):
        text = readme.read_text(encoding="utf-8")
        assert [path.name for path in NOTEBOOKS if path.name not in text] == [], readme
