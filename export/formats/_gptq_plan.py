"""What GPTQ would do to a model, found from its config.json alone: so that a recipe can be refused before training.

Which layers exist comes from transformers, which of them are quantized together or left alone from gptqmodel, and
what stops optimum from walking a model is found here. Quantizing is `gptq`'s.
"""

import json
import re
from functools import cache
from importlib.util import find_spec
from itertools import chain
from typing import Any, NamedTuple

from export.engines import hf
from export.errors import ExportError, MissingDependencyError
from export.frozen import Frozen

# Rows and columns are packed into 32-bit words (gptqmodel's pack_block refuses anything else).
WORD_BITS = 32


class LinearLayer(Frozen):
    """A linear layer of a decoder block: its path inside the block and its sizes."""

    name: str
    inputs: int
    outputs: int


class Plan(Frozen):
    """What of a block is quantized, in which passes, and what stays in 16 bits and why.

    `blocks_differ` in their layers, `attention_differs` in what they look back on, by windows or by linear attention.
    Layers of one pass read the same input, so their Hessians are gathered in one run through the block.
    """

    layers: tuple[LinearLayer, ...]
    passes: tuple[tuple[str, ...], ...]
    kept: dict[str, str]
    blocks_differ: bool
    attention_differs: bool


@cache
def plan_for(config_json: str) -> Plan:
    """What GPTQ would do to a model of this config.json, found on a model without memory.

    Raises ExportError for an architecture that gptqmodel does not define or that optimum cannot walk, and for a model
    that is quantized already.
    """
    config: dict[str, Any] = json.loads(config_json)
    name = f"{config.get('model_type')} ({', '.join(config.get('architectures') or ['no architecture named'])})"
    if "quantization_config" in config:
        raise ExportError(f"{name} is quantized already. Quantize the 16-bit model that it was made from.")
    require_packages()
    blocks = _blocks_of(config, name)
    # Mixtures of experts hold their experts in one tensor, which is no linear layer; optimum would skip it silently.
    if blocks.linear_share < 0.5:
        raise ExportError(
            f"GPTQ cannot be used for {name}: only {blocks.linear_share:.0%} of its blocks' weights are in linear "
            "layers, and optimum quantizes nothing else. Export it to GGUF instead, which quantizes experts."
        )
    passes, kept_names = _definition(str(config["model_type"]), name)
    sensitive = "gptqmodel keeps it, being small and sensitive"
    kept = {layer.name: sensitive for layer in blocks.layers if layer.name in kept_names}
    for layer in blocks.layers:
        if layer.inputs % WORD_BITS or layer.outputs % WORD_BITS:
            kept[layer.name] = f"{layer.inputs} inputs and {layer.outputs} outputs do not fill {WORD_BITS}-bit words"
    quantized = tuple(layer for layer in blocks.layers if layer.name not in kept)
    offered = {layer.name for layer in quantized}
    if unlisted := offered - set(chain.from_iterable(passes)):
        raise ExportError(f"GPTQ cannot be used for {name}: gptqmodel does not list {', '.join(sorted(unlisted))}.")
    ordered = tuple(group for names in passes if (group := tuple(n for n in names if n in offered)))
    return Plan(
        layers=quantized,
        passes=ordered,
        kept=kept,
        blocks_differ=blocks.differ,
        attention_differs=blocks.attention_differs,
    )


def require_packages() -> None:
    """Raises MissingDependencyError when a package that quantizes is not installed; imports none of them."""
    for package in ("optimum", "gptqmodel"):
        if find_spec(package) is None:
            raise MissingDependencyError(package, "GPTQ export", "pip install 'fieldtune[gptq]'")


class _Blocks(NamedTuple):
    """A block's linear layers, in what blocks differ, and the linear layers' share of all blocks' weights."""

    layers: tuple[LinearLayer, ...]
    differ: bool
    attention_differs: bool
    linear_share: float


