"""`fieldtune fit`: what of a model fits a device, before anything is quantized.

Here a user's MODEL becomes a GGUF header: of a model folder, a run, a file, or of the dimensions of a known base. The
arithmetic is `export.device`; its words and bars are `finetune.fit_wording`.
"""

import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

from export.artifacts import read_model_config
from export.device import skeleton
from export.device.budget import Fit, Limits, Model, contexts_to_try, fit
from export.device.cache import cache_shape
from export.device.memory import context_needs
from export.device.profile import CACHE_TYPES, CacheType, DeviceProfile
from export.device.sizes import SIXTEEN_BIT, PlannedFile, as_it_is, planned_file
from export.device.skeleton import Shape
from export.device.speed import ModelShape
from export.errors import ModelError, RecipeError
from export.formats.gguf import FILE_TYPES
from export.plugins import nearest
from export.readers.gguf import GgufContent, read_gguf
from export.stage import read_manifest
from finetune.base_model import ModelSettings
from finetune.estimate.architecture import Architecture, architecture_of, known_base_names
from finetune.hub import is_on_a_hub, resolve_model

# What is looked at where no types are named: one or two of each number of bits.
USUAL_TYPES = (SIXTEEN_BIT, "q8_0", "q6_k", "q5_k_m", "q4_k_m", "iq4_nl", "q4_0", "q3_k_m", "q2_k")
# One and two bits without importance data: for models that were trained to be stored so.
_FOR_OTHER_MODELS = ("q2_0", "q1_0", "tq2_0", "tq1_0")
_RUN_PARTS = ("merged", "export/gguf-f16/model-f16.gguf")
BATCH_TOKENS = 512
# Qwen2.5's and Qwen3's vocabulary: the header that it makes, and what llama.cpp makes of it in memory. Measured on
# Qwen2.5-0.5B; where a model is not here they stand in for its own.
_QWEN_HEADER_BYTES, _QWEN_VOCABULARY_BYTES = 5_947_712, 54_000_000


class Fitted(NamedTuple):
    """What was found, of what. `is_exact` is false where sizes stand on a model's dimensions alone."""

    model: str
    device: DeviceProfile
    fit: Fit
    is_exact: bool


class _Source(NamedTuple):
    """A 16-bit GGUF file, or its header, and how it came to be."""

    path: Path
    is_exact: bool
    own_type: str | None = None


def fit_model(
    name: str,
    device: DeviceProfile,
    limits: Limits,
    *,
    types: Sequence[str] = (),
    caches: Sequence[CacheType] = CACHE_TYPES,
    say: Callable[[str], None],
) -> Fitted:
    """What of the model called `name` fits the device.

    `name` is a model folder, a run's folder, a GGUF file, or a hub's id. A file that is quantized already is looked at
    as it is. Raises RecipeError for a type that there is none of, ModelError for a model that cannot be read.
    """
    if "gguf" not in device.formats:
        raise RecipeError(f"{device.title} runs {' and '.join(device.formats)} only; sizes are told for gguf alone.")
    _refuse_unknown(types)
    with _source(name, say) as source:
        if source.own_type and types:
            raise RecipeError(
                f"--types: {name} is quantized already; expected a 16-bit model, which could "
                "become other types. Leave --types out, or name the model folder."
            )
        content = read_gguf(source.path)
        found = fit(
            _model(source, content, limits),
            device,
            limits,
            types=[source.own_type] if source.own_type else types or USUAL_TYPES,
            caches=caches,
            other_types=() if source.own_type else [name for name in FILE_TYPES if name not in _FOR_OTHER_MODELS],
        )
    return Fitted(name, device, found, source.is_exact)


def model_of_file(path: Path, limits: Limits) -> Model:
    """A GGUF file as it is: whatever type its plan is asked for, the file itself. Raises ModelError."""
    content = read_gguf(path)
    model = _model(_Source(path, is_exact=True), content, limits)
    return model._replace(plan=lambda _: as_it_is(content, path.stem))


