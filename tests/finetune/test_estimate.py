"""An estimate against what others wrote: transformers' models, peft's adapters, autograd's tensors, torch's count."""

import contextlib
import json
import math
import os
import subprocess
import sys
from itertools import product
from pathlib import Path

import pytest

from export.errors import DataError, ModelError, RecipeError
from export.precision import BESIDE_WEIGHTS_BYTES
from export.weights import weight_facts
from finetune import cli, shipped
from finetune.base_model import ModelSettings
from finetune.documentation import with_estimate
from finetune.estimate import duration, estimate, known_hardware, memory, wording
from finetune.estimate.architecture import Architecture, architecture_of, from_config
from finetune.estimate.hardware import Hardware, find_hardware
from finetune.estimate.memory import Batch
from finetune.estimate.rows import expected_longest, row_lengths, tokens_by_characters
from finetune.hub import resolve_model
from finetune.methods import Footprint, LoraSize
from finetune.recipe import load
from finetune.yaml_text import read_yaml

ROOT = Path(__file__).parents[2]
BASES = read_yaml(ROOT / "finetune/estimate/bases.yaml")["bases"]
REAL_QWEN = Path(os.environ.get("FIELDTUNE_REAL_QWEN", "~/.cache/real-qwen/Qwen2.5-Coder-0.5B-Instruct")).expanduser()
CPU = Hardware(
    title="cores",
    kind="cpu",
    dtype="float32",
    flops_per_second=1e11,
    memory_bytes=8_000_000_000,
    efficiency=(0.1, 0.5),
    block_seconds=(0.001, 0.01),
    source="a test",
)
LORA = Footprint(
    lora=LoraSize(rank=4, targets="all-linear", has_magnitudes=False),
    is_four_bit=False,
    recomputes_activations=False,
    rows_per_step=4,
    rows_per_pass=2,
    epochs=3,
    steps=None,
    evaluations=4,
)
FULL = LORA.model_copy(update={"lora": None})
SMALL = {"hidden_size": 64, "intermediate_size": 160, "num_attention_heads": 4, "num_key_value_heads": 2}
RECIPE = """\
name: test
model: {name: starter}
data: {path: rows.jsonl, template: question_answer, valid_share: 0.1, held_out_share: 0.2}
train: {batch_size: 4, accumulation: 2}
export: {gguf: {types: [q8_0]}, gptq: {bits: 4}}
"""


def _config(kind, **sizes):
    from transformers import AutoConfig

    given = SMALL | ({"head_dim": 16} if kind == "qwen3" else {})
    given |= {"vocab_size": 512, "max_position_embeddings": 512, "tie_word_embeddings": True, "num_hidden_layers": 2}
    return AutoConfig.for_model(kind, **(given | sizes))


def _model(kind, dtype="float32", attention="sdpa", rank=4, **sizes):
    """A random model with adapters as training makes them, and its architecture."""
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    from export.engines.hf import quiet_gptqmodel

    config = _config(kind, **sizes)
    with quiet_gptqmodel():
        base = AutoModelForCausalLM.from_config(config, dtype=getattr(torch, dtype), attn_implementation=attention)
        adapted = get_peft_model(base, LoraConfig(r=rank, target_modules="all-linear", task_type="CAUSAL_LM"))
    for parameter in adapted.parameters():
        if parameter.requires_grad:
            parameter.data = parameter.data.float()
    return adapted.train(), from_config(config.to_dict(), kind)


@pytest.mark.parametrize("entry", BASES, ids=lambda entry: entry["names"][0])
def test_the_parameters_of_a_known_base_are_the_published_ones_and_those_that_transformers_makes(entry):
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    sizes = dict(entry["config"])
    config = AutoConfig.for_model(sizes.pop("model_type"), **sizes)
    with torch.device("meta"):
        made = AutoModelForCausalLM.from_config(config)
    counted = sum(parameter.numel() for parameter in made.parameters())  # a tied tensor is listed once
    told = architecture_of(ModelSettings(name=f"Qwen/{entry['names'][-1]}")).parameters
    assert told == counted == entry["parameters"]


@pytest.mark.parametrize("folder", [resolve_model("starter", revision=None, offline=True), REAL_QWEN], ids=str)
def test_the_parameters_of_a_folder_are_those_of_its_tensors(folder):
    if not (folder / "config.json").is_file():
        pytest.skip(f"no real Qwen at {folder}: set FIELDTUNE_REAL_QWEN to a Qwen2.5-0.5B folder")
    assert architecture_of(ModelSettings(name=str(folder))).parameters == weight_facts(folder).weights


