"""From the recipe's `data:` section to rows and the template that maps them: what is opened, and how it was chosen.

Reading files is `finetune.data.sources`; what becomes of each row is `finetune.data.intake`.
"""

import hashlib
import json
from collections.abc import Callable, Iterable, Iterator
from itertools import islice
from pathlib import Path
from typing import NamedTuple

from export.artifacts import sha256_of_file, sha256_of_folder
from export.licence import licence_of
from finetune import hub
from finetune.data import formats, sources, template
from finetune.data.encodings import encoding_of
from finetune.data.generated import identity_of, made_rows
from finetune.data.settings import DataSettings
from finetune.data.sources import Row
from finetune.data.template import DataTemplate, RowMapper

_ROWS_LOOKED_AT = 50


class ChosenTemplate(NamedTuple):
    """The data template of some rows: its name, its content's hash, and by what it was chosen, in words."""

    name: str
    template: DataTemplate
    sha256: str
    chosen_by: str

    def mapper(self, settings: DataSettings) -> RowMapper:
        """The template made ready, with what the recipe puts in its place."""
        return RowMapper(self.template, system_prompt=settings.system_prompt, group_by=settings.group_by)


def read_rows(settings: DataSettings, *, seed: int, offline: bool) -> Iterator[Row]:
    """The rows, one by one, from wherever they come, those of a file that cannot be read among them (`Row.problem`).

    Raises DataError where nothing can be read.
    """
    if settings.origin == "generated":
        assert settings.rows is not None, "the settings ask for it"
        made = made_rows(settings.path.partition(":")[2], settings.rows, seed)
        return (Row(dict(fields), f"{settings.path}, row {n}") for n, fields in enumerate(made, start=1))
    if settings.origin == "local":
        return sources.read_rows_and_broken(Path(settings.path).expanduser(), encoding=settings.encoding)
    snapshot = hub.download_dataset(settings.path, revision=settings.revision, offline=offline)
    return sources.read_snapshot(snapshot, settings.path, split=settings.split, subset=settings.subset)


def choose_template(settings: DataSettings, rows: Callable[[], Iterable[Row]]) -> ChosenTemplate:
    """The template that the recipe names or describes; for `auto`, the one whose form the first `rows` have.

    Raises RecipeError for one that does not exist or is not sound, DataError when none or several fit the rows.
    """
    given = settings.template
    if isinstance(given, dict):
        made = template.columns(**given)
        text = json.dumps(given, sort_keys=True, ensure_ascii=False)
        return ChosenTemplate("columns", made, hashlib.sha256(text.encode()).hexdigest(), "the recipe")
    if given != "auto":
        path = template.find(given)
        return ChosenTemplate(given, template.load(path), template.sha256(path), "the recipe")
    if settings.origin == "generated":
        name, because = settings.path.partition(":")[2], "the generator"
    else:
        first = list(islice(rows(), _ROWS_LOOKED_AT))
        detected = formats.detect([row for row in first if not row.problem] or [row.whole() for row in first])
        name, because = detected.template, f"the rows' form: {detected.because}"
    path = template.find(name)
    return ChosenTemplate(name, template.load(path), template.sha256(path), because)


def identity(settings: DataSettings, *, seed: int, offline: bool) -> dict[str, str]:
    """What the rows are made of, by content: two runs with the same identity and settings read the same rows.

    A hub's dataset is known by its commit (Hugging Face) or its files' hash (ModelScope), and is fetched to learn it.
    """
    chosen = choose_template(settings, lambda: read_rows(settings, seed=seed, offline=offline))
    known = {"template_sha256": chosen.sha256}
    if settings.origin == "generated":
        return known | {"grammar_sha256": identity_of(settings.path.partition(":")[2])}
    if settings.origin == "local":
        return known | {"data_sha256": sha256_of_files(Path(settings.path).expanduser())}
    snapshot = hub.download_dataset(settings.path, revision=settings.revision, offline=offline)
    return known | {"data_revision": hub.commit_of(snapshot) or f"sha256:{sha256_of_folder(snapshot)}"}


def encodings(settings: DataSettings) -> tuple[str, ...]:
    """The encodings of a local source's text files, each once; none for rows that come from elsewhere."""
    if settings.origin != "local":
        return ()
    files = sources.files_of(Path(settings.path).expanduser())
    return tuple(sorted({encoding_of(file, settings.encoding) for file in files if sources.is_text(file)}))


def licences(settings: DataSettings, chosen: ChosenTemplate, *, offline: bool) -> tuple[tuple[str, str], ...]:
    """What each source says of its licence: the rows (by the recipe, or their dataset's card) and the template."""
    stated = settings.licence
    if stated is None and settings.origin in ("hf", "modelscope"):
        stated = licence_of(hub.download_dataset(settings.path, revision=settings.revision, offline=offline))
    return (
        ("rows", stated or "not stated (data.licence)"),
        ("template", chosen.template.licence),
    )


def sha256_of_files(path: Path) -> str:
    """SHA-256 of the rows that lie at a path: of the file, or over the names and bytes of a folder's data files."""
    files = sources.files_of(path)
    if path.is_file():
        return sha256_of_file(path)
    parts = "".join(f"{file.relative_to(path).as_posix()}\0{sha256_of_file(file)}\n" for file in files)
    return hashlib.sha256(parts.encode()).hexdigest()
