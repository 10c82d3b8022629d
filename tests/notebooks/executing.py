"""Runs a notebook from top to bottom, as a reader would, with parameters of the caller's: the papermill way."""

import copy
from pathlib import Path

import nbformat
from nbclient import NotebookClient

FOLDER = Path(__file__).parents[2] / "notebooks"
NOTEBOOKS = sorted(FOLDER.glob("*.ipynb"))


def read(path):
    """The notebook as it is stored. Raises where it is not a valid one."""
    notebook = nbformat.read(path, as_version=4)
    nbformat.validate(notebook)
    return notebook


def execute(path, work, **parameters):
    """The executed notebook, run in `work`; a cell behind the one tagged "parameters" sets those that are given.

    Raises CellExecutionError, with what the cell printed, at the first cell that raises.
    """
    notebook = copy.deepcopy(read(path))
    tagged = [i for i, cell in enumerate(notebook.cells) if "parameters" in cell.metadata.get("tags", [])]
    (place,) = tagged
    assert all(f"\n{name} = " in f"\n{notebook.cells[place].source}" for name in parameters), "a parameter of its own"
    source = "\n".join(f"{name} = {value!r}" for name, value in parameters.items())
    notebook.cells.insert(place + 1, nbformat.v4.new_code_cell(source))
    client = NotebookClient(notebook, timeout=900, kernel_name="python3", resources={"metadata": {"path": str(work)}})
    return client.execute()


def printed(cell):
    """What a cell wrote, in order."""
    return "".join(output.text for output in cell.outputs if output.output_type == "stream")


def cell_with(notebook, text):
    """The only code cell whose source holds `text`."""
    (found,) = (cell for cell in notebook.cells if cell.cell_type == "code" and text in cell.source)
    return found
