"""What is estimated for whom: `fieldtune estimate`, the line of `validate`, and the opening of a shipped recipe."""

from export.errors import ModelError, RecipeError
from finetune.estimate import wording
from finetune.estimate.estimating import estimate, estimates
from finetune.estimate.hardware import THIS_MACHINE, find_hardware, known_hardware
from finetune.recipe import Recipe

# The machines that a recipe's opening names: a free notebook's, a desk's, a data centre's, and no GPU at all.
_IN_RECIPES = ("t4", "rtx_4090", "h100", "two_cores")
# The machine of the line that `validate` prints: in the memory that training takes, GPUs do not differ.
_IN_A_LINE = "l4"


def estimate_lines(recipe: Recipe, hardware: str | None) -> tuple[str, ...]:
    """The parts for the machine of that name; for this one, and a line for each other, where no name is given.

    Rows that are not here yet are no mistake: their lengths are assumed, and said to be.
    """
    if hardware is not None:
        return wording.table(estimate(recipe, find_hardware(hardware)))
    here, *others = estimates(recipe, (find_hardware(THIS_MACHINE), *known_hardware().values()))
    return (*wording.table(here), "other machines:", *wording.machines(others))


def estimate_line(recipe: Recipe) -> str:
    """What training takes; for a base or a method that no estimate knows, why there is none."""
    try:
        return wording.summary(estimate(recipe, known_hardware()[_IN_A_LINE]))
    except (ModelError, RecipeError) as error:
        return f"estimate: none. {error}"


def recipe_lines(recipe: Recipe) -> tuple[str, ...]:
    """The lines of a shipped recipe's opening comment."""
    return wording.recipe_lines(estimates(recipe, [known_hardware()[name] for name in _IN_RECIPES]))
