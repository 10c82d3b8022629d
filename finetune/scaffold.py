"""`fieldtune init`: a recipe, a data template and sample rows to start a domain of one's own from."""

import json
import re
from collections.abc import Iterator
from pathlib import Path

from export.artifacts import write_atomically
from export.chat import Conversation
from export.errors import RecipeError
from export.plugins import nearest
from finetune.data import template
from finetune.data.sources import read_rows
from finetune.data.template import DataTemplate, RowMapper
from finetune.safety import pack_names
from finetune.yaml_text import parse_yaml

_RECIPE, _TEMPLATE, _ROWS = "recipe.yaml", "template.yaml", "rows.sample.jsonl"
_SHOWN_CHARACTERS = 70


def domains() -> Iterator[tuple[str, str]]:
    """Each domain that can be started from, and what its rows are, in a line: the templates that ship with a sample."""
    for name in template.shipped_names():
        known = template.load(template.find(name))
        if known.sample is not None:
            yield name, known.description


def scaffold(domain: str, folder: Path) -> tuple[Path, ...]:
    """Writes a recipe, its data template and sample rows of a domain into `folder`; the files, the recipe first.

    The recipe is valid as it stands. Raises RecipeError for an unknown domain, and where a file of these names is there
    already: nothing is written then. Raises OSError where none can be written.
    """
    names = tuple(name for name, _ in domains())
    if domain not in names and Path(domain).exists():
        raise RecipeError(
            f"{domain} is a file or a folder; expected the name of a domain (`fieldtune init` lists them). Start from "
            f"the one that is nearest to your rows, and set data.path of its recipe to {domain}."
        )
    if domain not in names:
        raise RecipeError(
            f"there is no domain {domain!r}. {nearest(domain, names)} `fieldtune init` tells what each is."
        )
    source = template.find(domain)
    known = template.load(source)
    assert known.sample is not None, "a domain has one"
    sample = source.with_name(known.sample)
    texts = {
        _RECIPE: _recipe(folder, domain, known, sample),
        _TEMPLATE: _own_template(source.read_text(encoding="utf-8")),
        _ROWS: sample.read_text(encoding="utf-8"),
    }
    if there := [name for name in texts if (folder / name).exists()]:
        raise RecipeError(f"{folder / there[0]} exists already and is not overwritten. Choose another folder.")
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in texts.items():
        write_atomically(folder / name, text)
    return tuple(folder / name for name in texts)


def _own_template(text: str) -> str:
    """A shipped template as one of the user's: with the sample's new name, and no part in `template: auto`."""
    text = re.sub(r"^detect: .*\n", "", text, flags=re.MULTILINE)
    return re.sub(r"^sample: .*$", f"sample: {_ROWS}", text, flags=re.MULTILINE)


def _recipe(folder: Path, domain: str, known: DataTemplate, sample: Path) -> str:
    mapper = RowMapper(known)
    conversations = [mapper.conversation(row) for row in read_rows(sample)]
    first = conversations[0]
    return f"""\
# {known.description}
#
# What:     {_short(first.prompt[-1].content)} -> {_short(first.answer)}
# On:       Qwen2.5-0.5B-Instruct; set model.name for a larger one or a local folder
# Rows:     {_ROWS} holds {len(conversations)} rows of ours, to show the form: put some hundred of your own beside this
#           file, set data.path to it, and change {_TEMPLATE} where your fields have other names
# Hardware: any GPU with 4 GB; on two processor cores expect an hour for a thousand short rows, or set train.max_steps
# Run:      fieldtune validate {_RECIPE}, then: fieldtune run {_RECIPE}
name: {_name(folder, domain)}
model:
  name: Qwen/Qwen2.5-0.5B-Instruct
data:
  path: {_ROWS}
  template: ./{_TEMPLATE}
  max_tokens: 1024
train:
  epochs: 3
  batch_size: 8
export:
  gguf:
    types: [q8_0, q4_k_m]
check:
{_safety(domain)}  measures:
    exact_match: {_comparison(known, conversations)}
{_measures(known, conversations)}"""


def _safety(domain: str) -> str:
    return (
        f"  safety_items: {domain}  # a pack that ships; a lost item fails a file\n" if domain in pack_names() else ""
    )


def _measures(known: DataTemplate, conversations: list[Conversation]) -> str:
    """What is measured of answers of a form: labels, or JSON fields."""
    if known.labels:
        return "    label: {}\n"
    if all(_is_json_object(item.answer) for item in conversations):
        return (
            "    fields:\n"
            "      json_schema: {type: object}  # say here what an answer must be: it is checked, and makes a grammar\n"
        )
    return ""


def _comparison(known: DataTemplate, conversations: list[Conversation]) -> str:
    if known.labels:
        return "{compare: text}"
    if all(_is_json_object(item.answer) for item in conversations):
        return "{compare: json}"
    return "null  # an answer in free words can be right in many ways: it is measured on perplexity and divergence"


def _is_json_object(text: str) -> bool:
    try:
        return isinstance(json.loads(text), dict)
    except ValueError:
        return False


def _name(folder: Path, domain: str) -> str:
    """The folder's name as that of a recipe (letters, digits, '.', '_', '-'), quoted where YAML would not read text."""
    name = re.sub(r"[^A-Za-z0-9._-]+", "-", folder.resolve().name).strip("-._") or domain
    return name if isinstance(parse_yaml(name, "name"), str) else json.dumps(name)


def _short(text: str) -> str:
    line = " ".join(text.split())
    return line if len(line) <= _SHOWN_CHARACTERS else line[: _SHOWN_CHARACTERS - 3] + "..."
