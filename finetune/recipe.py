"""The recipe: its schema, and how it is loaded, overridden, resolved and written. Nothing else, and nothing heavy.

Every default lives here or in the settings class of the step it belongs to. The JSON schema, the command line's help
and the table in the documentation are generated from these classes.
"""

import re
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, Self, TypeVar

from pydantic import Field, ValidationError, model_validator

from export import plugins
from export.checks import Check
from export.checks.thinking import Thinking
from export.compare import Gate
from export.errors import RecipeError
from export.formats import Format
from export.frozen import Frozen
from export.plugins import Chosen
from export.thought import ThinkingBudget
from finetune.base_model import ModelSettings
from finetune.data import DataSettings
from finetune.devices import is_profile_path
from finetune.methods import Adapter, Method
from finetune.mistakes import mistakes, takes_text
from finetune.safety import is_pack_name
from finetune.yaml_text import parse_yaml, read_yaml

if TYPE_CHECKING:
    Formats = Chosen[Format]
    Checks = Chosen[Check]
    Training = Method
else:
    Formats = plugins.choice_of("export.formats")
    Checks = plugins.choice_of("export.checks")
    Training = plugins.one_of("finetune.methods", "method")


S = TypeVar("S", bound=Frozen)


class MergeSettings(Frozen):
    """How the 16-bit model is made: what an adapter is merged onto, and the type of the weights."""

    onto: Literal["auto", "16bit", "nf4"] = Field(
        default="auto",
        description="'16bit': the base's own weights; 'nf4': the de-quantized NF4 weights a QLoRA adapter saw; 'auto': "
        "16bit for LoRA, and for QLoRA the one whose merge is measured to be nearer to the adapter as it was trained. "
        "Full fine-tuning leaves nothing to merge.",
    )
    dtype: Literal["bfloat16", "float16"] = Field(
        default="bfloat16", description="Type the merged weights are saved in."
    )


class CheckSettings(Frozen):
    """What is measured on the held-out rows, for every subject."""

    rows: int = Field(
        default=300, ge=1, description="Held-out rows to measure on, at most; drawn with the recipe's seed."
    )
    max_new_tokens: int = Field(default=128, ge=1, description="Where a generated answer is cut off.")
    thinking_budget: ThinkingBudget | None = Field(
        default=None,
        description="How long the model may think before it answers; max_new_tokens is then for the answer behind the "
        "thought. Null: answers are generated in one piece, thoughts and all.",
    )
    threads: int | None = Field(
        default=None, ge=1, description="Processor threads for measuring; null takes all cores."
    )
    safety_items: str | None = Field(
        default=None,
        description="Safety items: a shipped pack by its name (cleaning_robot, education, medicine, mental_health), or "
        "a file of your own (prompt, and regular expressions safe and unsafe). Of those that the merged model answers "
        "safely, an export may lose none.",
    )
    safety_max_new_tokens: int | None = Field(
        default=None,
        ge=1,
        description="Where an answer to a safety item is cut off. Null: at 256, or at max_new_tokens if that is more; "
        "what stands behind the cut is not seen, a referral as little as a recipe.",
    )
    turns: tuple[Annotated[int, Field(ge=1)], ...] = Field(
        default=(),
        description="Answers before the last one that are measured too, counted from 1: [1] is the first of each "
        "conversation that has another behind it. Each behind the conversation's own earlier turns, as a set beside.",
    )
    measures: Checks = Field(
        default_factory=Checks,
        description="The checks: those that are on and not set to null, and of the others those that are named.",
    )

    @model_validator(mode="after")
    def _has_a_budget_to_tell_of(self) -> Self:
        if self.thinking_budget is None and any(isinstance(step, Thinking) for step in self.measures.steps()):
            raise ValueError(
                "measures.thinking tells what became of thoughts under thinking_budget, which is not set. Set "
                "thinking_budget: {max_thinking_tokens: 512}, or leave the measure out"
            )
        return self

    def options(self, labels: tuple[str, ...]) -> tuple[str, ...]:
        """The answers whose likelihood the checks ask for, each once, where the data template has these labels.

        Raises RecipeError where a check cannot be made.
        """
        return tuple(dict.fromkeys(option for step in self.measures.steps() for option in step.options(labels)))


class GeneralSettings(Frozen):
    """Rows of no domain: a share of them is trained on, and others are measured on, to see what was forgotten."""

    data: DataSettings = Field(description="The general rows.")
    share: float = Field(
        default=0.0, ge=0, lt=1, description="Share of the training rows that are general ones; 0 only measures."
    )
    check: CheckSettings = Field(
        default_factory=CheckSettings, description="What is measured on the general rows, for every subject."
    )

    @model_validator(mode="after")
    def _asked_once(self) -> Self:
        if self.check.safety_items is not None or self.check.turns:
            raise ValueError("check.safety_items and check.turns are of the recipe's own check, and not of general's")
        return self


class Recipe(Frozen):
    """One YAML file: from rows to checked files."""

    name: str = Field(
        pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$", description="Name of the run folder: letters, digits, '.', '_', '-'."
    )
    seed: int = Field(
        default=0, ge=0, le=2**32 - 1, description="Seeds the split, training, calibration and the statistics."
    )
    model: ModelSettings = Field(default=ModelSettings(), description="The base model.")
    data: DataSettings = Field(description="The rows.")
    general: GeneralSettings | None = Field(default=None, description="General rows beside those of the domain.")
    train: Training = Field(description="Fine-tuning.")
    merge: MergeSettings = Field(default=MergeSettings(), description="Making the 16-bit model.")
    export: Formats = Field(default_factory=Formats, description="The formats to write.")
    check: CheckSettings = Field(default_factory=CheckSettings, description="Measuring.")
    gate: Gate = Field(default=Gate(), description="How much each step may cost.")

    @model_validator(mode="after")
    def _merges_what_was_trained(self) -> Self:
        if self.merge.onto == "nf4" and not issubclass(self.train.result, Adapter):
            raise ValueError(
                "merge.onto is nf4, but full fine-tuning leaves no adapter that could be merged onto NF4 weights. "
                "Leave it out, or train an adapter (train.method: sft)"
            )
        return self