def model_of_sixteen_bit(path: Path, limits: Limits) -> Model:
    """What a 16-bit GGUF file can become. Raises ModelError, and RecipeError for a context beyond the model's."""
    return _model(_Source(path, is_exact=True), read_gguf(path), limits)


@contextmanager
def sixteen_bit_header(folder: Path, say: Callable[[str], None]) -> Iterator[Path]:
    """A GGUF file with the header that a model folder would be converted to. Raises as the converter does."""
    with _source(str(folder), say) as source:
        yield source.path


def parse_types(text: str) -> tuple[str, ...]:
    """File types from a list with commas, as --types has them."""
    return tuple(name.strip() for name in text.split(",") if name.strip())


def parse_caches(text: str) -> tuple[CacheType, ...]:
    """Types of cache from a list with commas; all where it is empty. Raises RecipeError for another."""
    asked = parse_types(text)
    for name in asked:
        if name not in CACHE_TYPES:
            raise RecipeError(f"unknown type of cache {name!r}. {nearest(name.lower(), CACHE_TYPES)}")
    return tuple(kind for kind in CACHE_TYPES if not asked or kind in asked)


def _refuse_unknown(types: Sequence[str]) -> None:
    for name in types:
        if name not in (SIXTEEN_BIT, *FILE_TYPES):
            raise RecipeError(f"unknown GGUF file type {name!r}. {nearest(name.lower(), (SIXTEEN_BIT, *FILE_TYPES))}")


def _model(source: _Source, content: GgufContent, limits: Limits) -> Model:
    architecture = content.metadata.get("general.architecture")
    if architecture is None:
        raise ModelError(f"{source.path} names no architecture: it is a GGUF file, but of no model.")
    trained = content.metadata.get(f"{architecture}.context_length")
    if trained is not None and limits.context_tokens > trained:
        raise RecipeError(
            f"a context of {limits.context_tokens:,} tokens was asked for, and the model was trained on {trained:,} at "
            f"most. Ask for --context {trained} or less."
        )
    needs = context_needs(source.path, contexts_to_try(limits.context_tokens), BATCH_TOKENS)
    if not source.is_exact:
        update = {"vocabulary_bytes": _QWEN_VOCABULARY_BYTES}
        needs = {tokens: need.model_copy(update=update) for tokens, need in needs.items()}

    @cache
    def plan(file_type: str) -> PlannedFile:
        if file_type == source.own_type:
            return as_it_is(content, file_type)
        planned = planned_file(source.path, content, file_type)
        if source.is_exact:
            return planned
        more = _QWEN_HEADER_BYTES - planned.header_bytes
        return planned.model_copy(
            update={"size_bytes": planned.size_bytes + more, "header_bytes": planned.header_bytes + more}
        )

    return Model(_shape(content), plan, needs)


