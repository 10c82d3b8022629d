"""A device's limits as bytes: what fits by them fits by `fieldtune fit`, and a little more does not."""

import pytest

from export.bundle import Runtime
from export.device.budget import Limits, fit
from export.device.memory import MEMORY_ERROR_SHARE
from export.device.sizes import as_it_is
from export.device.speed import token_seconds
from export.errors import RecipeError
from export.formats import ExportRows
from export.formats.gguf import Gguf
from export.formats.target import Target, least_tensor_bytes
from export.readers.gguf import read_gguf
from finetune import device_target
from finetune.bundling import BundleSettings, _runtime
from finetune.fitting import model_of_sixteen_bit
from finetune.preflight import inspect
from finetune.recipe import load
from tests.device_profiles import a_device
from tests.export import tiny_models


@pytest.fixture(scope="module")
def source(tiny_qwen, tmp_path_factory):
    out = tmp_path_factory.mktemp("f16")
    return Gguf(types=()).quantize("gguf-f16", tiny_qwen, ExportRows(), out, {}.__getitem__).path


TYPES = Target.model_fields["types"].default


def device_budget(source, device, limits, folder, types=TYPES):
    return device_target.device_budget(source, device, limits, folder, types=types)


def _verdict(source, device, limits, size_bytes, cache_type):
    """What `fit` says of a file of that size: its embedding and output made as large as it takes."""
    model, content = model_of_sixteen_bit(source, limits), read_gguf(source)
    plain = as_it_is(content, "file")
    largest = max(plain.tensors, key=lambda tensor: tensor.size_bytes)
    more = size_bytes - plain.size_bytes
    changed = [t.model_copy(update={"size_bytes": t.size_bytes + more}) if t is largest else t for t in plain.tensors]
    file = plain.model_copy(update={"size_bytes": size_bytes, "tensors": tuple(changed)})
    found = fit(model._replace(plan=lambda _: file), device, limits, types=["file"], caches=[cache_type])
    return found.candidates[0].verdict


@pytest.mark.parametrize("limits", [Limits(context_tokens=256), Limits(context_tokens=256, min_tokens_per_second=40)])
def test_a_file_of_the_budget_fits_for_certain_and_a_larger_one_does_not(source, limits):
    device = a_device(90, rate=10**9)
    budget = device_budget(source, device, limits, source.parent)
    # what a vocabulary takes is measured each time, and differs by some pages
    assert _verdict(source, device, limits, int(budget.size_bytes * 0.99), budget.cache_type) == "fits"
    assert _verdict(source, device, limits, int(budget.size_bytes * 1.05), budget.cache_type) != "fits"
    assert budget.binding == ("memory" if limits.min_tokens_per_second is None else "tokens per second")


def test_an_embedding_that_is_packed_anew_is_held_twice_as_the_client_holds_it(source):
    """The bundle's client reads the file into memory, where what was packed cannot be dropped."""
    limits = Limits(context_tokens=256)
    plain, packing = (device_budget(source, a_device(90, packs=p), limits, source.parent) for p in ([], ["q4_0"]))
    (embedding,) = (t for t in model_of_sixteen_bit(source, limits).plan("q8_0").tensors if t.name.startswith("token"))
    # what a vocabulary takes is measured each time, and differs by some pages
    assert plain.by_memory_bytes - packing.by_memory_bytes == pytest.approx(embedding.size_bytes, abs=1e6)
    assert embedding.size_bytes > 0


def test_speed_is_told_by_the_slowest_type_that_was_measured(source):
    limits = Limits(context_tokens=256, min_tokens_per_second=40)
    slow = {"iq4_xs": {"decode_bytes_per_second": 5e8, "prefill_flops_per_second": 1e10}}
    plain, slower = (device_budget(source, a_device(400, rates=r), limits, source.parent) for r in ({}, slow))
    assert slower.by_speed_bytes < 0.7 * plain.by_speed_bytes


def test_a_speed_is_held_however_small_the_search_makes_an_embedding_that_is_only_looked_up(tmp_path):
    model = tiny_models.build(tmp_path / "model", "qwen2", tied=False, hidden_size=256)
    source = Gguf(types=()).quantize("gguf-f16", model, ExportRows(), tmp_path, {}.__getitem__).path
    limits, device = Limits(context_tokens=256, min_tokens_per_second=300), a_device(400, rate=10**9)
    budget = device_budget(source, device, limits, tmp_path)
    assert budget.binding == "tokens per second"
    found = model_of_sixteen_bit(source, limits)
    plan = found.plan("q8_0")
    (embedding,) = (tensor for tensor in plan.tensors if tensor.name == "token_embd.weight")
    for stored_as in TYPES:
        small = min(least_tensor_bytes(embedding, [stored_as]), embedding.size_bytes)
        read_bytes = budget.size_bytes - plan.header_bytes - small
        tensors = [
            t.model_copy(
                update={"size_bytes": small if t is embedding else int(t.size_bytes * read_bytes / _read(plan))}
            )
            for t in plan.tensors
        ]
        seconds = token_seconds(tensors, found.shape, device, cache_type=budget.cache_type, cached_tokens=256)
        assert (1 - device.decode_error_share) / seconds >= 300 * 0.999, stored_as


