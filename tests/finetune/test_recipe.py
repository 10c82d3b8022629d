"""What a recipe refuses and how it says so, and what every shipped one must be."""

import json
from pathlib import Path

import pytest

from export.compare import Limits
from export.errors import RecipeError
from export.formats.target import Target
from export.plugins import Chosen, names
from finetune import shipped
from finetune.data import Contract
from finetune.documentation import recipe_table
from finetune.recipe import GeneralSettings, Recipe, dump, json_schema, load
from finetune.yaml_text import parse_yaml

GOOD = """\
name: test
data: {path: rows.jsonl, template: question_answer}
train: {learning_rate: 2e-4}
export: {gguf: {types: [q8_0]}, gptq: {bits: 4}}
"""


def _recipe(tmp_path, text=GOOD):
    path = tmp_path / "recipe.yaml"
    path.write_text(text, encoding="utf-8")
    return path


def _mistakes(tmp_path, text, overrides=()):
    with pytest.raises(RecipeError) as caught:
        load(_recipe(tmp_path, text), overrides)
    return str(caught.value)


def test_two_e_minus_four_is_a_number(tmp_path):
    assert load(_recipe(tmp_path)).train.learning_rate == 2e-4


def test_paths_are_relative_to_the_recipe_and_those_of_overrides_to_the_working_directory(tmp_path, monkeypatch):
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    monkeypatch.chdir(elsewhere)
    assert load(_recipe(tmp_path)).data.path == str(tmp_path / "rows.jsonl")
    assert load(_recipe(tmp_path), ["data.path=mine.jsonl"]).data.path == str(elsewhere / "mine.jsonl")
    assert load(_recipe(tmp_path), ["data.path=hf:owner/name"]).data.path == "hf:owner/name"


def test_a_device_profile_of_ones_own_is_found_beside_the_recipe_too(tmp_path, monkeypatch):
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    monkeypatch.chdir(elsewhere)
    with_device = GOOD.replace("export: {", "export: {target: {device: ./board.yaml}, ")
    named = ["export.target.device=raspberry_pi_5_4gb"]
    assert _device(load(_recipe(tmp_path, with_device))) == str(tmp_path / "board.yaml")
    assert _device(load(_recipe(tmp_path, with_device), named)) == "raspberry_pi_5_4gb"


def _device(recipe):
    (device,) = (step.device for step in recipe.export.steps() if isinstance(step, Target))
    return device


def test_keys_with_null_take_settings_away(tmp_path):
    assert load(_recipe(tmp_path), ["export={gptq: null, gguf: {types: [q8_0]}}"]).export.named().keys() == {"gguf"}
    assert not load(_recipe(tmp_path), ["export={gptq: null, gguf: null}"]).export.named()


def test_a_placeholder_that_yaml_reads_as_keys_is_told_to_be_quoted(tmp_path):
    assert "quote it: --set 'data.system_prompt=\"{speech}\"'" in _mistakes(
        tmp_path, GOOD, ["data.system_prompt={speech}"]
    )


def test_nothing_behind_the_equals_sign_is_the_empty_text_where_a_key_holds_text(tmp_path):
    assert load(_recipe(tmp_path), ["data.system_prompt="]).data.system_prompt == ""
    assert load(_recipe(tmp_path), ["data.system_prompt=null"]).data.system_prompt is None


@pytest.mark.parametrize("key", ["train.max_steps", "export.gguf", "data.path", "data.near_copies", "data.nothing"])
def test_nothing_behind_the_equals_sign_is_a_mistake_elsewhere(tmp_path, key):
    told = _mistakes(tmp_path, GOOD, [f"{key}="])
    assert f"--set {key}=: found nothing behind the '='" in told
    assert f"{key}=null" in told


def test_all_mistakes_are_told_at_once_with_their_place_and_the_nearest_name(tmp_path):
    text = """\
name: test
modle: {}
data: {path: rows.jsonl, template: question_answer, max_tokns: 3}
train: {lora: {rnak: 4}, epochs: many}
export: {gguf: {types: [q4_k_n]}, gtpq: {}}
"""
    told = _mistakes(tmp_path, text)
    assert "5 mistakes" not in told
    for expected in (
        "6 mistakes",
        "modle: there is no such key. Did you mean 'model'?",
        "data.max_tokns: there is no such key. Did you mean 'max_tokens'?",
        "train.lora.rnak: there is no such key. Did you mean 'rank'?",
        "train.epochs",
        "export.gtpq: there is no such key. Did you mean 'gptq'?",
        "q4_k_m",
    ):
        assert expected in told


