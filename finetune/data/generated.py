"""Where rows come from that are made and not read: a grammar of `data_templates/`, or the starter model's own world."""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from export.artifacts import sha256_of_file, sha256_of_json
from export.errors import DataError
from finetune import shipped

STARTER_GENERAL = "starter_general"
_ENDING = ".grammar.yaml"


def made_rows(name: str, rows: int, seed: int) -> Iterator[Mapping[str, Any]]:
    """So many rows of the generator, the same for the same seed. Raises DataError for an unknown or a faulty one."""
    if name == STARTER_GENERAL:
        from finetune.starter.general import general_rows

        return general_rows(rows, seed)
    from finetune.data.grammar import expand

    return expand(_grammar(name), rows, seed)


def identity_of(name: str) -> str:
    """SHA-256 of what the generator makes rows from."""
    if name == STARTER_GENERAL:
        from finetune.starter.general import sources

        return sha256_of_json({path.name: sha256_of_file(path) for path in sources()})
    return sha256_of_file(_grammar(name))


def _grammar(name: str) -> Path:
    path = shipped.folder("data_templates") / f"{name}{_ENDING}"
    if not path.is_file():
        known = sorted(file.name.removesuffix(_ENDING) for file in path.parent.glob(f"*{_ENDING}"))
        raise DataError(
            f"there is no grammar for 'generated:{name}': {path} does not exist. Known: "
            f"{', '.join([*known, STARTER_GENERAL])}."
        )
    return path
