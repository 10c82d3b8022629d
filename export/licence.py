"""What a folder states of its licence: in the card that opens it, or in its licence's own text. Nothing is guessed."""

from pathlib import Path

import yaml

# The first line of a licence file is its title; a longer one is none.
_TITLE_CHARACTERS = 80


def licence_of(model: Path) -> str | None:
    """The licence that a folder states in its README's front matter, or in the first line of its LICENSE.

    Of a .gguf file the model card beside it: a LICENSE there may be of anything else.
    """
    card = (model if model.is_dir() else model.parent) / "README.md"
    front_matter = _front_matter(card)
    stated = front_matter.get("license_name") or front_matter.get("license")
    if isinstance(stated, list):  # a dataset of several sources
        stated = ", ".join(map(str, stated))
    if isinstance(stated, str) and stated.strip():
        return stated.strip()
    path = model / "LICENSE"
    if not path.is_file():
        return None
    lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
    title = next((line.strip() for line in lines if line.strip()), "")
    return title if 0 < len(title) <= _TITLE_CHARACTERS else None


def _front_matter(readme: Path) -> dict[str, object]:
    """The YAML between the two rules at the top of a model card; empty where there is none that can be read."""
    if not readme.is_file():
        return {}
    opening, _, rest = readme.read_text(encoding="utf-8", errors="replace").partition("---\n")
    block, closing, _ = rest.partition("\n---")
    if opening.strip() or not closing:
        return {}
    try:
        found = yaml.safe_load(block)
    except yaml.YAMLError:
        return {}
    return found if isinstance(found, dict) else {}
