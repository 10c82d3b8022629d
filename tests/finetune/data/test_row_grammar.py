"""Row grammars: rows worked out by hand, arithmetic that can do no more than it should, errors that name the fault."""

import json
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import pytest
import yaml

from export.chat import Conversation
from export.chat_tokenizer import load_tokenizer
from export.errors import DataError
from finetune import shipped
from finetune.data.grammar import _arithmetic, expand, load_row_grammar
from finetune.data.grammar._row_grammar import SLOT
from finetune.data.grammar._words import LANGUAGES
from finetune.data.sources import Row
from finetune.data.template import DataTemplate, RowMapper, columns, find, load
from finetune.recipe import load as load_recipe
from finetune.starter.pretrain import DEFAULT_OUT

GRAMMARS = shipped.folder("data_templates")
ROW_GRAMMARS = sorted(path for path in GRAMMARS.glob("*.grammar.yaml") if path.stem != "cleaning_robot.grammar")
STARTERS = sorted(shipped.folder("recipes").glob("*_starter.yaml"))

SHOP = """
name: shop
description: Sums in a shop.
slots:
  count: {range: [2, 3]}
  price: {range: [4, 5]}
  cost: {compute: count * price}
  size:
    compute: "'much' if cost > 10 else 'little'"
    values: [{value: much, en: dear, zh: 贵}, {value: little, en: cheap, zh: 便宜}]
  fruit:
    values:
      - {value: apple, en: apple, zh: 苹果, also: {many: {en: apples, zh: 苹果}, colour: red}}
      - {value: pear, en: pear, zh: 梨, also: {many: {en: pears, zh: 梨}, colour: green}}
      - {value: cherry, en: cherry, zh: 樱桃, also: {many: {en: cherries, zh: 樱桃}, colour: red}}
  other: {another: fruit, differs_in: colour}
rows:
  - name: cost
    share: 1
    fields:
      question: {en: "{count} {fruit:many} at {price} coins", zh: "{count}个{fruit}，每个{price}元"}
      answer: {total: "{cost:value}", said: "{cost}", "{fruit:value}": ["{size}", 1, null]}
      language: "{language}"
    group: "{fruit} {count} {price}"
"""


@pytest.fixture
def shop(tmp_path: Path) -> Path:
    path = tmp_path / "shop.grammar.yaml"
    path.write_text(SHOP, encoding="utf-8")
    return path


def changed(path: Path, old: str, new: str) -> Path:
    text = path.read_text(encoding="utf-8")
    assert old in text
    path.write_text(text.replace(old, new), encoding="utf-8")
    return path


def with_slots(path: Path, slots: dict[str, Any], fields: dict[str, Any], **kind: Any) -> Path:
    """A grammar of one kind of rows with these slots and fields."""
    content = {"name": "t", "description": "a test's", "slots": slots}
    content["rows"] = [{"name": "only", "share": 1, "fields": fields} | kind]
    path.write_text(yaml.safe_dump(content, allow_unicode=True, sort_keys=False), encoding="utf-8")
    return path


def rows_of(path: Path, count: int) -> list[dict[str, Any]]:
    return list(expand(path, count, seed=0))


def test_all_rows_of_a_small_grammar_are_those_worked_out_by_hand(shop: Path) -> None:
    # 3 fruits x 2 counts x 2 prices x 2 languages
    rows = rows_of(shop, 24)
    assert {
        "question": "3 cherries at 5 coins",
        "answer": {"total": 15, "said": "15", "cherry": ["dear", 1, None]},
        "language": "en",
        "group": "cherry 3 5",
    } in rows
    assert {
        "question": "2个苹果，每个4元",
        "answer": {"total": 8, "said": "8", "apple": ["便宜", 1, None]},
        "language": "zh",
        "group": "apple 2 4",
    } in rows
    assert len({row["group"] for row in rows}) == 12
    with pytest.raises(DataError, match=r"makes only about 24 different rows, 25 were asked for\. Ask for fewer"):
        rows_of(shop, 25)


def test_the_same_seed_gives_the_same_rows_and_another_others(shop: Path) -> None:
    first, again, other = (list(islice(expand(shop, 20, seed=seed), 10)) for seed in (3, 3, 4))
    assert first == again != other


def test_another_value_differs_and_where_it_is_asked_for_in_what_belongs_to_it(tmp_path: Path, shop: Path) -> None:
    fields = {"first": "{fruit:value}", "second": "{other:value}"}
    slots = yaml.safe_load(SHOP)["slots"]
    pairs = {(row["first"], row["second"]) for row in rows_of(with_slots(shop, slots, fields), 4)}
    assert pairs == {("apple", "pear"), ("cherry", "pear"), ("pear", "apple"), ("pear", "cherry")}
    # the slot that is drawn from comes first, whichever of the two is said first
    with_slots(shop, slots, {"second": "{other:value}", "first": "{fruit:value}"}, only={"fruit": ["pear"]})
    assert {row["second"] for row in rows_of(shop, 2)} == {"apple", "cherry"}
    with pytest.raises(DataError, match="only about 2 different rows"):
        rows_of(shop, 3)