@pytest.mark.parametrize("kind", ["qwen2", "qwen3"])
@pytest.mark.parametrize("dora", [False, True])
@pytest.mark.parametrize("targets", ["all-linear", ("q_proj", "mlp.down_proj")])
def test_the_parameters_of_an_adapter_are_pefts(kind, dora, targets):
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    from export.engines.hf import quiet_gptqmodel

    config = _config(kind)
    chosen = targets if isinstance(targets, str) else list(targets)
    with quiet_gptqmodel():
        base = AutoModelForCausalLM.from_config(config)
        adapted = get_peft_model(base, LoraConfig(r=3, target_modules=chosen, use_dora=dora, task_type="CAUSAL_LM"))
    trained = sum(parameter.numel() for parameter in adapted.parameters() if parameter.requires_grad)
    told = from_config(config.to_dict(), kind).adapter_parameters(3, targets, with_magnitudes=dora)
    assert told == trained


def _kept_by_autograd(model, dtype, rows, tokens):
    """Bytes of the storages, parameters apart, that the forward pass of the blocks keeps for the backward pass."""
    import torch

    weights = {parameter.untyped_storage().data_ptr() for parameter in model.parameters()}
    kept = {}
    holding = []

    def pack(tensor):
        place = tensor.untyped_storage().data_ptr()
        if place not in weights:
            kept[place] = tensor.untyped_storage().nbytes()
            holding.append(tensor)  # or its place could be another's later
        return tensor

    ids = torch.randint(0, 500, (rows, tokens), generator=torch.Generator().manual_seed(0))
    mask = torch.ones_like(ids)
    mask[0, -3:] = 0  # rows of several lengths: attention then has a mask
    mixed = torch.autocast("cpu", dtype=torch.bfloat16) if dtype == "bfloat16" else contextlib.nullcontext()
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor), mixed:
        getattr(model, "get_base_model", lambda: model)().model(input_ids=ids, attention_mask=mask, use_cache=False)
    return sum(kept.values())


@pytest.mark.parametrize("kind", ["qwen2", "qwen3"])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize(("attention", "tokens"), [("eager", 100), ("sdpa", 160)])
def test_the_activations_of_a_block_are_what_autograd_keeps(kind, dtype, attention, tokens):
    rows, hardware = 3, CPU.model_copy(update={"dtype": dtype})
    models = [_model(kind, dtype, attention, num_hidden_layers=layers) for layers in (1, 3)]
    one, three = (_kept_by_autograd(model, dtype, rows, tokens) for model, _ in models)
    told = memory.block_bytes_per_token(models[0][1], tokens, hardware, rank=4) * rows * tokens
    in_a_block = (three - one) / 2
    # in mixed precision the adapters' weights are kept in 16 bits besides: a size that no batch changes
    adapters = models[0][1].adapter_parameters(4, "all-linear") * 2 if dtype == "bfloat16" else 0
    assert told == pytest.approx(in_a_block - adapters, rel=0.005)


@pytest.mark.parametrize("kind", ["qwen2", "qwen3"])
@pytest.mark.parametrize("adapted", [True, False])
def test_the_operations_of_a_token_are_those_that_torch_counts(kind, adapted):
    import torch
    from torch.utils.flop_counter import FlopCounterMode

    # eager attention is plain products; in the first block q, k and v need no gradient of the embedding's: with many
    # blocks that hardly counts
    model, architecture = _model(kind, attention="eager", num_hidden_layers=12)
    if not adapted:
        model = model.unload()
        for parameter in model.parameters():
            parameter.requires_grad_(True)
        model.get_input_embeddings().requires_grad_(False)
        model.lm_head.weight = torch.nn.Parameter(model.lm_head.weight.detach().clone())
    ids = torch.randint(0, 500, (2, 48))
    with FlopCounterMode(display=False) as counter:
        model(input_ids=ids, labels=ids, use_cache=False).loss.backward()
    footprint = LORA if adapted else LORA.model_copy(update={"lora": None})
    told = duration.training_operations_per_token(architecture, footprint, 48) * ids.numel()
    again = 2 * architecture.head.weights * ids.numel()  # this loss makes no tile twice
    assert told - again == pytest.approx(counter.get_total_flops(), rel=0.02)