def _blocks_of(config: dict[str, Any], name: str) -> _Blocks:
    """What the blocks of a model without memory hold."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    settings = {key: value for key, value in config.items() if key not in ("model_type", "transformers_version")}
    try:
        with torch.device("meta"):
            model = AutoModelForCausalLM.from_config(AutoConfig.for_model(config["model_type"], **settings))
    except (KeyError, ValueError) as error:
        raise ExportError(f"GPTQ cannot be used for {name}: transformers knows no such language model.") from error
    except TypeError as error:
        raise ExportError(
            f"GPTQ cannot be used for {name}: its config.json does not describe a whole model ({error})."
        ) from error
    blocks: dict[str, set[str]] = {}
    layers: dict[str, LinearLayer] = {}
    for path, module in model.named_modules():
        # optimum's own test: exactly Linear, no subclass
        if type(module) is torch.nn.Linear and (found := re.search(r"\blayers\.(\d+)\.(.+)$", path)):
            blocks.setdefault(found[1], set()).add(found[2])
            layers[found[2]] = LinearLayer(name=found[2], inputs=module.in_features, outputs=module.out_features)
    of_blocks = sum(p.numel() for path, p in model.named_parameters() if re.search(r"\blayers\.\d+\.", path))
    linear = sum(layers[n].inputs * layers[n].outputs for names in blocks.values() for n in names)
    kinds = getattr(model.config.get_text_config(), "layer_types", None) or ()
    return _Blocks(
        layers=tuple(layers.values()),
        differ=len({frozenset(names) for names in blocks.values()}) > 1,
        attention_differs=len(set(kinds)) > 1,
        linear_share=linear / max(1, of_blocks),
    )


def _definition(model_type: str, name: str) -> tuple[tuple[tuple[str, ...], ...], set[str]]:
    """What gptqmodel says of an architecture: its linear layers by pass, and those it leaves alone (marked `!`)."""
    with hf.quiet_gptqmodel():
        from gptqmodel.models.auto import MODEL_MAP
    if model_type not in MODEL_MAP:
        raise ExportError(f"GPTQ cannot be used for {name}: gptqmodel does not know this architecture.")
    passes: dict[tuple[str, str], list[str]] = {}
    kept: set[str] = set()
    for parent, entries in MODEL_MAP[model_type].module_tree[-1].items():
        for entry in entries:
            child, *marks = str(entry).split(":")
            if "!" in marks:
                kept.add(f"{parent}.{child}")
            else:
                passes.setdefault((parent, marks[0] if marks else "0"), []).append(f"{parent}.{child}")
    return tuple(tuple(names) for names in passes.values()), kept


def check_blocks_take_the_same(model: Any, sequence: tuple[int, ...]) -> None:
    """Raises ExportError when blocks are called with different arguments.

    optimum replays every block with what the first one was given, its `cache_block_outputs=False` included (it never
    clears the arguments it kept). That is right for Qwen3.5's two kinds of block as long as unpadded sequences need
    no mask, and wrong for a model whose kinds of block rotate positions differently, say.
    """
    import torch

    seen: list[dict[str, Any]] = []
    blocks = model.get_submodule("model.layers")
    hooks = [
        block.register_forward_pre_hook(lambda _module, _args, given: seen.append(given), with_kwargs=True)
        for block in blocks
    ]
    try:
        with torch.inference_mode():
            model(input_ids=torch.tensor([sequence]), use_cache=False)
    finally:
        for hook in hooks:
            hook.remove()
    for given in seen[1:]:
        differing = [key for key in seen[0] if not _same(seen[0][key], given.get(key))]
        if differing:
            raise ExportError(
                f"GPTQ cannot be used for {model.config.model_type}: its blocks are called with different "
                f"{', '.join(differing)}, and optimum would replay the first block's. Export it to GGUF instead."
            )


def _same(first: Any, second: Any) -> bool:
    import torch

    if isinstance(first, torch.Tensor) and isinstance(second, torch.Tensor):
        return torch.equal(first, second)
    if isinstance(first, tuple | list) and isinstance(second, tuple | list):
        return len(first) == len(second) and all(_same(a, b) for a, b in zip(first, second, strict=True))
    return first is second or bool(first == second)
