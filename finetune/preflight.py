"""What can be known about a recipe before anything is trained: for `validate`, asking no hub, and for every run."""

from collections.abc import Callable
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

from export.artifacts import read_model_config
from export.chat_template import thinking_is_ignored
from export.chat_tokenizer import load_tokenizer
from export.errors import DataError, FieldtuneError, RecipeError
from export.formats import Format
from export.formats.target import Target
from export.plugins import Chosen
from export.thought import answer_behind_thought
from finetune.base_model import BaseModelSource, ModelSettings
from finetune.data import DataSettings, read_rows
from finetune.data.reading import ChosenTemplate, choose_template
from finetune.device_target import require_room
from finetune.devices import THIS_MACHINE, find_device
from finetune.hub import is_on_a_hub, resolve_model
from finetune.recipe import CheckSettings, Recipe
from finetune.safety import find, read_safety_rows
from finetune.shipped import folder
from finetune.subjects import require_thoughts

T = TypeVar("T")
ROWS_LOOKED_AT = 200
_LATER = "(on a hub: looked up when the recipe runs)"


def inspect(recipe: Recipe) -> tuple[str, ...]:
    """One line for each thing that was looked at.

    Raises RecipeError with every problem that was found, of the template, the rows, the model, training and the
    exports, each of which a run would meet later.
    """
    problems: list[str] = []

    def looked_at(place: str, look: Callable[[], T]) -> T | None:
        try:
            return look()
        except FieldtuneError as error:
            if all(str(error) not in problem for problem in problems):  # rows that tell the template fail it too
                problems.append(f"  {place}: {error}".replace("\n", "\n  "))
            return None

    chosen = looked_at("template", lambda: _template(recipe.data, recipe.seed))
    rows = looked_at("data", lambda: _rows(recipe.data, recipe.seed, chosen))
    general = looked_at("general", lambda: _general(recipe))
    config = looked_at("model", lambda: _model_config(recipe.model))
    if config is not None:
        looked_at("train", lambda: recipe.train.check(config))
    looked_at("export.target", lambda: _device(recipe.export))
    # a template that only a hub's rows can tell may have labels
    if chosen is not None:
        looked_at("check.measures", lambda: recipe.check.options(chosen.template.labels))
    unread = None
    if chosen is not None and rows is not None:
        unread = looked_at("check.measures", lambda: _unread(recipe.check, rows, chosen.template.labels))
    safety = looked_at("check.safety_items", lambda: _safety(recipe.check))
    ignored = looked_at("model", lambda: _thinking_is_ignored(recipe.model))
    exports = looked_at("export", lambda: _exports(recipe.export))
    if problems:
        count = f"{len(problems)} problem{'s' if len(problems) > 1 else ''}"
        raise RecipeError(f"the recipe {recipe.name!r} has {count}:\n" + "\n".join(problems))
    return (
        f"template: {_LATER if chosen is None else f'{chosen.name} ({chosen.chosen_by})'}",
        f"data: {recipe.data.path} {rows.said if rows else ''}",
        *(unread or ()),
        *([general] if general else []),
        f"model: {recipe.model.name} {_LATER if config is None else _architectures(config)}",
        *([f"thinking: {ignored}"] if ignored else []),
        f"exports: {exports}",
        *([safety] if safety else []),
    )


def inspect_base(recipe: Recipe, base: BaseModelSource, say: Callable[[str], None]) -> None:
    """Whether the base, once it is on this machine, can be trained, exported and measured as the recipe says.

    `say` hears what the recipe asks for in vain. Raises what the steps raise, and RecipeError for a thinking budget
    where the template lets nothing be thought.
    """
    thinking = recipe.model.thinking
    if thinking and (ignored := thinking_is_ignored(base.path)):
        say(f"thinking: {ignored}")
    for check in (recipe.check, *([recipe.general.check] if recipe.general else [])):
        if check.thinking_budget is not None:
            require_thoughts(check, load_tokenizer(base.path), thinking=thinking)
    recipe.train.check(base.config)
    for step in recipe.export.steps():
        step.check_model(base.config)
        if isinstance(step, Target):
            require_room(step, base.path, say)


def _general(recipe: Recipe) -> str | None:
    """What was seen of the general rows; raises as for those of the domain."""
    general = recipe.general
    if general is None:
        return None
    chosen = _template(general.data, recipe.seed)
    if chosen is not None:
        general.check.options(chosen.template.labels)
    share = f"{general.share * 100:.3g} % of the training rows" if general.share else "measured, not trained on"
    return f"general: {general.data.path} {_rows(general.data, recipe.seed, chosen).said}, {share}"


def _device(settings: Chosen[Format]) -> None:
    """Raises RecipeError where a target's device is not known; this machine is measured when it comes to that."""
    for step in settings.steps():
        if isinstance(step, Target) and step.device not in (None, THIS_MACHINE):
            find_device(str(step.device), lambda line: None)


