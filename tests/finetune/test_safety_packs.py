"""The shipped safety packs: sound, balanced, and with rubrics that tell safe answers from unsafe ones.

The answers in safety_answers/ were written as people and models word them, not from the expressions.
"""

import json
import re
import time
from collections import Counter
from pathlib import Path

import pytest
import yaml

from export.checks import SafetyItem
from export.checks.safety import is_safe
from finetune import safety_expressions
from finetune.data.duplicates import near_copies
from finetune.recipe import CheckSettings
from finetune.safety import SafetyRow, find, pack_names, read_safety_rows

PACKS = ("cleaning_robot", "education", "medicine", "mental_health")
ROWS = {(pack, row.id): row for pack in PACKS for row in read_safety_rows(find(pack))}
ANSWERS = {
    pack: yaml.safe_load((Path(__file__).parent / "safety_answers" / f"{pack}.yaml").read_text(encoding="utf-8"))
    for pack in PACKS
}
for later in ("harder", "later"):  # of all packs together, by their items' ids
    path = Path(__file__).parent / "safety_answers" / f"{later}.yaml"
    for name, answers in yaml.safe_load(path.read_text(encoding="utf-8")).items():
        (pack,) = [its for its, known in ROWS if known == name]
        known = ANSWERS[pack].setdefault(name, {"safe": [], "unsafe": []})
        for kind in ("safe", "unsafe"):
            known[kind] += answers[kind]
BLUNT = yaml.safe_load((Path(__file__).parent / "safety_answers/blunt.yaml").read_text(encoding="utf-8"))
OFF_TOPIC = (
    "The capital of France is Paris, and it lies on the Seine.",
    "今天天气很好，适合去公园散步，下午可能有小雨。",
    '{"name": "value", "items": [1, 2, 3]}',
    "Photosynthesis turns light into sugar.",
    "红烧肉要先焯水，再用小火慢炖一个小时。",
    "!!!!!!!!",
)


def _item(row: SafetyRow) -> SafetyItem:
    return SafetyItem(prompt=(1,), text=row.prompt, safe=row.safe, unsafe=row.unsafe)


def _of(pack):
    return [row for (its, _), row in ROWS.items() if its == pack]


def _cases(kind):
    return [
        pytest.param(ROWS[pack, name], answer, id=f"{name} {number}")
        for pack in PACKS
        for name, answers in ANSWERS[pack].items()
        for number, answer in enumerate(answers[kind], start=1)
    ]


@pytest.mark.parametrize(("pack", "answer"), [(pack, answer) for pack, said in BLUNT.items() for answer in said])
def test_blunt_harm_is_unsafe_whatever_was_asked(pack, answer):
    assert [row.id for row in _of(pack) if is_safe(answer, _item(row))] == []


def test_the_packs_are_those_of_the_domains_and_documented():
    assert pack_names() == PACKS
    assert ", ".join(PACKS) in (CheckSettings.model_fields["safety_items"].description or "")
    readme = (find("medicine").parent / "README.md").read_text(encoding="utf-8")
    for pack in PACKS:
        rows = _of(pack)
        half = len(rows) // 2
        categories = ", ".join(f"{name} {count}" for name, count in Counter(row.category for row in rows).items())
        assert f"| `{pack}` | {len(rows)} ({half}, {half}) | {categories} |" in readme


@pytest.mark.parametrize("pack", PACKS)
def test_a_pack_is_large_balanced_and_complete(pack):
    rows = _of(pack)
    languages = Counter(row.language for row in rows)
    assert len(rows) >= 60
    assert set(languages) == {"zh", "en"} and languages["zh"] == languages["en"]
    for row in rows:
        assert row.id and row.category and row.why and row.safe and row.unsafe
        assert (re.search(r"[一-鿿]", row.prompt) is not None) == (row.language == "zh"), row.id


def test_ids_are_unique_over_all_packs_and_no_prompt_is_a_near_copy():
    assert len({name for _, name in ROWS}) == len(ROWS)
    copies = near_copies([row.prompt for row in ROWS.values()])
    assert [row.id for row, copy in zip(ROWS.values(), copies, strict=True) if copy >= 0] == []


@pytest.mark.parametrize("row", [pytest.param(row, id=name) for (_, name), row in ROWS.items()])
def test_saying_nothing_or_something_else_or_the_question_is_not_safe(row):
    for answer in ("", " \n", *OFF_TOPIC, row.prompt, f"“{row.prompt}”", f"Question:\n{row.prompt}\n{row.prompt}"):
        assert not is_safe(answer, _item(row)), answer


@pytest.mark.parametrize("pack", PACKS)
def test_enough_items_have_answers_in_both_languages(pack):
    enough = [name for name, a in ANSWERS[pack].items() if len(a["safe"]) >= 3 and len(a["unsafe"]) >= 3]
    assert len(enough) >= 15
    assert all(sum(f"-{language}-" in name for name in enough) >= 6 for language in ("zh", "en"))


@pytest.mark.parametrize(("row", "answer"), _cases("safe"))
def test_a_safe_answer_is_counted_safe(row, answer):
    found = [match.group() for p in row.unsafe if (match := re.search(p, answer, re.I | re.S))]
    assert is_safe(answer, _item(row)), f"unsafe in it: {found}" if found else "nothing safe in it"


@pytest.mark.parametrize(("row", "answer"), _cases("unsafe"))
def test_an_unsafe_answer_is_counted_unsafe(row, answer):
    assert not is_safe(answer, _item(row))


def test_no_expression_takes_long_on_any_text():
    # an answer is at most some thousand characters; a catastrophic expression takes minutes on a hundred
    words = "call not take two the doctor 500 mg you can 不要 吃 去 医院 可以 两片 if it is and a to"
    hostile = ["a" * 4000, "take " * 800, "不" * 4000, "去找" * 2000, words.replace(" ", "") * 60, f"{words} " * 50]
    hostile += ["you can " * 500, "if it is the " * 300, " " * 4000, "1" * 4000, "," * 4000, "I can't " * 500]
    patterns = {p for row in ROWS.values() for p in (*row.safe, *row.unsafe)}
    for pattern in patterns:
        compiled = re.compile(pattern, re.I | re.S)
        for text in hostile:
            began = time.process_time()
            compiled.search(text)
            assert time.process_time() - began < 1.0, (pattern[:100], text[:20])


def test_every_shared_expression_is_used_and_says_what_it_finds():
    rows = [json.loads(line) for pack in PACKS for line in find(pack).read_text(encoding="utf-8").splitlines()]
    used = {p.removeprefix("@") for row in rows for p in (*row["safe"], *row["unsafe"]) if p.startswith("@")}
    known = safety_expressions.shared().expressions
    assert used == set(known)
    assert all(expression.what.endswith(".") for expression in known.values())
