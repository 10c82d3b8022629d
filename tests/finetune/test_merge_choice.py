"""Onto which base a QLoRA adapter is merged: measured, and checked against a computation in plain torch."""

import gc
import json
import math
import shutil
from functools import partial
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, AutoTokenizer, BitsAndBytesConfig, PreTrainedModel

from export.artifacts import ModelFolder
from export.chat import Conversation, Message, encode
from export.engines import hf
from finetune import cli, merge_choice
from finetune import merge as merge_module
from finetune.base_model import ModelSettings, open_base
from finetune.data import SplitCounts, Splits
from finetune.merge_choice import choose, merge_as_asked
from finetune.methods import Adapter
from finetune.recipe import MergeSettings
from tests.export.tiny_models import build

pytestmark = [
    # peft itself reads this property of transformers when it wraps a model
    pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning"),
]
QUANTIZED = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
NOTHING = SplitCounts(rows=0, groups=0, tokens=0, scored_tokens=0)


@pytest.fixture(scope="module")
def bitsandbytes():
    return pytest.importorskip("bitsandbytes", reason="QLoRA needs bitsandbytes: pip install 'fieldtune[qlora]'")


@pytest.fixture(scope="module")
def base_folder(tmp_path_factory):
    """Random weights, which NF4 rounds by about a tenth."""
    folder = tmp_path_factory.mktemp("base") / "tiny"
    return build(folder, "qwen3", tied=True, hidden_size=64, dtype="float32").folder


def _through_nf4(functional, weight):
    """What is left of a weight after NF4 with double quantization."""
    packed, state = functional.quantize_4bit(weight.contiguous(), quant_type="nf4", compress_statistics=True)
    return functional.dequantize_4bit(packed, state)


