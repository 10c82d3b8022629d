"""What can be known about a recipe without loading a model or asking a hub: for `validate`, and before every run."""

from collections.abc import Iterator

from export.artifacts import read_model_config
from finetune.data import identity
from finetune.hub import resolve_model
from finetune.recipe import Recipe
from finetune.template import find
from finetune.template import load as load_template


def inspect(recipe: Recipe) -> Iterator[str]:
    """One line for each thing that was looked at. Raises the error that a run would raise later."""
    path = find(recipe.data.template)
    load_template(path)
    yield f"template: {path}"
    if recipe.data.origin in ("local", "generated"):
        identity(recipe.data, offline=True)
        yield f"data: {recipe.data.path}"
    else:
        yield f"data: {recipe.data.path} (on a hub: looked up when the recipe runs)"
    if recipe.model.name == "starter" or recipe.model.name.startswith("/"):
        config = read_model_config(resolve_model(recipe.model.name, revision=None, offline=True))
        recipe.train.check(config)
        yield f"model: {recipe.model.name} ({', '.join(config.get('architectures', ['unknown architecture']))})"
    else:
        yield f"model: {recipe.model.name} (on a hub: looked up when the recipe runs)"
    exports = [variant for step in recipe.export.steps() for variant in step.variants()]
    yield f"exports: {', '.join(exports) or 'none'}"