def test_a_key_that_stands_twice_is_refused_with_its_lines(tmp_path):
    told = _mistakes(tmp_path, GOOD + "name: again\n")
    assert "'name' stands twice, in lines 1 and 5" in told


def test_a_missing_key_is_named(tmp_path):
    assert "data.path: this key is needed and missing" in _mistakes(
        tmp_path, "name: test\ndata: {template: question_answer}\ntrain: {}\n"
    )


def test_overrides_reach_nested_keys_and_make_sections(tmp_path):
    recipe = load(_recipe(tmp_path), ["train.lora.rank=4", "export.gguf.types=[q4_0]", "check.rows=7"])
    assert (recipe.train.lora.rank, recipe.check.rows) == (4, 7)
    assert recipe.export.gguf.types == ("q4_0",)


def test_a_step_can_be_switched_off(tmp_path):
    recipe = load(_recipe(tmp_path), ["export.gptq=null", "check.measures.stops=null"])
    assert [type(step).__name__ for step in recipe.export.steps()] == ["Gguf"]
    assert "Stops" not in [type(step).__name__ for step in recipe.check.measures.steps()]


@pytest.mark.parametrize("override", ["train.max_steps", "=3", "a..b=1", "name.x=1"])
def test_an_override_that_makes_no_sense_is_refused(tmp_path, override):
    assert "--set" in _mistakes(tmp_path, GOOD, [override])


def test_a_misspelt_override_is_a_mistake_of_the_recipe(tmp_path):
    assert "Did you mean 'max_steps'" in _mistakes(tmp_path, GOOD, ["train.max_step=3"])


def test_a_resolved_recipe_loads_as_itself(tmp_path):
    recipe = load(_recipe(tmp_path))
    (tmp_path / "resolved.yaml").write_text(dump(recipe), encoding="utf-8")
    assert load(tmp_path / "resolved.yaml") == recipe


@pytest.mark.parametrize("text", ["- a\n- b\n", "just words", "", "a: [1"])
def test_what_is_no_recipe_is_refused(tmp_path, text):
    assert "recipe.yaml" in _mistakes(tmp_path, text)


def test_the_json_schema_describes_every_key():
    def leaves(schema, definitions):
        yield from schema.get("properties", {}).items()
        for definition in definitions.values():
            yield from definition.get("properties", {}).items()

    schema = json_schema()
    json.dumps(schema)
    undescribed = [name for name, field in leaves(schema, schema["$defs"]) if not field.get("description")]
    assert undescribed == []


def test_the_recipe_stays_small():
    def count(model):
        total = 0
        for field in model.model_fields.values():
            inner = [
                a for a in (field.annotation, *getattr(field.annotation, "__args__", ())) if hasattr(a, "model_fields")
            ]
            total += count(inner[0]) if inner and not issubclass(inner[0], Chosen) else 1
        return total

    # Keys that people set. The gate's twelve limits and the contract's thirteen are numbers they may leave alone;
    # general's are the same keys once more, but for its share; a format's or a check's own keys belong to who names it.
    assert count(Recipe) - count(Limits) * 2 - count(Contract) - count(GeneralSettings) + 1 <= 52


@pytest.mark.parametrize("path", sorted(shipped.folder("recipes").glob("*.yaml")), ids=lambda path: path.stem)
def test_every_shipped_recipe_is_valid_and_opens_as_a_document(path: Path):
    assert load(path).name == path.stem
    opening = path.read_text(encoding="utf-8").partition("\nname: ")[0].splitlines()
    assert all(line.startswith("#") for line in opening) and len(opening) <= 24
    said = [line.split()[1] for line in opening if line.startswith("# ") and line.split()[1].endswith(":")]
    assert said[0] == "What:" and {"On:", "Rows:", "Estimate:"} < set(said) and said[-1] == "Run:"


def test_yaml_floats_need_no_dot():
    assert parse_yaml("[1e3, 2E-4, .5, 1., 7, 09:30, 1.0.0]", "test") == [1e3, 2e-4, 0.5, 1.0, 7, "09:30", "1.0.0"]