def test_a_slot_is_the_same_wherever_it_stands(tmp_path: Path) -> None:
    slots = {"word": {"values": [{"value": 1, "en": ["one", "single"], "zh": ["一", "单"]}]}}
    path = with_slots(tmp_path / "t.yaml", slots, {"text": "{word} {word}", "quote": "{word}"}, group="{word:words}")
    rows = rows_of(path, 4)
    assert all(row["text"] == f"{row['quote']} {row['quote']}" and row["group"] == row["quote"] for row in rows)
    assert {row["quote"] for row in rows} == {"one", "single", "一", "单"}


def test_without_a_group_every_row_is_its_own(tmp_path: Path) -> None:
    path = with_slots(tmp_path / "t.yaml", {"n": {"range": [1, 5]}}, {"a": "{n}"}, languages=["zh"])
    assert sorted(json.loads(row["group"])["a"] for row in rows_of(path, 5)) == ["1", "2", "3", "4", "5"]


def test_no_value_left_names_the_slot_and_the_kind(tmp_path: Path) -> None:
    slots = {"n": {"range": [1, 2]}, "m": {"another": "n"}, "k": {"another": "n"}}
    path = with_slots(tmp_path / "t.yaml", slots, {"a": "{n}{m}{k}"})
    with pytest.raises(DataError, match=r"rows 'only': no value is left for the slot 'k', which must differ from n, m"):
        rows_of(path, 1)


@pytest.mark.parametrize(
    ("expression", "value"),
    [
        ("a + b * 2", 11),
        ("-a // 2 % 5", 3),
        ("(a - b) * b", -4),
        ("a if a > b else b", 4),
        ("'x' if a == b or not (a < b) else 'y'", "y"),
        ("a < b < 5 and word == 'cat'", True),
        ("a < b < 4", False),
        ("a != b and word", True),
    ],
)
def test_expressions_are_those_of_arithmetic(expression: str, value: object) -> None:
    assert _arithmetic.evaluate(expression, {"a": 3, "b": 4, "word": "cat"}.__getitem__) == value


@pytest.mark.parametrize(
    "expression",
    [
        "__import__('os').getcwd()",
        "a.__class__",
        "a[0]",
        "[a for a in (1,)]",
        "lambda: 1",
        "9 ** 9 ** 9",
        "1 << 99999",
        "f'{a}'",
        "(a := 1)",
        "1.5",
        "None",
        "a; b",
        "a +",
        "a / b",
        "(" * 500 + "a" + ")" * 500,
    ],
)
def test_what_is_no_arithmetic_is_refused_before_anything_is_computed(tmp_path: Path, expression: str) -> None:
    slots = {"a": {"range": [1, 2]}, "b": {"range": [1, 2]}, "c": {"compute": expression}}
    with pytest.raises(DataError, match=r"t\.yaml: .*(holds|is no expression)"):
        load_row_grammar(with_slots(tmp_path / "t.yaml", slots, {"x": "{c}"}))


@pytest.mark.parametrize(
    ("expression", "told"), [("a // (a - a)", "division"), ("'x' * a", "'x' is no number"), ("a < 'x'", "no number")]
)
def test_what_cannot_be_computed_names_the_slot(tmp_path: Path, expression: str, told: str) -> None:
    slots = {"a": {"range": [1, 2]}, "c": {"compute": expression}}
    with pytest.raises(DataError, match=f"slot 'c': .* cannot be computed: .*{told}"):
        rows_of(with_slots(tmp_path / "t.yaml", slots, {"x": "{c}"}), 1)


def test_a_computed_value_is_one_of_those_that_are_listed(tmp_path: Path) -> None:
    slots = {"a": {"range": [3, 3]}, "c": {"compute": "a", "values": [1, 2]}}
    with pytest.raises(DataError, match=r"slot 'c': computed 3; expected one of 1, 2\."):
        rows_of(with_slots(tmp_path / "t.yaml", slots, {"x": "{c}"}), 1)