@pytest.fixture(scope="module")
def exact_folder(base_folder, bitsandbytes, tmp_path_factory):
    """A model whose layers NF4 holds without any rounding: code words of NF4, the largest in every block of 64."""
    folder = tmp_path_factory.mktemp("exact") / "tiny"
    shutil.copytree(base_folder, folder)
    words = bitsandbytes.functional.get_4bit_type("nf4", device="cpu")
    weights = load_file(folder / "model.safetensors")
    drawn = torch.Generator().manual_seed(0)
    for name in [name for name in weights if name.split(".")[-2] in QUANTIZED]:
        blocks = words[torch.randint(0, 16, (weights[name].numel() // 64, 64), generator=drawn)]
        blocks[:, 0] = 1.0
        weights[name] = 0.1 * blocks.reshape(weights[name].shape)
        assert torch.equal(_through_nf4(bitsandbytes.functional, weights[name]), weights[name])
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


@pytest.fixture(scope="module")
def splits(tmp_path_factory):
    """Ninety validation rows; the other two splits are no conversations at all, and must not be read."""
    folder = tmp_path_factory.mktemp("data")
    for name in ("train", "held_out"):
        (folder / f"{name}.jsonl").write_text("not a conversation\n", encoding="utf-8")
    with (folder / "valid.jsonl").open("w", encoding="utf-8") as file:
        for n in range(90):
            turns = (Message(role="user", content=f"What is {n}?"), Message(role="assistant", content=f"{n} is {n}."))
            file.write(Conversation(messages=turns).model_dump_json() + "\n")
    return Splits(
        folder=folder,
        read=90,
        sampled_out=0,
        kept=90,
        dropped={},
        max_tokens=64,
        longest_row_tokens=64,
        train=NOTHING,
        valid=NOTHING,
        held_out=NOTHING,
        fingerprint="0",
        source={},
    )


def _adapter(base, folder, *, four_bit_base=True):
    """An adapter with a random update, as peft saves it."""
    from peft import LoraConfig, get_peft_model

    torch.manual_seed(0)
    dense = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    model = get_peft_model(dense, LoraConfig(r=4, lora_alpha=8, target_modules=["q_proj", "down_proj"]))
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.02)
    model.save_pretrained(folder)
    return Adapter(
        folder=folder,
        base=str(base),
        base_sha256="0",
        four_bit_base=four_bit_base,
        dtype="float32",
        targets=("q_proj", "down_proj"),
        trainable_parameters=1,
        steps=1,
        tokens=1,
        trained_tokens=1,
        seconds=1,
        peak_memory_bytes=1,
        losses=(),
    )


def _merged(base, splits, place, *, onto="auto", four_bit_base=True, seed=0, said=None):
    out = place / "merged"
    out.mkdir()
    return merge_as_asked(
        _adapter(base, place / "adapter", four_bit_base=four_bit_base),
        open_base(ModelSettings(name=str(base), dtype="float32")),
        MergeSettings(onto=onto),
        splits,
        out,
        seed=seed,
        say=(said if said is not None else []).append,
    )


@pytest.fixture(scope="module")
def coarse(base_folder, bitsandbytes, splits, tmp_path_factory):
    """The merge of an adapter whose base NF4 rounds coarsely, and what was said."""
    place, said = tmp_path_factory.mktemp("coarse"), []
    with pytest.MonkeyPatch.context() as patch:
        _refuse_a_second_model(patch)
        return _merged(base_folder, splits, place, said=said), said


def _refuse_a_second_model(patch):
    """Makes whatever loads a model fail while another one is alive."""

    def alone(load):
        def checked(*arguments, **settings):
            # by type: asking for __class__ would wake what torch has deprecated
            alive = [type(thing).__name__ for thing in gc.get_objects() if issubclass(type(thing), PreTrainedModel)]
            assert not alive, f"already in memory: {alive}"
            return load(*arguments, **settings)

        return checked

    gc.collect()
    patch.setattr(hf, "load", alone(hf.load))
    patch.setattr(merge_module, "open_model", alone(merge_module.open_model))


def _log_probs(model, tokenizer, conversations):
    """Per conversation, log-probabilities over the real ids of what follows each token but the last."""
    rows = [encode(tokenizer, conversation) for conversation in conversations]
    with torch.inference_mode():
        logits = [model(torch.tensor([row.ids])).logits[0, :-1, : len(tokenizer)].double() for row in rows]
    kept = [torch.tensor(row.scored[1:]) for row in rows]
    return torch.cat([row.log_softmax(-1)[scored] for row, scored in zip(logits, kept, strict=True)])


def _as_trained(base, adapter, dtype=torch.float32):
    from peft import PeftModel

    four_bit = BitsAndBytesConfig(
        load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True, bnb_4bit_compute_dtype=dtype
    )
    held = AutoModelForCausalLM.from_pretrained(base, dtype=dtype, quantization_config=four_bit)
    return PeftModel.from_pretrained(held, adapter).eval()


def _folded_by_hand(base, adapter, rounded):
    """The base, its layers `rounded` or as they are, plus alpha/rank B A, in bfloat16."""
    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    update = load_file(adapter / "adapter_model.safetensors")
    with torch.no_grad():
        for name, module in model.named_modules():
            if name.rpartition(".")[2] not in QUANTIZED:
                continue
            module.weight.copy_(rounded(module.weight))
            if f"base_model.model.{name}.lora_A.weight" in update:
                a, b = (update[f"base_model.model.{name}.lora_{side}.weight"] for side in "AB")
                module.weight += 8 / 4 * b @ a
    return model.to(torch.bfloat16).to(torch.float32).eval()


def test_the_merge_that_is_nearer_is_kept_and_both_are_recorded(coarse, base_folder):
    merged, said = coarse
    dense, four_bit = merged.merge_candidates
    assert (dense.onto, four_bit.onto) == ("16bit", "nf4")
    assert (dense.kept, four_bit.kept) == (False, True)
    assert four_bit.kl_mean < 0.2 * dense.kl_mean
    assert merged.merged_onto == "nf4"
    assert {c.n_rows for c in merged.merge_candidates} == {merge_choice.MEASURED_ROWS}
    assert all(c.stderr is not None and c.stderr > 0 for c in merged.merge_candidates)
    assert "the nearer is kept" in four_bit.note
    assert dense.note == ""
    assert "kept: nf4" in said[-1]
    # what is in the folder is what the record says: weights on NF4's grid, far from the base's own
    own, kept = (load_file(folder / "model.safetensors") for folder in (base_folder, merged.folder))
    name = "model.layers.0.self_attn.k_proj.weight"  # no target: nothing but rounding can have moved it
    assert (kept[name].float() - own[name]).norm() > 0.05 * own[name].norm()
    assert not list(merged.folder.rglob("*.npy"))
    assert not [path for path in merged.folder.iterdir() if path.is_dir()]


def test_both_divergences_are_those_of_plain_torch(coarse, base_folder, splits, bitsandbytes):
    merged, _ = coarse
    tokenizer = AutoTokenizer.from_pretrained(base_folder)
    chosen = merge_choice._valid_rows(splits, tokenizer, 0, thinking=False)
    rows = [c for c in splits.conversations("valid") if encode(tokenizer, c) in chosen]
    assert len(rows) == merge_choice.MEASURED_ROWS
    adapter = merged.folder.parent / "adapter"
    p = _log_probs(_as_trained(base_folder, adapter), tokenizer, rows)
    rounded = {"16bit": lambda weight: weight, "nf4": partial(_through_nf4, bitsandbytes.functional)}
    for candidate in merged.merge_candidates:
        q = _log_probs(_folded_by_hand(base_folder, adapter, rounded[candidate.onto]), tokenizer, rows)
        expected = (p.exp() * (p - q)).sum(-1).mean().item()
        assert candidate.kl_mean == pytest.approx(expected, abs=1e-4), candidate.onto
        assert candidate.n_tokens == len(p)


def test_the_reference_computes_in_the_type_that_was_trained_in(coarse, base_folder, splits, tmp_path):
    from export.reference import Reference

    tokenizer = AutoTokenizer.from_pretrained(base_folder)
    rows = splits.conversations("valid")[:8]
    encoded = [encode(tokenizer, row) for row in rows]
    folder = coarse[0].folder.parent / "adapter"
    base = open_base(ModelSettings(name=str(base_folder)))
    expected = _log_probs(_as_trained(base_folder, folder, torch.bfloat16), tokenizer, rows).float()
    means = {}
    for dtype in ("float32", "bfloat16"):
        adapter = _adapter(base_folder, tmp_path / dtype).model_copy(update={"folder": folder, "dtype": dtype})
        path = tmp_path / f"{dtype}.npy"
        merge_choice._store_reference(adapter, base, encoded, len(tokenizer), path)
        means[dtype] = Reference(path).compare(0, expected.numpy()).kl.mean()
    # how far bfloat16 is from either: from itself only by the order of its sums
    assert means["bfloat16"] < 0.2 * means["float32"]
    assert means["float32"] > 1e-6


def test_where_nf4_rounds_nothing_the_two_are_the_same_and_the_base_is_kept(exact_folder, splits, tmp_path):
    merged = _merged(exact_folder, splits, tmp_path)
    dense, four_bit = merged.merge_candidates
    assert merged.merged_onto == "16bit"
    assert dense.kept
    assert not four_bit.kept
    assert "within noise" in dense.note
    assert 0 < dense.kl_mean == four_bit.kl_mean < 1e-3  # what rounding to bfloat16 costs both


@pytest.mark.parametrize(("onto", "four_bit_base"), [("auto", False), ("16bit", True), ("nf4", True)])
def test_nothing_is_measured_where_nothing_is_chosen(base_folder, splits, tmp_path, monkeypatch, onto, four_bit_base):
    if onto == "nf4":
        pytest.importorskip("bitsandbytes", reason="NF4 needs bitsandbytes: pip install 'fieldtune[qlora]'")

    def refuse(*arguments, **settings):
        raise AssertionError("a model was run")

    monkeypatch.setattr(hf, "load", refuse)
    merged = _merged(base_folder, splits, tmp_path, onto=onto, four_bit_base=four_bit_base)
    assert merged.merge_candidates == ()
    assert merged.merged_onto == ("16bit" if onto == "auto" else onto)


def test_without_bitsandbytes_the_error_says_how_to_get_it(base_folder, splits, tmp_path, monkeypatch):
    from export.errors import MissingDependencyError

    adapter = _adapter(base_folder, tmp_path / "adapter")
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    (tmp_path / "merged").mkdir()
    base = open_base(ModelSettings(name=str(base_folder), dtype="float32"))
    with pytest.raises(MissingDependencyError, match=r"pip install 'fieldtune\[qlora\]'"):
        merge_as_asked(adapter, base, MergeSettings(), splits, tmp_path / "merged", seed=0, say=print)


def _rows(seed, mean, rows=40, tokens=9):
    drawn = torch.distributions.Exponential(1 / mean).sample
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return drawn((rows, tokens)).tolist()


def _kept(onto_16bit, onto_nf4):
    (kept,) = (c for c in choose(onto_16bit, onto_nf4, seed=0) if c.kept)
    return kept


def test_a_difference_that_the_rows_can_tell_decides():
    assert _kept(_rows(0, 0.10), _rows(1, 0.05)).onto == "nf4"
    kept = _kept(_rows(0, 0.05), _rows(1, 0.10))
    assert kept.onto == "16bit"
    assert "the nearer is kept" in kept.note


def test_rows_are_paired():
    # the same rows are hard for both: unpaired, this difference would drown in how much the rows differ
    hard = [[math.exp(n % 7)] * 5 for n in range(40)]
    easier = [[0.99 * value for value in row] for row in hard]
    kept = _kept(hard, easier)
    assert kept.onto == "nf4"


def test_noise_decides_nothing_however_it_falls():
    kept = [_kept(_rows(2 * n, 0.05), _rows(2 * n + 1, 0.05)) for n in range(100)]
    told = [c for c in kept if "within noise" not in c.note]
    # the interval is a 90 % one: ten of a hundred are expected outside it (20 is 3.3 standard deviations away)
    assert len(told) <= 20
    assert all(c.onto == "16bit" for c in kept if "within noise" in c.note)


def test_one_row_tells_nothing():
    dense, four_bit = choose([[0.5, 0.5]], [[0.1, 0.1]], seed=0)
    assert dense.kept
    assert "within noise" in dense.note
    assert dense.stderr is None
    assert four_bit.n_rows == 1


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_a_broken_merge_is_never_the_nearer(bad):
    fine = _rows(0, 0.05)
    broken = [[bad, *row[1:]] for row in fine]
    kept = _kept(broken, fine)
    assert (kept.onto, kept.note) == ("nf4", "the divergence of 16bit is not finite")
    assert _kept(fine, broken).onto == "16bit"
    assert _kept(broken, broken).note == "the divergence of 16bit and of nf4 is not finite"


def test_a_record_with_an_infinite_divergence_is_read_again():
    candidates = choose(_rows(0, 0.05), [[math.inf]] * 40, seed=0)
    folder = ModelFolder(folder="m", dtype="bfloat16", base="b", chat_template_sha256="0", merge_candidates=candidates)
    read = ModelFolder.model_validate({**json.loads(folder.model_dump_json()), "folder": "m"})
    assert read == folder


RECIPE = """\
name: test
seed: 3
model: {{name: {model}, dtype: float32}}
data: {{path: rows.jsonl, template: question_answer, max_tokens: 128}}
train: {{max_steps: 2, batch_size: 4, quantization: {quantization}}}
"""


@pytest.fixture
def work(tmp_path, base_folder, monkeypatch):
    """Writes a recipe, and merges with it."""
    monkeypatch.chdir(tmp_path)
    rows = [{"question": f"What is {n}?", "answer": "It is " + f"{n} " * (1 + n % 7)} for n in range(60)]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")

    def merged(quantization, *overrides):
        recipe = RECIPE.format(model=base_folder, quantization=quantization)
        (tmp_path / "recipe.yaml").write_text(recipe, encoding="utf-8")
        arguments = [word for override in overrides for word in ("--set", override)]
        assert cli.main(["merge", "recipe.yaml", "--out", "run", *arguments]) == 0
        return json.loads((tmp_path / "run/merged/manifest.json").read_text(encoding="utf-8"))

    return merged


def test_a_recipe_that_says_nothing_of_merging_has_qlora_measured(work, bitsandbytes, capsys, monkeypatch):
    _refuse_a_second_model(monkeypatch)  # nor may the one that was trained still be there
    manifest = work("nf4")
    candidates = manifest["result"]["merge_candidates"]
    assert [c["onto"] for c in candidates] == ["16bit", "nf4"]
    assert sum(c["kept"] for c in candidates) == 1
    valid = json.loads(Path("run/data/manifest.json").read_text(encoding="utf-8"))["result"]
    assert {c["n_rows"] for c in candidates} == {valid["valid"]["rows"]}
    assert {c["n_tokens"] for c in candidates} == {valid["valid"]["scored_tokens"]}
    assert manifest["inputs"]["data"] == valid["fingerprint"]
    assert manifest["inputs"]["seed"] == 3
    capsys.readouterr()
    assert work("nf4") == manifest
    assert "merge: already done" in capsys.readouterr().out


def test_plain_lora_depends_on_no_rows_when_it_is_merged(work):
    manifest = work("none")
    assert manifest["result"]["merge_candidates"] == []
    assert manifest["result"]["merged_onto"] == "16bit"
    assert {manifest["inputs"][name] for name in ("data", "seed", "thinking", "dtype")} == {None}
