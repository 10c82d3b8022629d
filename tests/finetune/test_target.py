"""A recipe with a target: what it may say, and (slow) the whole way from it to a judged mix."""

import json

import pytest

from export.device.budget import Limits
from export.device.memory import MEMORY_ERROR_SHARE
from export.formats import RowsWanted
from export.formats.gguf import Gguf
from export.formats.target import CANDIDATES, Target, _at_least
from finetune import cli
from finetune.device_target import device_budget, room_of
from finetune.recipe import load
from tests.device_profiles import a_device

RECIPE = """
name: mix
model: {name: starter}
data: {path: generated:cleaning_robot, template: cleaning_robot, rows: 500, held_out_share: 0.15}
train: {max_steps: 12, batch_size: 16, learning_rate: 4e-3, lora: {rank: 16, alpha: 32}}
export:
  gguf: {types: [q4_0], importance: domain, calibration_rows: 16}
  target:
    bits_per_weight: 4.6
    calibration_rows: 16
    search_rows: 12
    bands: 1
    presets: 1
    moves: 2
    types: [q8_0, q5_0, iq4_nl, q4_k, q3_k]
check: {rows: 12, max_new_tokens: 16}
"""


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({}, "one of size_bytes, bits_per_weight and device"),
        ({"size_bytes": 10, "bits_per_weight": 4}, "one of size_bytes, bits_per_weight and device"),
        ({"bits_per_weight": 0}, "greater than 0"),
        ({"bits_per_weight": 4, "types": ["q8_o"]}, "Did you mean 'q8_0'"),
        ({"bits_per_weight": 4, "types": ["q4_k_m"]}, "unknown type"),
    ],
)
def test_a_target_says_one_size_and_types_that_are_known(settings, words):
    with pytest.raises(ValueError, match=words):
        Target(**settings)


def test_a_mix_is_named_by_what_was_asked_for():
    assert Target(bits_per_weight=4.3).variants() == ("gguf-mix-4.3",)
    assert Target(size_bytes=350_000_000).variants() == ("gguf-mix-350mb",)


def test_importance_is_shared_with_files_that_ask_for_as_many_rows():
    target, gguf = Target(bits_per_weight=4.3, calibration_rows=9), Gguf(importance="domain", calibration_rows=9)
    (shared,) = gguf.ingredients()
    assert shared in target.ingredients()
    assert target.settings_for(shared) == gguf.settings_for(shared)
    assert target.rows_wanted(shared) == gguf.rows_wanted(shared) == RowsWanted(9)
    assert target.settings_for("gguf-f16") == gguf.settings_for("gguf-f16")
    assert target.rows_wanted("gguf-f16") == RowsWanted()


def test_a_mix_promises_no_more_bits_than_its_smallest_type_has():
    assert _at_least({"a": "q8_0", "b": "q3_k", "c": "iq4_nl"}) == "q3_k_m"
    assert _at_least({"a": "q8_0", "b": "iq4_nl"}) == "iq4_nl"


def test_candidates_are_types_and_file_types_that_llama_cpp_knows():
    import gguf
    import llama_cpp

    for stored_as, file_type in CANDIDATES.items():
        assert stored_as.upper() in gguf.GGMLQuantizationType.__members__
        assert hasattr(llama_cpp, f"LLAMA_FTYPE_MOSTLY_{file_type.upper()}")