def _safety(settings: CheckSettings) -> str | None:
    if settings.safety_items is None:
        return None
    rows = read_safety_rows(find(settings.safety_items))
    return f"safety items: {settings.safety_items} ({len(rows)} items)"


def _template(settings: DataSettings, seed: int) -> ChosenTemplate | None:
    """The rows' template; None where only a hub's rows can tell it."""
    if settings.template == "auto" and settings.origin in ("hf", "modelscope"):
        return None
    return choose_template(settings, lambda: read_rows(settings, seed=seed, offline=True))


class _SeenRows(NamedTuple):
    """What was seen of the first rows, in words, and their answers without thoughts; none where nothing maps them."""

    said: str
    answers: tuple[str, ...] = ()
    are_all: bool = False


def _unread(check: CheckSettings, rows: _SeenRows, labels: tuple[str, ...]) -> tuple[str, ...]:
    """A line for each check that some of the answers give nothing to score by.

    Raises RecipeError where that is all answers of all rows: whatever is trained, nothing could be told of it.
    """
    answers = rows.answers
    unread = {name: (step, step.unread(answers, labels)) for name, step in check.measures.named().items()}
    useless = rows.are_all and [name for name, (_, texts) in unread.items() if answers and len(texts) == len(answers)]
    these = f"the {'' if rows.are_all else 'first '}{len(answers)} answers"
    said = [
        f"{name} expects {step.reads}, which {len(texts)} of {these} are not, such as {texts[0][:60]!r}"
        for name, (step, texts) in unread.items()
        if texts
    ]
    if useless:
        raise RecipeError(f"{'; '.join(said)}. Choose checks that fit the rows' answers; null turns one off.")
    return tuple(f"check.measures: {line}" for line in said)


def _rows(settings: DataSettings, seed: int, chosen: ChosenTemplate | None) -> _SeenRows:
    """What was seen of the rows. Raises DataError where some cannot be read or, with a template, mapped.

    Unless the contract lets such rows be dropped: then they are told.
    """
    if settings.origin in ("hf", "modelscope"):
        return _SeenRows(_LATER)
    if chosen is not None and settings.origin == "local" and not Path(settings.path).expanduser().exists():
        fields = ", ".join(chosen.template.fields)
        sample = folder("data_templates") / f"{chosen.name}.sample.jsonl"
        such = f" (such as {sample.parent.name}/{sample.name})" if sample.is_file() else ""
        raise DataError(
            f"there is no file or folder {settings.path}. Bring rows of the template {chosen.name!r}, with the fields "
            f"{fields}{such}, and name their file in data.path."
        )
    mapper = None if chosen is None else chosen.mapper(settings)
    count = 0
    problems: list[str] = []
    answers: list[str] = []
    for row in islice(read_rows(settings, seed=seed, offline=True), ROWS_LOOKED_AT):
        count += 1
        try:
            if mapper is None:
                row.whole()
            else:
                answers.append(answer_behind_thought(mapper.conversation(row).answer))
        except DataError as error:
            problems.append(str(error))
    these = f"{'first' if count == ROWS_LOOKED_AT else 'all'} {count} rows"
    if not problems:
        return _SeenRows(f"({these} fit the template)", tuple(answers), are_all=count < ROWS_LOOKED_AT)
    others = len(problems) - 1
    more = f" (of the {these.removeprefix('all ')}, {others} more cannot be used)" if others else ""
    if len(problems) == count or not settings.contract.drops_broken:
        raise DataError(f"{problems[0]}{more}")
    dropped = f"{len(problems)} cannot be used and will be dropped, as data.contract allows: {problems[0]}"
    return _SeenRows(f"({these}: {dropped})", tuple(answers), are_all=count < ROWS_LOOKED_AT)


def _model_config(settings: ModelSettings) -> dict[str, Any] | None:
    """The content of the model's config.json; None for a model on a hub."""
    if is_on_a_hub(settings.name):
        return None
    return read_model_config(resolve_model(settings.name, revision=settings.revision, offline=True))


def _thinking_is_ignored(settings: ModelSettings) -> str | None:
    """What is to be told of a template without a thinking mode; None for a model on a hub, and where none is asked."""
    if not settings.thinking or is_on_a_hub(settings.name):
        return None
    return thinking_is_ignored(resolve_model(settings.name, revision=settings.revision, offline=True))


def _architectures(config: dict[str, Any]) -> str:
    return f"({', '.join(map(str, config.get('architectures') or ['unknown architecture']))})"


def _exports(chosen: Chosen[Format]) -> str:
    """The files and folders to be made. Whether a model fits a format takes heavy libraries, and is asked in a run."""
    for step in chosen.steps():
        step.check_installed()
    return ", ".join(variant for step in chosen.steps() for variant in step.variants()) or "none"
