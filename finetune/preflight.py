"""What can be known about a recipe without loading a model or asking a hub: for `validate`, and before every run."""

from pathlib import Path

from export.artifacts import read_model_config
from finetune import sources
from finetune.data import identity
from finetune.hub import is_on_a_hub, resolve_model
from finetune.recipe import Recipe
from finetune.template import RowMapper, find
from finetune.template import load as load_template

_LATER = "(on a hub: looked up when the recipe runs)"


def inspect(recipe: Recipe) -> tuple[str, ...]:
    """One line for each thing that was looked at. Raises the error that a run would raise later."""
    exports = [variant for step in recipe.export.steps() for variant in step.variants()]
    return (_template(recipe), _data(recipe), _model(recipe), f"exports: {', '.join(exports) or 'none'}")


def _template(recipe: Recipe) -> str:
    path = find(recipe.data.template)
    RowMapper(load_template(path), system_prompt=recipe.data.system_prompt, group_by=recipe.data.group_by)
    return f"template: {path}"


def _data(recipe: Recipe) -> str:
    settings = recipe.data
    if settings.origin == "generated":
        identity(settings, offline=True)
    elif settings.origin == "local":
        sources.files_of(Path(settings.path).expanduser())  # not their hash: they may be large
    else:
        return f"data: {settings.path} {_LATER}"
    return f"data: {settings.path}"


def _model(recipe: Recipe) -> str:
    settings = recipe.model
    if is_on_a_hub(settings.name):
        return f"model: {settings.name} {_LATER}"
    config = read_model_config(resolve_model(settings.name, revision=settings.revision, offline=True))
    recipe.train.check(config)
    architectures = config.get("architectures") or ["unknown architecture"]
    return f"model: {settings.name} ({', '.join(map(str, architectures))})"
