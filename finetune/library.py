"""The recipes that ship with the package: their names, what each is for, and copying one to start from."""

from collections.abc import Iterator
from pathlib import Path

from export.artifacts import write_atomically
from export.errors import RecipeError
from export.plugins import nearest
from finetune.data import DataSettings
from finetune.recipe import load
from finetune.shipped import folder


def shipped_recipes() -> Iterator[tuple[str, str]]:
    """Each shipped recipe's name and the first line of the comment it opens with."""
    for path in sorted(folder("recipes").glob("*.yaml")):
        first = path.read_text(encoding="utf-8").splitlines()[0]
        yield path.stem, first.removeprefix("#").strip()


def shipped_recipe(name: str) -> Path:
    """The file of a shipped recipe. Raises RecipeError, with the nearest name, when there is none."""
    path = folder("recipes") / f"{name}.yaml"
    if not path.is_file():
        names = tuple(known for known, _ in shipped_recipes())
        raise RecipeError(f"there is no shipped recipe {name!r}. {nearest(name, names)}")
    return path


def refuse_placeholder_rows(path: Path, rows: DataSettings) -> None:
    """Raises RecipeError for a shipped recipe, used where it lies, whose rows are the user's to bring."""
    if path.parent == folder("recipes") and _missing(rows) and Path(rows.path).parent == path.parent.resolve():
        raise RecipeError(
            f"the shipped recipe {path.stem!r} has no rows of its own: it expects {Path(rows.path).name} beside it. "
            f"Copy it first: fieldtune recipes {path.stem}, and put your rows beside the copy; or name them with --set "
            "data.path=FILE."
        )


def next_steps(copied: Path) -> str:
    """What to do with a recipe that was just copied."""
    rows, validate = load(copied).data, f"fieldtune validate {copied}"
    if _missing(rows):
        return f"put your rows at {rows.path}, or set data.path in {copied} to where they are; then {validate}"
    return f"{validate}, then fieldtune run {copied}"


def _missing(rows: DataSettings) -> bool:
    return rows.origin == "local" and not Path(rows.path).exists()


def copy_recipe(name: str, to: Path | None) -> Path:
    """Copies a shipped recipe to `to`, or into the working directory. Never overwrites a file.

    Raises OSError where none can be written.
    """
    target = to or Path(f"{name}.yaml")
    source = shipped_recipe(name)
    if target.exists():
        raise RecipeError(f"{target} exists already. Choose another place with --to.")
    write_atomically(target, source.read_text(encoding="utf-8"))
    return target