@pytest.mark.slow
def test_from_a_recipe_to_a_judged_mix(tmp_path, capsys):
    (tmp_path / "recipe.yaml").write_text(RECIPE, encoding="utf-8")
    run = tmp_path / "run"
    command = ["run", str(tmp_path / "recipe.yaml"), "--out", str(run)]
    status = cli.main(command)
    report = json.loads((run / "report.json").read_text(encoding="utf-8"))
    assert status == cli.EXIT_STATUS_OF[report["verdict"]]
    subjects = {subject["name"]: subject for subject in report["subjects"]}
    mix = subjects["gguf/mix-4.6"]
    assert 4.4 < mix["bits_per_weight"] <= 4.6
    assert mix["importance"]["rows"] == subjects["gguf/q4_0"]["importance"]["rows"] == 16
    assert mix["fallbacks"] == []
    assert "gguf/importance-16" not in subjects

    # it is what it should be, and was chosen on rows that do not judge it
    findings = [finding for finding in report["findings"] if finding["subject"] == "gguf/mix-4.6"]
    assert [finding["what"] for finding in findings if not finding["ok"]] == []
    record = json.loads((run / "export/gguf-mix-4.6/search.json").read_text(encoding="utf-8"))
    assert record["size_bytes"] == mix["size_bytes"] <= record["budget_bytes"]
    from export.checks import Items
    from export.quantization_record import row_sha256

    items = Items.model_validate_json((run / "check/items.json").read_text(encoding="utf-8"))
    assert len(record["rows_sha256"]) == 12
    assert not {row_sha256(item.ids) for item in items.items} & {*record["rows_sha256"]}
    limit = next(c for c in report["comparisons"] if c["after"] == "gguf/mix-4.6" and c["check"] == "kl_mean")
    assert limit["limit"] == 0.05  # that of fewer than 6 bits, which the name does not say

    # a second run does nothing again, and does not take the importance data for a leftover
    capsys.readouterr()
    assert cli.main(command) == status
    said = capsys.readouterr()
    assert "from an earlier run" not in said.out + said.err
    assert "search:" not in said.out + said.err
    assert not [*(run / "export").glob(".search-*/**/*.gguf")]


@pytest.mark.slow
def test_from_a_device_to_a_file_that_it_has_room_for(tmp_path, capsys):
    before, after = RECIPE.partition("  target:")[0], RECIPE[RECIPE.index("check:") :]
    recipe, run = tmp_path / "recipe.yaml", tmp_path / "run"
    command = ["run", str(recipe), "--out", str(run)]
    recipe.write_text(before.replace("q4_0", "") + after, encoding="utf-8")
    cli.main(command)
    plenty = device_budget(
        run / "export/gguf-f16/model-f16.gguf", a_device(400), Limits(context_tokens=256), run, types=["q8_0"]
    )
    beside = 400e6 / (1 + MEMORY_ERROR_SHARE) - plenty.by_memory_bytes
    small = a_device((beside + 3.4e6) * (1 + MEMORY_ERROR_SHARE) / 1e6).model_dump(mode="json")
    (tmp_path / "board.yaml").write_text(json.dumps(small), encoding="utf-8")
    target = f"""  target:
    {{device: {tmp_path / "board.yaml"}, context_tokens: 256, calibration_rows: 16, search_rows: 12, bands: 1,
    presets: 1, moves: 1, types: [q8_0, q5_0, iq4_nl, q3_k]}}
"""
    recipe.write_text(before.replace("q4_0", "") + target + after, encoding="utf-8")
    capsys.readouterr()
    status = cli.main(command)
    assert "memory binds" in capsys.readouterr().out
    (mix,) = (run / "export/gguf-mix-board").glob("*.gguf")
    assert 3.0e6 < mix.stat().st_size < 4.3e6  # a cache in 8 bits leaves more than the 3.4 MB
    report = json.loads((run / "report.json").read_text(encoding="utf-8"))
    assert "gguf/mix-board" in {subject["name"] for subject in report["subjects"]}
    room = room_of(run, "gguf/mix-board")
    assert (room.device, room.cache_type, room.context_tokens) == ("a small board", "q8_0", 256)
    assert "room for gguf-mix-board" in {stage["stage"] for stage in report["stages"]}
    assert room_of(run, "gguf/f16") is None

    # what a vocabulary takes is measured again, and differs by some pages: no reason to search again
    assert cli.main(command) == status
    assert "search:" not in capsys.readouterr().out


def test_the_recipe_is_valid(tmp_path):
    (tmp_path / "recipe.yaml").write_text(RECIPE, encoding="utf-8")
    recipe = load(tmp_path / "recipe.yaml")
    assert [name for step in recipe.export.steps() for name in step.variants()] == [
        "gguf-f16",
        "gguf-q4_0",
        "gguf-mix-4.6",
    ]
