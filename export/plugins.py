"""Finds the steps a recipe can name: export formats, checks and training methods.

A step is a module in a package, and the word in the YAML is the module's name. Listing a package imports nothing;
choosing a step imports that module alone. A step's module must itself be light (pydantic and the standard library):
its heavy libraries are imported inside its verb, so that a recipe is validated without torch.
"""

import difflib
import importlib
import pkgutil
from functools import cache, reduce
from operator import or_
from typing import Annotated, Any, ClassVar, Generic, TypeVar

from pydantic import BeforeValidator, Field, create_model

from export.errors import RecipeError
from export.frozen import Frozen


class Step(Frozen):
    """A settings object with one verb; its fields are the keys a user writes under the step's name.

    `on_by_default`: whether a recipe that does not name the step has it all the same.
    """

    on_by_default: ClassVar[bool] = False


S = TypeVar("S", bound=Step)


class Chosen(Frozen, Generic[S]):
    """The steps a recipe asked for: one optional field per module of a package."""

    def named(self) -> dict[str, S]:
        """The steps that were asked for by their names, in the order of these."""
        values = ((name, getattr(self, name)) for name in sorted(type(self).model_fields))
        return {name: value for name, value in values if value is not None}

    def steps(self) -> tuple[S, ...]:
        """The steps that were asked for, in the order of their names."""
        return tuple(self.named().values())


def names(package: str) -> tuple[str, ...]:
    """The steps that a package offers, sorted, without importing any of them."""
    path = importlib.import_module(package).__path__
    return tuple(sorted(module.name for module in pkgutil.iter_modules(path) if not module.name.startswith("_")))


def find(package: str, name: str) -> type[Step]:
    """The step `name` of `package`: the one subclass of Step that its module marks as `step`.

    Raises RecipeError when there is no such module. A module that exists but fails to import raises its own error,
    so that a typo and a broken installation never look alike.
    """
    offered = names(package)
    if name not in offered:
        raise RecipeError(f"unknown {package.rpartition('.')[2].removesuffix('s')} {name!r}. {nearest(name, offered)}")
    step = importlib.import_module(f"{package}.{name}").step
    assert isinstance(step, type) and issubclass(step, Step), f"{package}.{name}.step is no Step"
    return step


@cache
def choice_of(package: str) -> type[Chosen[Step]]:
    """A recipe section with one field for every step in `package`: asked for by its name, or on unless set to null.

    Which of the two is the step's own to say (`Step.on_by_default`).
    """
    fields = {name: _field(find(package, name)) for name in names(package)}
    title = package.rpartition(".")[2].capitalize()
    return create_model(f"{title}Chosen", __base__=Chosen[Step], **fields)  # type: ignore[call-overload, no-any-return]


@cache
def one_of(package: str, key: str) -> Any:
    """A recipe section that is one step of `package`, told apart by the step's own field `key`.

    A section without the key is the step that is on by default, where one is.
    """
    steps = tuple(find(package, name) for name in names(package))
    if len(steps) == 1:
        return steps[0]

    default = next((step.model_fields[key].default for step in steps if step.on_by_default), None)

    def with_default(section: object) -> object:
        return {key: default, **section} if isinstance(section, dict) and default is not None else section

    return Annotated[reduce(or_, steps), Field(discriminator=key), BeforeValidator(with_default)]


def _field(step: type[Step]) -> tuple[Any, Any]:
    description = (step.__doc__ or "").strip().partition("\n")[0]
    return step | None, Field(default=step() if step.on_by_default else None, description=description)


def nearest(word: str, known: tuple[str, ...]) -> str:
    """A sentence that helps someone who wrote `word` where only `known` words are valid."""
    close = difflib.get_close_matches(word, known, n=1, cutoff=0.6)
    hint = f"Did you mean {close[0]!r}? " if close else ""
    return f"{hint}Known: {', '.join(sorted(known))}."