@pytest.mark.parametrize("kind", ["qwen2", "qwen3"])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize(("attention", "tokens"), [("eager", 100), ("sdpa", 160)])
def test_full_fine_tuning_keeps_its_norms_and_in_16_bits_a_copy_of_every_weight_too(kind, dtype, attention, tokens):
    from transformers import AutoModelForCausalLM

    rows, hardware = 3, CPU.model_copy(update={"dtype": dtype})
    kept, told = [], []
    for layers in (1, 3):
        config = _config(kind, num_hidden_layers=layers)
        model = AutoModelForCausalLM.from_config(config, attn_implementation=attention).train()
        kept.append(_kept_by_autograd(model, dtype, rows, tokens))
        batch = Batch(rows=rows, tokens_per_row=tokens)
        parts = memory.training_parts(from_config(config.to_dict(), kind), FULL, batch, hardware)
        told.append(sum(part.size_bytes for part in parts if "copies" in part.what or part.what == "activations"))
    assert told[1] - told[0] == pytest.approx(kept[1] - kept[0], rel=0.005)


def test_recomputing_activations_takes_one_more_pass_and_keeps_one_block():
    model = architecture_of(ModelSettings(name="Qwen/Qwen3-0.6B"))
    batch, saving = Batch(rows=4, tokens_per_row=512), LORA.model_copy(update={"recomputes_activations": True})
    plain, less = (
        {part.what: part.size_bytes for part in memory.training_parts(model, size, batch, known_hardware()["l4"])}
        for size in (LORA, saving)
    )
    block = memory.block_bytes_per_token(model, 512, known_hardware()["l4"], 4) * batch.tokens
    assert plain["activations"] - less["activations"] == pytest.approx(27 * block - 28 * batch.tokens * 1024 * 2)
    assert {what for what in plain if plain[what] != less[what]} == {"activations"}
    costs = [duration.training_operations_per_token(model, size, 512) for size in (LORA, saving)]
    assert 1.3 < costs[1] / costs[0] < 1.5  # 2 more of 4, but not for the head


def test_nf4_holds_the_blocks_in_four_bits():
    model = architecture_of(ModelSettings(name="Qwen/Qwen2.5-7B-Instruct"))
    batch, size = Batch(rows=1, tokens_per_row=8), LORA.model_copy(update={"is_four_bit": True})
    frozen = memory.training_parts(model, size, batch, known_hardware()["t4"])[0].size_bytes
    # 6.53e9 weights in blocks at 4.127 bits, 1.09e9 others in 16 bits
    assert frozen / 1e9 == pytest.approx(6.525 * 4.127 / 8 + 1.0905 * 2, rel=1e-3)


def test_the_expected_longest_row_is_the_mean_over_all_draws():
    lengths = [5, 1, 3, 3, 10]
    for draws in (1, 2, 3):
        every = [max(drawn) for drawn in product(lengths, repeat=draws)]
        assert expected_longest([(lengths, 1)], draws) == pytest.approx(sum(every) / len(every))
        assert expected_longest([(lengths[:2], 4), (lengths[2:], 6)], draws) == pytest.approx(sum(every) / len(every))


def test_tokens_are_told_from_characters():
    assert tokens_by_characters("") == 0
    assert tokens_by_characters("123") == 3  # Qwen has a token for each digit
    assert tokens_by_characters("打扫客厅") == pytest.approx(4 * 0.62)


@pytest.fixture
def work(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "recipe.yaml").write_text(RECIPE, encoding="utf-8")
    rows = [{"question": f"What is {n}?", "answer": "It is " + "so " * (n % 9)} for n in range(100)]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return tmp_path


def _estimate(work, *overrides, hardware="l4"):
    return estimate(load(work / "recipe.yaml", overrides), known_hardware()[hardware])


def test_rows_that_are_here_are_counted_and_others_are_assumed(work):
    here = row_lengths(load(work / "recipe.yaml"), 2)
    assert here.count == 70
    assert 10 < here.padded_tokens < here.longest_tokens < 60
    assert here.basis == "tokens counted"
    assert row_lengths(load(work / "recipe.yaml", ["data.rows=50"]), 2).count == 35
    assert row_lengths(load(work / "recipe.yaml", ["data.max_train_tokens=100"]), 2).count < 10
    for override in ("data.path=hf:owner/name", "data.path=./nowhere.jsonl"):
        other = row_lengths(load(work / "recipe.yaml", [override]), 2)
        assert (other.count, other.padded_tokens, other.longest_tokens) == (None, 256, 512)