def _shape(content: GgufContent) -> ModelShape:
    of: dict[str, Any] = content.metadata
    prefix = of["general.architecture"]
    heads = of[f"{prefix}.attention.head_count"]
    heads = max(heads) if isinstance(heads, list) else heads
    width = of.get(f"{prefix}.attention.key_length", of[f"{prefix}.embedding_length"] // heads)
    experts, used = (of.get(f"{prefix}.{name}") for name in ("expert_count", "expert_used_count"))
    return ModelShape(
        layers=of[f"{prefix}.block_count"],
        query_values=heads * width,
        cache=cache_shape(of),
        expert_share=used / experts if experts and used else 1.0,
    )


@contextmanager
def _source(name: str, say: Callable[[str], None]) -> Iterator[_Source]:
    """The model's header as a file. Raises ModelError for what is no model, and ExportError as the converter does."""
    path = resolve_model(name, revision=None, offline=True) if name == "starter" else Path(name).expanduser()
    if path.is_dir() and not (path / "config.json").is_file() and len(files := list(path.glob("*.gguf"))) == 1:
        (path,) = files  # a run's own folder of one file
    with tempfile.TemporaryDirectory(prefix="fieldtune-") as folder:
        made = Path(folder) / "model-f16.gguf"
        if path.is_dir():
            yield _of_folder(path, made, say)
        elif path.suffix == ".gguf" or path.is_file():
            yield _of_file(path)
        elif is_on_a_hub(name):
            _write_known(architecture_of(ModelSettings(name=name)), made)
            yield _Source(made, is_exact=False)
        else:
            known = f" Did you mean Qwen/{name}?" if name in known_base_names() else ""
            raise ModelError(
                f"there is no model {name}.{known} Give a model folder, a run's folder, a .gguf file or a hub's id."
            )


def _of_folder(path: Path, made: Path, say: Callable[[str], None]) -> _Source:
    """A run's 16-bit file where there is one, and otherwise what its merged folder, or the folder, would become."""
    merged, sixteen_bit = (path / part for part in _RUN_PARTS)
    if sixteen_bit.is_file():
        return _Source(sixteen_bit, is_exact=True)
    model = merged if (merged / "config.json").is_file() else path
    config = read_model_config(model)
    if config.get("quantization_config"):
        raise ModelError(f"{model} is quantized already. Give the 16-bit folder that it was made from.")
    from export.converter import convert_header

    say(f"reading what {model} would be converted to")
    convert_header(model, _named(model), made)
    return _Source(made, is_exact=True)


def _named(model: Path) -> str:
    """The name that a file of this folder gets: its base's, where a run merged it."""
    manifest = read_manifest(model)
    base = None if manifest is None else manifest.result.get("base")
    return Path(str(base)).name if base else model.resolve().name


def _of_file(path: Path) -> _Source:
    types = {tensor.stored_as for tensor in read_gguf(path).tensors}
    if types <= {"f32", "f16", "bf16"}:
        return _Source(path, is_exact=True)
    return _Source(path, is_exact=True, own_type=path.stem)


def _write_known(model: Architecture, path: Path) -> None:
    """A skeleton of a known base's dimensions, with no vocabulary: its file is told without that, and it is added."""
    family = "qwen3" if model.has_head_norms else "qwen2"
    metadata: dict[str, Any] = {
        f"{family}.block_count": model.layers,
        f"{family}.context_length": 40960 if model.has_head_norms else 32768,
        f"{family}.embedding_length": model.hidden_size,
        f"{family}.feed_forward_length": model.intermediate_size,
        f"{family}.attention.head_count": model.heads,
        f"{family}.attention.head_count_kv": model.key_value_heads,
        f"{family}.attention.key_length": model.head_size,
        f"{family}.attention.value_length": model.head_size,
        f"{family}.attention.layer_norm_rms_epsilon": 1e-6,
        f"{family}.vocab_size": model.vocabulary,
        "tokenizer.ggml.model": "no_vocab",
    }
    skeleton.write(path, family, metadata, _known_tensors(model))


def _known_tensors(model: Architecture) -> list[Shape]:
    hidden, queries, keys = model.hidden_size, model.query_size, model.key_value_size
    matrices = {
        "attn_q": "q_proj",
        "attn_k": "k_proj",
        "attn_v": "v_proj",
        "attn_output": "o_proj",
        "ffn_gate": "gate_proj",
        "ffn_up": "up_proj",
        "ffn_down": "down_proj",
    }
    vectors = {"attn_norm.weight": hidden, "ffn_norm.weight": hidden}
    if model.has_qkv_bias:
        vectors |= {"attn_q.bias": queries, "attn_k.bias": keys, "attn_v.bias": keys}
    if model.has_head_norms:
        vectors |= {"attn_q_norm.weight": model.head_size, "attn_k_norm.weight": model.head_size}
    names = ("token_embd.weight",) if model.is_tied else ("token_embd.weight", "output.weight")
    tensors = [Shape(name, "f16", (model.vocabulary, hidden)) for name in names]
    tensors.append(Shape("output_norm.weight", "f32", (hidden,)))
    for layer in range(model.layers):
        tensors += [Shape(f"blk.{layer}.{name}", "f32", (size,)) for name, size in vectors.items()]
        linears = ((ours, model.linears[theirs]) for ours, theirs in matrices.items())
        tensors += [Shape(f"blk.{layer}.{n}.weight", "f16", (li.outputs, li.inputs)) for n, li in linears]
    return tensors