@pytest.mark.parametrize("targets", ["7", "[1, 2]", "{a: 1}"])
def test_what_fits_no_branch_of_a_union_is_one_mistake(tmp_path, targets):
    told = _mistakes(tmp_path, GOOD, [f"train.lora.targets={targets}"])
    assert "1 mistake:" in told
    assert "train.lora.targets: expected 'all-linear' or a list of names" in told
    assert "literal" not in told and "tuple" not in told


def test_a_section_of_the_wrong_shape_is_told_without_python(tmp_path):
    text = GOOD.replace("export: {gguf: {types: [q8_0]}, gptq: {bits: 4}}", "export: {gptq: true, gguf: {types: 5}}")
    told = _mistakes(tmp_path, text)
    assert "export.gptq: expected keys and values; found True." in told
    assert "export.gguf.types: expected a list; found 5" in told


def test_a_seed_is_one_that_every_library_takes(tmp_path):
    assert load(_recipe(tmp_path), [f"seed={2**32 - 1}"]).seed == 2**32 - 1
    assert "seed" in _mistakes(tmp_path, GOOD, [f"seed={2**32}"])


def test_shares_that_leave_nothing_are_shown_alone(tmp_path):
    told = _mistakes(tmp_path, GOOD, ["data.valid_share=0.6", "data.held_out_share=0.5"])
    assert told.splitlines()[1:] == [
        "  data: valid_share 0.6 and held_out_share 0.5 leave nothing to train on; their sum must be below 1.",
        "The rows, the template and the models were not looked at yet.",
    ]


def test_one_file_type_needs_no_list(tmp_path):
    assert load(_recipe(tmp_path), ["export.gguf.types=q8_0"]).export.gguf.types == ("q8_0",)
    told = _mistakes(tmp_path, GOOD, ["export.gguf.types=q8_1"])
    assert "export.gguf.types: unknown GGUF file type 'q8_1'. Did you mean 'q8_0'?" in told


@pytest.mark.parametrize("override", ["train={{x}}", "data.path=~no-such-user/x"])
def test_an_override_of_odd_text_is_refused(tmp_path, override):
    assert override.partition("=")[0] in _mistakes(tmp_path, GOOD, [override])


def test_the_table_lists_every_step_and_whether_it_is_on():
    rows = [line.split(" | ") for line in recipe_table().splitlines()[2:]]
    by_key = {row[0].strip("| `"): row[1] for row in rows}
    asked_for = {"label", "number", "fields", "span", "overlap", "thinking"}
    for package, section in (("formats", "export"), ("checks", "check.measures")):
        for name in names(f"export.{package}"):
            on = section == "check.measures" and name not in asked_for
            assert by_key[f"{section}.{name}"] == ("on" if on else "off")


@pytest.mark.parametrize("path", sorted(shipped.folder("recipes").glob("*.yaml")), ids=lambda path: path.stem)
def test_the_checks_for_rows_of_a_kind_are_made_where_a_recipe_names_them_alone(path: Path):
    named = parse_yaml(path.read_text(encoding="utf-8"), path.name)["check"].get("measures") or {}
    made = {type(step).__module__.rpartition(".")[2] for step in load(path).check.measures.steps()}
    always = {"behaviour", "divergence", "perplexity", "resources", "safety", "stops", "exact_match"}
    assert made == (always | named.keys()) - {name for name, settings in named.items() if settings is None}


def test_a_check_that_is_off_is_made_when_it_is_named(tmp_path):
    recipe = load(_recipe(tmp_path), ["check.measures.number={}"])
    assert "LastNumber" in [type(step).__name__ for step in recipe.check.measures.steps()]


