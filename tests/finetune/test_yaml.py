"""YAML as people write it by hand: what they forgot to quote is said, dates stay text, merge keys work."""

import pytest
import yaml

from export.errors import RecipeError
from finetune.yaml_text import parse_yaml, read_yaml


@pytest.mark.parametrize(
    "text",
    ["text: {{ question }}", "turns:\n  - text: {{ a }} and {{ b }}\n", "text: {% if a %}b{% endif %}", "{{x}}"],
)
def test_unquoted_jinja_says_what_to_quote(text):
    with pytest.raises(RecipeError, match=r"Quote text that begins with '\{\{'"):
        parse_yaml(text, "robot.yaml")


def test_an_ordinary_slip_says_nothing_of_jinja():
    with pytest.raises(RecipeError) as caught:
        parse_yaml("a: [1\nb: 2", "robot.yaml")
    assert "not YAML" in str(caught.value)
    assert "Quote" not in str(caught.value)


def test_dates_stay_text_whatever_the_month():
    assert parse_yaml("[2020-12-01, 2020-13-01, 2020-01-01 10:00:00]", "x") == [
        "2020-12-01",
        "2020-13-01",
        "2020-01-01 10:00:00",
    ]
    assert yaml.safe_load("2020-12-01") != "2020-12-01", "other users of PyYAML keep its dates"


def test_merge_keys_do_what_pyyaml_does():
    text = "base: &base {rank: 8, alpha: 16}\nmine:\n  <<: *base\n  rank: 4\nboth: {<<: [*base, {alpha: 1, beta: 2}]}\n"
    assert parse_yaml(text, "x") == yaml.safe_load(text)
    assert parse_yaml(text, "x")["mine"] == {"rank": 4, "alpha": 16}


@pytest.mark.parametrize("text", ["a: 1\na: 2", "a: &a {x: 1}\nb: {<<: *a, <<: *a}"])
def test_repeats_are_refused_beside_merges_too(text):
    with pytest.raises(RecipeError, match="stands twice"):
        parse_yaml(text, "x")


@pytest.mark.parametrize("text", ["!!bool x", "!!int x", "!!timestamp x", "a: &a [*a]" + "[" * 5000, "9" * 5000])
def test_values_that_cannot_be_made_are_refused(text):
    with pytest.raises(RecipeError, match=r"x\.yaml"):
        parse_yaml(text, "x.yaml")


@pytest.mark.parametrize(("text", "said"), [("", "is empty"), ("# words\n", "is empty"), ("- a\n", "holds a list")])
def test_a_file_of_another_shape_is_named_in_words(tmp_path, text, said):
    path = tmp_path / "x.yaml"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(RecipeError, match=f"{said}; expected keys and values"):
        read_yaml(path)


def test_a_path_through_a_file_is_refused(tmp_path):
    (tmp_path / "x.yaml").write_text("a: 1", encoding="utf-8")
    with pytest.raises(RecipeError, match="cannot be read"):
        read_yaml(tmp_path / "x.yaml" / "y.yaml")