def test_rows_that_the_contract_lets_be_dropped_are_not_counted(work):
    with (work / "rows.jsonl").open("a", encoding="utf-8") as file:
        file.write("not json\n" * 100)
    assert row_lengths(load(work / "recipe.yaml", ["data.contract.broken_share=0.6"]), 2).count == 70
    with pytest.raises(DataError, match="line 101"):
        row_lengths(load(work / "recipe.yaml"), 2)


def test_more_rows_take_more_time_and_longer_ones_more_memory(work):
    some = _estimate(work)
    assert _estimate(work, "train.epochs=6").seconds.low > 1.8 * some.seconds.low
    assert _estimate(work, "train.max_steps=1").seconds.high < some.seconds.high
    split, whole = (_estimate(work, f"train.accumulation={n}").training_bytes for n in (4, 1))
    assert split < some.training_bytes < whole


def test_a_machine_fits_where_even_the_higher_end_does(work):
    found = _estimate(work)
    low, high = found.training_range
    for has, fits in ((high + 1, True), (low - 1, False), ((low + high) / 2, None)):
        machine = found.hardware.model_copy(update={"memory_bytes": int(has)})
        assert found.model_copy(update={"hardware": machine}).fits is fits


def test_disk_is_the_base_the_merged_folder_and_every_export(work):
    found = _estimate(work)
    weights, adapter = found.parameters, found.trained_parameters
    assert found.disk_bytes == pytest.approx(weights * (2 + 2 + 2 + 8.5 / 8 + 0.5) + adapter * 4)


@pytest.mark.parametrize(
    ("target", "mix_bytes"),
    [
        ("{size_bytes: 1000000}", lambda weights: 1_000_000),
        ("{bits_per_weight: 4.3}", lambda weights: weights * 4.3 / 8),
        ("{device: raspberry_pi_5_4gb}", lambda weights: weights * 8.5 / 8),  # unknown before the file is made
    ],
)
def test_disk_of_a_searched_file_is_its_own_and_that_it_is_made_from(work, target, mix_bytes):
    found = _estimate(work, "export.gguf=null", "export.gptq=null", f"export.target={target}")
    weights, adapter = found.parameters, found.trained_parameters
    assert found.disk_bytes == pytest.approx(weights * (2 + 2 + 2) + mix_bytes(weights) + adapter * 4)
    beside = _estimate(work, "export.gptq=null", f"export.target={target}")
    assert beside.disk_bytes == pytest.approx(found.disk_bytes + weights * 8.5 / 8)  # the 16-bit file is one


def test_disk_of_full_fine_tuning_is_what_its_training_says(work):
    # the base in 16 bits; two checkpoints, each a weight and two moments of it, and the model, all in float32
    found = _estimate(work, "train.method=full")
    assert found.disk_bytes == pytest.approx(found.parameters * (2 + 28))


def test_general_rows_take_time_as_their_share_says_and_steps_are_what_they_are(work):
    general = ["general.data.path=rows.jsonl", "general.data.template=question_answer", "data.valid_share=0.001"]
    apart, half = (_estimate(work, *general, f"general.share={share}").seconds for share in (0, 0.5))
    assert half.low == pytest.approx(2 * apart.low, rel=0.05)
    steps = [_estimate(work, *general, "train.max_steps=9", f"general.share={share}").seconds for share in (0, 0.5)]
    assert steps[0] == steps[1]


def test_general_rows_count_where_they_are_the_longest(work):
    long = work / "long.jsonl"
    long.write_text(json.dumps({"question": "Why?", "answer": "so " * 200}) + "\n", encoding="utf-8")
    general = [f"general.data.path={long}", "general.data.template=question_answer"]
    alone, measured, mixed = (
        row_lengths(load(work / "recipe.yaml", overrides), 2)
        for overrides in ([], general, [*general, "general.share=0.1"])
    )
    assert measured == alone
    assert mixed.longest_tokens > 200 > alone.longest_tokens
    assert (alone.count, alone.general) == (mixed.count, 0) and mixed.general == 1  # there is no second one
    assert mixed.padded_tokens > alone.padded_tokens


