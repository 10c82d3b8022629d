"""The recipes that ship with the package: their names, what each is for, and copying one to start from."""

from collections.abc import Iterator
from pathlib import Path

from export.artifacts import write_atomically
from export.errors import RecipeError
from export.plugins import nearest
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
