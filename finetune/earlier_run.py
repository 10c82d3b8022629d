"""What a run folder holds of earlier runs: rows of other ones, files that this recipe does not make, a report of both.

Whether a finished stage still holds is `export.stage`'s to say, by its inputs.
"""

from collections.abc import Callable, Set
from pathlib import Path

from export.compare import AS_TRAINED
from export.errors import RecipeError
from export.stage import read_manifest
from finetune.data import identity
from finetune.recipe import Recipe
from finetune.yaml_text import read_yaml

# Where a run's bundles go unless another place is named.
BUNDLES = "bundle"


def refuse_another(folder: Path, recipe: Recipe) -> None:
    """Raises RecipeError where the folder holds what was trained on other rows from elsewhere: maybe hours of work.

    Rows that were changed where they lie, or moved as they are, are the same ones.
    """
    kept = folder / "recipe.yaml"
    if not kept.is_file() or not any(read_manifest(folder / name) for name in AS_TRAINED):
        return
    data = read_yaml(kept).get("data")
    before = str(data.get("path")) if isinstance(data, dict) else recipe.data.path
    if not _has_moved(before, recipe):
        return
    rows = read_manifest(folder / "data")
    was = None if rows is None else rows.inputs.get("source.data_sha256")
    if was is None or _rows_sha256(recipe) != was:
        raise RecipeError(
            f"{folder} holds a run of other rows, which would be replaced: {before}, where this recipe has "
            f"{recipe.data.path}. Give the recipe another name, --out another folder, or remove this one."
        )


def _has_moved(before: str, recipe: Recipe) -> bool:
    """Whether the recipe's rows are elsewhere than those that were trained on."""
    if recipe.data.origin != "local" or ":" in before:
        return before != recipe.data.path
    return Path(before).expanduser().resolve() != Path(recipe.data.path).expanduser().resolve()


def _rows_sha256(recipe: Recipe) -> str | None:
    """The hash of a local recipe's rows; None for others, and where there are none."""
    path = Path(recipe.data.path).expanduser()
    if recipe.data.origin != "local" or not path.exists():
        return None
    return identity(recipe.data, seed=recipe.seed, offline=True).get("data_sha256")


def leftovers(folder: Path, made: Set[Path]) -> list[Path]:
    """The folders of models that an earlier run left, and that are none of those `made` by this one."""
    trained = [folder / name for name in AS_TRAINED]
    later = [*trained, folder / "merged", *sorted((folder / "export").glob("*"))]
    return [path for path in later if read_manifest(path) is not None and path not in made]


def drop_report(folder: Path, say: Callable[[str], None]) -> None:
    """A report goes as soon as a stage it stands on is made again: it would tell of files that are replaced."""
    report = folder / "report.json"
    if report.is_file():
        report.unlink()
        report.with_suffix(".html").unlink(missing_ok=True)
        say(f"the earlier report was removed ({report}): it told of files that are being replaced")
        if any((folder / BUNDLES).glob("*")):
            say(f"{folder / BUNDLES} holds what was packed of the earlier files; it stays as it is")