def test_what_cannot_be_estimated_is_refused_by_name(work):
    with pytest.raises(ModelError, match=r"owner/name are not known.*Qwen2.5-0.5B"):
        architecture_of(ModelSettings(name="owner/name"))
    with pytest.raises(ModelError, match="of the type 'qwen3_5'"):
        from_config({"model_type": "qwen3_5"}, "a model")
    with pytest.raises(ModelError, match="num_hidden_layers"):
        from_config({"model_type": "qwen2", "hidden_size": 8, "num_attention_heads": 2}, "a model")
    with pytest.raises(RecipeError, match="Did you mean 'h100'"):
        find_hardware("h1000")


def test_this_machine_is_measured():
    here = find_hardware("this_machine")
    assert here.flops_per_second > 1e9
    assert here.memory_bytes > 1e9


def test_the_command_tells_every_part_and_validate_a_line(work, capsys):
    assert cli.main(["estimate", "recipe.yaml", "--hardware", "t4"]) == 0
    told = capsys.readouterr().out
    for expected in ("5,771,264 parameters", "activations", "expected within", "fits 16 GB", "disk: ", "time of tra"):
        assert expected in told
    assert cli.main(["validate", "recipe.yaml"]) == 0
    assert "estimate: 5,771,264 parameters; training takes " in capsys.readouterr().out
    assert cli.main(["validate", "recipe.yaml", "--set", "model.name=owner/name"]) == 0
    assert "estimate: none. the dimensions of owner/name are not known" in capsys.readouterr().out


@pytest.mark.parametrize(("gpu", "bytes_per_weight"), [("h100", 4), ("t4", 2)])
def test_measuring_on_a_gpu_takes_float32_where_it_fits(gpu, bytes_per_weight):
    (seven,) = (entry for entry in BASES if "Qwen2.5-7B" in entry["names"])
    model = from_config(seven["config"], "Qwen2.5-7B")
    beside = memory.checking_bytes(model, find_hardware(gpu)) - bytes_per_weight * model.parameters
    assert beside == BESIDE_WEIGHTS_BYTES


@pytest.mark.parametrize(
    ("low", "high", "text"),
    [(0.2, 1, "0.2 to 1.0 s"), (50, 119, "50 to 119 s"), (60, 300, "1.0 to 5 min"), (1800, 9000, "0.5 to 2.5 h")],
)
def test_a_range_is_told_in_the_unit_of_its_higher_end(low, high, text):
    assert wording.duration_text(duration.Range(low, high)) == text


@pytest.mark.parametrize("path", sorted(shipped.folder("recipes").glob("*.yaml")), ids=lambda path: path.stem)
def test_the_estimate_in_a_shipped_recipe_is_fresh(path):
    text = path.read_text(encoding="utf-8")
    assert "# Estimate: " in text
    assert with_estimate(path) == text, "run: python -m finetune.documentation"


@pytest.mark.slow
def test_the_memory_of_a_real_training_is_within_the_error_that_is_told(work):
    command = [sys.executable, "-m", "finetune", "train", "recipe.yaml", "--out", "run"]
    settings = ["train.batch_size=16", "train.accumulation=1", "train.max_steps=3"]
    long = [{"question": f"What is {n}?", "answer": f"{n} " + "It is so and it goes on. " * 20} for n in range(100)]
    (work / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in long), encoding="utf-8")
    relaxed = ["data.near_copies=ignored", "data.contract.overlap_near_share=null"]
    overrides = [word for setting in (*settings, *relaxed) for word in ("--set", setting)]
    subprocess.run([*command, *overrides], check=True, capture_output=True, env={**os.environ, "PYTHONPATH": str(ROOT)})
    measured = json.loads((work / "run/adapter/manifest.json").read_text(encoding="utf-8"))["result"]
    machine = CPU.model_copy(update={"dtype": measured["dtype"]})
    told = estimate(load(work / "recipe.yaml", [*settings, *relaxed]), machine)
    assert told.trained_parameters == measured["trainable_parameters"]
    assert told.training_bytes == pytest.approx(measured["peak_memory_bytes"], rel=memory.ERROR_SHARE["cpu"])
    assert math.isfinite(told.seconds.high)
    assert isinstance(architecture_of(ModelSettings()), Architecture)