@pytest.mark.parametrize(
    ("old", "new", "told"),
    [
        ("{count} {fruit:many}", "{cuont} {fruit:many}", "rows 'cost' uses the slot 'cuont', which is not defined"),
        ("compute: count * price", "compute: count * prize", "slot 'cost', compute uses the slot 'prize'"),
        ("{count} {fruit:many}", "{count} {fruit:most}", "'most' of the slot 'fruit', but its value 'apple' has no"),
        ('"{cost:value}"', '"{cost:many}"', "'many' of the slot 'cost', but numbers have no such entry under 'also'"),
        ("another: fruit", "another: fruits", "slot 'other' uses the slot 'fruits'"),
        ("another: fruit, ", "another: cost, ", "slot 'other' is another 'cost', which is not drawn itself"),
        ("en: apple,", 'en: "{other}",', "the slot 'fruit' needs itself: fruit -> other -> fruit"),
        ("share: 1", "share: 1\n    only: {fruit: [plum]}", "rows 'cost' allows unknown values of 'fruit'"),
        ("share: 1", "share: 1\n    only: {cost: [8]}", "'cost', which is computed"),
        ("value: pear", "value: apple", "slot 'fruit' has the value 'apple' twice"),
        ("  count:", "  language: {range: [1, 2]}\n  count:", "a slot is named 'language'"),
        ("range: [4, 5]", "range: [5, 4]", r"slots\.price: range is \[smallest, largest\]; found \[5, 4\]"),
        ("range: [4, 5]", "range: [4, 5], compute: count", "a slot has values, range, another or compute"),
        ("share: 1", "share: 0", r"rows\.0\.share"),
        ("share: 1", "share: 1\n    colour: red", "there is no such key"),
        ('zh: "{count}个{fruit}，每个{price}元"}', "zh: []}", r"found \[\] under 'zh'; expected a text or a list"),
    ],
)
def test_a_fault_is_named_with_its_place(shop: Path, old: str, new: str, told: str) -> None:
    with pytest.raises(DataError, match=told):
        load_row_grammar(changed(shop, old, new))


def made_by(path: Path) -> tuple[DataTemplate, RowMapper, Path]:
    """A starter recipe's template, that template made ready, and its grammar."""
    settings = load_recipe(path).data
    given = settings.template
    template = columns(**given) if isinstance(given, dict) else load(find(given))
    mapper = RowMapper(template, system_prompt=settings.system_prompt, group_by=settings.group_by)
    return template, mapper, GRAMMARS / f"{settings.path.partition(':')[2]}.grammar.yaml"


def conversations(path: Path, count: int) -> Iterator[Conversation]:
    _, mapper, grammar = made_by(path)
    for number, row in enumerate(expand(grammar, count, seed=1)):
        assert not SLOT.search(json.dumps(row, ensure_ascii=False)), f"a slot is left in {row}"
        yield mapper.conversation(Row(row, f"row {number}"))


@pytest.mark.parametrize("path", STARTERS, ids=lambda path: path.stem)
def test_every_row_of_a_starter_recipe_fits_its_template(path: Path) -> None:
    template, _, grammar = made_by(path)
    languages_of: dict[str, set[str]] = {}
    for conversation in conversations(path, 1500):
        texts = [message.content for message in conversation.messages if message.role != "system"]
        assert all(text.strip() == text != "" for text in texts)
        assert not template.labels or conversation.answer in template.labels
        language = "zh" if any("一" <= letter <= "鿿" for text in texts for letter in text) else "en"
        languages_of.setdefault(conversation.group, set()).add(language)
    assert len(languages_of) > 100
    if any(kind.languages == LANGUAGES for kind in load_row_grammar(grammar).rows):
        both = sum(languages == {"en", "zh"} for languages in languages_of.values())
        assert both > 10, "the languages share no groups: what is held out in one is trained on in the other"


def test_every_row_grammar_is_used_by_a_recipe() -> None:
    recipes = "".join(path.read_text(encoding="utf-8") for path in shipped.folder("recipes").glob("*.yaml"))
    unused = [
        path.name for path in ROW_GRAMMARS if f"generated:{path.name.removesuffix('.grammar.yaml')}" not in recipes
    ]
    assert unused == []


@pytest.fixture(scope="module")
def never_read() -> frozenset[int]:
    """The tokens that the starter's training text holds never or hardly ever: their embeddings are all but the same.

    Input and output share them, so that no training of other weights can tell such a token from another. "@" is one.
    """
    import torch
    from safetensors.torch import load_file

    table = load_file(DEFAULT_OUT / "model.safetensors")["model.embed_tokens.weight"].float()
    at = table[load_tokenizer(DEFAULT_OUT).convert_tokens_to_ids("@")]
    alike = torch.nn.functional.cosine_similarity(table, at[None], dim=1) > 0.9
    found = frozenset(torch.nonzero(alike).flatten().tolist())
    assert 1000 < len(found) < 1500
    return found


@pytest.mark.parametrize("path", STARTERS, ids=lambda path: path.stem)
def test_the_starter_can_write_every_answer(path: Path, never_read: frozenset[int]) -> None:
    tokenizer = load_tokenizer(DEFAULT_OUT)
    for conversation in conversations(path, 600):
        for message in conversation.messages:
            if message.role == "assistant":
                ids = tokenizer(message.content, add_special_tokens=False)["input_ids"]
                assert not never_read & {*ids}, (message.content, [tokenizer.decode(i) for i in never_read & {*ids}])