def _read(plan):
    """Bytes of a plan's tensors, the embedding left out."""
    return sum(tensor.size_bytes for tensor in plan.tensors if tensor.name != "token_embd.weight")


def test_a_bundle_takes_the_context_and_the_cache_that_its_file_was_sized_for(source, tmp_path):
    room = device_budget(source, a_device(400), Limits(context_tokens=1024), tmp_path)
    room = room.model_copy(update={"cache_type": "q8_0"})
    asked = BundleSettings(run=tmp_path, out=tmp_path)
    assert _runtime(asked, None, 512, 64) == Runtime(context_tokens=512, max_new_tokens=64, cache_type="f16")
    assert _runtime(asked, room, 512, 64) == Runtime(context_tokens=1024, max_new_tokens=64, cache_type="q8_0")
    for more in ({"cache_type": "f16"}, {"context_tokens": 2048}):
        with pytest.raises(RecipeError, match="was sized for a small board with a context of 1,024 tokens"):
            _runtime(asked.model_copy(update=more), room, 512, 64)
    with pytest.raises(RecipeError, match="the rows need a context of 1,500"):
        _runtime(asked, room, 1500, 64)


def test_the_cache_is_kept_in_8_bits_where_that_leaves_more(source):
    limits = Limits(context_tokens=1024)
    plenty = device_budget(source, a_device(400), limits, source.parent)
    assert plenty.cache_type == "f16"
    beside = 400e6 / (1 + MEMORY_ERROR_SHARE) - plenty.by_memory_bytes
    scarce = device_budget(source, a_device((beside + 1e5) * (1 + MEMORY_ERROR_SHARE) / 1e6), limits, source.parent)
    assert scarce.cache_type == "q8_0"
    assert scarce.by_memory_bytes > 1.5e5  # where a 16-bit cache leaves about 1e5


def test_a_device_that_leaves_nothing_is_refused_with_what_binds(source):
    with pytest.raises(RecipeError, match=r"has no room for any file: .* memory binds\."):
        device_budget(source, a_device(20), Limits(context_tokens=256), source.parent)
    with pytest.raises(RecipeError, match=r"tokens per second binds\."):
        device_budget(source, a_device(400), Limits(context_tokens=256, min_tokens_per_second=10**9), source.parent)
    with pytest.raises(RecipeError, match=r"runs gptq only"):
        device_budget(source, a_device(400, formats=["gptq"]), Limits(context_tokens=256), source.parent)


RECIPE = """
name: mix
model: {name: starter}
data: {path: generated:cleaning_robot, template: cleaning_robot, rows: 100}
train: {max_steps: 2}
export: {target: {device: NAME, context_tokens: 512}}
"""


def test_a_recipe_names_its_device(tmp_path):
    (tmp_path / "recipe.yaml").write_text(RECIPE.replace("NAME", "raspberry_pi_5_4gb"), encoding="utf-8")
    recipe = load(tmp_path / "recipe.yaml")
    inspect(recipe)
    assert [name for step in recipe.export.steps() for name in step.variants()] == ["gguf-mix-raspberry_pi_5_4gb"]
    (tmp_path / "recipe.yaml").write_text(RECIPE.replace("NAME", "raspbery_pi_5_4gb"), encoding="utf-8")
    with pytest.raises(RecipeError, match=r"export\.target: no device is called .*Did you mean"):
        inspect(load(tmp_path / "recipe.yaml"))


@pytest.mark.parametrize(
    "settings", [{"device": "x", "bits_per_weight": 4}, {"bits_per_weight": 4, "context_tokens": 9}]
)
def test_limits_of_a_device_stand_with_a_device_alone(settings):
    with pytest.raises(ValueError, match="write"):
        Target(**settings)


def test_worked_out_bytes_keep_the_devices_name():
    sized = Target(device="./boards/mine.yaml").sized(1234)
    assert (sized.size_bytes, sized.variants()) == (1234, ("gguf-mix-mine",))
    assert sized.settings_for("gguf-mix-mine")["size_bytes"] == 1234