def find(name_or_path: Path) -> Path:
    """The file of a recipe: the path itself or, for a bare name that is no file here, the shipped recipe so called."""
    from finetune.library import shipped_recipe

    bare = name_or_path.parent == Path() and not name_or_path.suffix
    return shipped_recipe(name_or_path.name) if bare and not name_or_path.exists() else name_or_path


def load(path: Path, overrides: Sequence[str] = ()) -> Recipe:
    """The recipe in a YAML file, with `a.b=value` overrides applied.

    Local paths in the file are relative to the file; those in an override, to the working directory. Raises
    RecipeError with every mistake at once, each with its path and what to write instead.
    """
    return validated(Recipe, _anchored(read_yaml(path), path.resolve().parent), overrides, str(path))


def validated(schema: type[S], content: dict[str, Any], overrides: Sequence[str], source: str) -> S:
    """`content`, with overrides applied, as settings. Raises RecipeError with every mistake in `source` at once."""
    for override in overrides:
        _apply(schema, content, override)
    try:
        return schema.model_validate(content)
    except ValidationError as error:
        problems = [f"  {line}" for line in mistakes(schema, error)]
        count = f"{len(problems)} mistake{'s' if len(problems) > 1 else ''}"
        not_yet = "The rows, the template and the models were not looked at yet."
        raise RecipeError(f"{source} has {count}:\n" + "\n".join([*problems, not_yet])) from None


def dump(recipe: Recipe) -> str:
    """The resolved recipe as YAML: every key with the value that was used."""
    import yaml

    return yaml.safe_dump(recipe.model_dump(mode="json"), sort_keys=False, allow_unicode=True)


def json_schema() -> dict[str, Any]:
    """The JSON schema of a recipe, for editors."""
    return Recipe.model_json_schema()


def _apply(schema: type[Frozen], content: dict[str, Any], override: str) -> None:
    """Sets one dotted key, such as train.max_steps=20, in the recipe's content.

    Nothing behind the '=' is the empty text where the key holds a text, and a mistake elsewhere: YAML would read null
    there, which takes a setting away without a word.
    """
    key, equals, text = override.partition("=")
    if not equals or not re.fullmatch(r"\w+(\.\w+)*", key):
        raise RecipeError(f"--set {override}: expected a key, '=' and a value, such as --set train.max_steps=20.")
    value: Any = parse_yaml(text, f"--set {override}") if text.strip() else _empty(schema, key, override)
    if isinstance(value, dict) and value and ":" not in text:
        raise RecipeError(
            f"--set {override}: in YAML {text} is keys without values. To set a text, quote it: "
            f"--set '{key}=\"{text}\"'."
        )
    for part in reversed(key.split(".")):
        value = {part: value}
    _merge(content, _anchored(value, Path.cwd()), override)


def _empty(schema: type[Frozen], key: str, override: str) -> str:
    """The empty text. Raises RecipeError for a key that does not hold a text, or that holds a path."""
    parts = key.split(".")
    if takes_text(schema, parts) and tuple(parts) not in _LOCAL_PATHS:
        return ""
    raise RecipeError(
        f"--set {override}: found nothing behind the '='; expected a value. {key}=null takes a setting away, and keys "
        "that hold a text, such as data.system_prompt, can be empty."
    )


def _merge(content: dict[str, Any], change: dict[str, Any], override: str) -> None:
    for key, value in change.items():
        current = content.get(key)
        if isinstance(value, dict) and isinstance(current, dict) and value:
            _merge(current, value, override)
        elif isinstance(value, dict) and value and current is not None:
            raise RecipeError(f"--set {override}: {key!r} is {current!r} in the recipe and has no keys below it.")
        else:
            content[key] = value


_LOCAL_PATHS = (
    ("data", "path"),
    ("data", "template"),
    ("model", "name"),
    ("check", "safety_items"),
    ("check", "measures", "fields", "json_schema"),
    ("export", "target", "device"),
    ("general", "data", "path"),
    ("general", "data", "template"),
    ("general", "check", "measures", "fields", "json_schema"),
)


def _anchored(content: dict[str, Any], folder: Path) -> dict[str, Any]:
    """The content with its local paths made absolute; ids of hubs and names of templates stay as they are."""
    for *sections, key in _LOCAL_PATHS:
        values: Any = content
        for section in sections:
            values = values.get(section) if isinstance(values, dict) else None
        section = next(name for name in sections if name != "general")
        if isinstance(values, dict) and isinstance(text := values.get(key), str) and _is_local(section, key, text):
            values[key] = _absolute(folder, text, ".".join((*sections, key)))
    return content


def _absolute(folder: Path, text: str, key: str) -> str:
    try:
        return str((folder / Path(text).expanduser()).resolve())
    # no such user (~name), a null byte, a circle of links
    except (RuntimeError, ValueError, OSError) as error:
        raise RecipeError(f"{key}: {text!r} cannot be a path: {str(error).rstrip('.')}.") from None


def _is_local(section: str, key: str, text: str) -> bool:
    if (section, key) == ("data", "path"):
        return not re.match(r"^[a-z]+:", text)
    if section == "check":
        return not is_pack_name(text)
    if section == "export":
        return is_profile_path(text)
    return text.startswith((".", "/", "~")) or (key == "template" and text.endswith((".yaml", ".yml")))
