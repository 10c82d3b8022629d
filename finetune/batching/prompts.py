"""What each row asks: the template that is chosen for a batch, and the system prompt that stands before it."""

import json
from itertools import islice
from pathlib import Path
from typing import NamedTuple

from pydantic import ValidationError

from export.chat import Message
from export.errors import DataError, RecipeError
from finetune.batching.settings import BatchSettings
from finetune.data import DataSettings, template
from finetune.data.formats import ROWS_LOOKED_AT, detect_prompt
from finetune.data.sources import Row, read_rows
from finetune.data.template import DataTemplate, RowMapper
from finetune.partner import run_folder, trained_system_prompt
from finetune.yaml_text import read_yaml


class Asking(NamedTuple):
    """How rows ask: the template, the system prompt that replaces its own (None: its own), and by what, in words."""

    template: DataTemplate
    system_prompt: str | None
    chosen_by: str

    def mapper(self) -> "Prompts":
        """The template made ready."""
        return Prompts(RowMapper(self.template, system_prompt=self.system_prompt))


class Prompts:
    """Makes rows into messages that wait for an answer."""

    def __init__(self, mapper: RowMapper) -> None:
        self._mapper = mapper

    def of(self, row: Row) -> tuple[Message, ...]:
        """What a row asks. Raises DataError when the template does not fit it, or nothing is asked."""
        messages = self._mapper.prompt(row)
        if not messages[-1].content.strip():
            raise DataError(f"{row.origin}: the prompt is empty; expected words. Fill in the row.")
        return messages


def choose(settings: BatchSettings) -> Asking:
    """How the rows ask: as --prompt or --template says, else as in the model's run, else by the rows' form.

    Raises RecipeError for a template that does not exist or is not sound, DataError when none fits the rows.
    """
    if settings.prompt is not None:
        system = trained_system_prompt(settings.model) if settings.system is None else settings.system
        return Asking(template.question(settings.prompt, "--prompt"), system, "the columns of --prompt")
    trained = None if settings.template == "auto" else _of_run(settings.model)
    system = settings.system if settings.system is not None or trained is None else trained.system_prompt
    if settings.template not in (None, "auto"):
        named = template.load(template.find(str(settings.template)))
        return Asking(named, system, f"the template {settings.template}")
    if trained is not None:
        return trained._replace(system_prompt=system)
    first = list(islice(read_rows(settings.rows), ROWS_LOOKED_AT))
    found = detect_prompt(first)
    loaded = template.load(template.find(found.template))
    return Asking(loaded, system, f"the template {found.template}, by the rows' form")


def _of_run(model: Path) -> Asking | None:
    """How the rows of the run asked that `model` belongs to; None outside a run."""
    folder = run_folder(model)
    if folder is None:
        return None
    path = folder / "recipe.yaml"
    try:
        data = DataSettings.model_validate(read_yaml(path).get("data"))
    except ValidationError:
        raise RecipeError(
            f"{path} holds no data section that this version reads. Say what is asked with --prompt or --template."
        ) from None
    if isinstance(data.template, dict):
        return Asking(template.columns(**data.template), data.system_prompt, "the columns of the model's run")
    name = _chosen_in(folder) if data.template == "auto" else data.template
    loaded = template.load(template.find(name))
    return Asking(loaded, data.system_prompt, f"the template {name} of the model's run")


def _chosen_in(folder: Path) -> str:
    """The template that a run chose by its rows. Raises RecipeError where it is not recorded."""
    path = folder / "data" / "report.json"
    try:
        return str(json.loads(path.read_text(encoding="utf-8"))["template"])
    except (OSError, ValueError, KeyError, TypeError):
        raise RecipeError(
            f"{path} does not say which template the run chose. Say what is asked with --prompt or --template."
        ) from None