def test_a_schemas_path_is_the_recipes_and_an_inline_one_stays(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    here = load(_recipe(tmp_path, GOOD + "check:\n  measures:\n    fields: {json_schema: sub/answer.json}\n"))
    assert here.check.measures.fields.json_schema == str(tmp_path / "sub/answer.json")
    inline = load(_recipe(tmp_path), ["check.measures.fields.json_schema={type: object}"])
    assert inline.check.measures.fields.json_schema == {"type": "object"}


def test_training_is_lora_unless_another_method_is_named(tmp_path):
    assert load(_recipe(tmp_path)).train.method == "sft"
    assert load(_recipe(tmp_path), ["train={}"]).train.lora.rank == 16
    full = load(_recipe(tmp_path, GOOD.replace("train: {learning_rate: 2e-4}", "train: {method: full}")))
    assert (full.train.method, full.train.learning_rate) == ("full", 1e-5)


def test_mistakes_in_training_are_told_without_the_methods_name_in_their_place(tmp_path):
    text = GOOD.replace("train: {learning_rate: 2e-4}", "train: {method: full, lora: {rank: 4}, epochs: many}")
    told = _mistakes(tmp_path, text)
    assert "train.lora: there is no such key." in told
    assert "freeze_embeddings" in told
    assert "train.epochs: " in told
    assert "full.epochs" not in told
    told = _mistakes(tmp_path, GOOD, ["train.method=fall"])
    assert "train.method: there is no method called 'fall'. Did you mean 'full'? Known: full, sft." in told
    assert "train: expected keys and values; found 3" in _mistakes(tmp_path, GOOD, ["train=3"])


def test_the_table_says_which_training_keys_are_whose():
    rows = {row.split(" | ")[0].strip("| `"): row for row in recipe_table().splitlines()}
    assert "| `sft` |" in rows["train.method"]
    assert "`0.0002` (sft), `1e-05` (full)" in rows["train.learning_rate"]
    assert "Only for full." in rows["train.freeze_embeddings"]
    assert "Only for sft." in rows["train.lora.rank"]
    assert "Only" not in rows["train.epochs"]
    assert "| `None` |" in rows["check.thinking_budget"]
    assert "| needed |" in rows["check.thinking_budget.max_thinking_tokens"]


def test_a_measure_of_thoughts_needs_a_budget_for_them(tmp_path):
    told = _mistakes(tmp_path, GOOD, ["check.measures.thinking={}"])
    assert "measures.thinking tells what became of thoughts under thinking_budget, which is not set" in told
    budget = "check.thinking_budget={max_thinking_tokens: 64, waits: 1}"
    recipe = load(_recipe(tmp_path), ["check.measures.thinking={}", budget])
    assert recipe.check.thinking_budget.wait == "Wait"
    assert "check.thinking_budget.max_thinking_tokens: this key is needed" in _mistakes(
        tmp_path, GOOD, ["check.thinking_budget={waits: 1}"]
    )
    assert "check.thinking_budget.end" in _mistakes(
        tmp_path, GOOD, ["check.thinking_budget={max_thinking_tokens: 9, end: ' '}"]
    )


@pytest.mark.parametrize(
    ("train", "valid"),
    [
        ("{}", True),
        ("{lora: {rank: 4}}", True),
        ("{method: sft, quantization: nf4}", True),
        ("{method: full, freeze_embeddings: true}", True),
        ("{method: full, lora: {rank: 4}}", False),
        ("{freeze_embeddings: true}", False),
        ("{method: other}", False),
    ],
)
def test_an_editors_schema_takes_what_a_recipe_takes(tmp_path, train, valid):
    from jsonschema import Draft202012Validator

    text = f"name: test\ndata: {{path: rows.jsonl, template: question_answer}}\ntrain: {train}\n"
    content = parse_yaml(text, "test")
    assert Draft202012Validator(json_schema()).is_valid(content) is valid
    if valid:
        load(_recipe(tmp_path, text))
    else:
        _mistakes(tmp_path, text)


def test_a_truth_value_for_a_text_is_told_to_be_quoted(tmp_path):
    with pytest.raises(RecipeError, match=r"labels\.0: expected text; found True\. Quote it, as in 'yes'\."):
        load(_recipe(tmp_path), ["check.measures.label={labels: [yes, maybe]}"])


def test_a_folder_in_place_of_its_recipe_is_told_with_the_file(tmp_path):
    (tmp_path / "recipe.yaml").write_text("name: x", encoding="utf-8")
    with pytest.raises(RecipeError, match=r"is a folder; expected a file\. Name .*recipe\.yaml\."):
        load(tmp_path)
    (tmp_path / "other").mkdir()
    with pytest.raises(RecipeError, match="Name a file in it"):
        load(tmp_path / "other")
