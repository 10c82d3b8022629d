"""Where recipes, data templates and devices that ship lie: beside the package in a checkout, inside it in a wheel."""

from pathlib import Path
from typing import Literal

from export.errors import RecipeError

Kind = Literal["recipes", "data_templates", "devices"]


def folder(kind: Kind) -> Path:
    """The folder of what is shipped. Raises RecipeError when this installation has none."""
    package = Path(__file__).resolve().parent
    # The wheel's own copy comes first: in site-packages a folder beside the package may be another project's.
    for place in (package / "shipped" / kind, package.parent / kind):
        if place.is_dir():
            return place
    raise RecipeError(f"this installation of fieldtune has no {kind} (looked in {package}). Install it again.")
