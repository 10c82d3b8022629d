"""A base model's dimensions, and the number of its parameters: from its config.json, or from the table of known bases.

Dense Qwen2, Qwen2.5 and Qwen3 models, whose layers are alike. Models with other layers (Qwen3.5's linear attention,
experts) are refused by name rather than estimated wrongly.
"""

from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

from pydantic import ValidationError

from export.artifacts import read_model_config
from export.errors import FieldtuneError, ModelError
from export.frozen import Frozen
from finetune.base_model import ModelSettings
from finetune.hub import is_on_a_hub, parse, resolve_model
from finetune.yaml_text import read_yaml

_BASES = Path(__file__).with_name("bases.yaml")
_KNOWN_TYPES = ("qwen2", "qwen3")


class Linear(NamedTuple):
    """The size of a linear layer: values in, values out."""

    inputs: int
    outputs: int

    @property
    def weights(self) -> int:
        """Its weights, without a bias."""
        return self.inputs * self.outputs


class Architecture(Frozen):
    """The dimensions that decide memory and time.

    `head_size` is the width of an attention head; `has_qkv_bias` (Qwen2) and `has_head_norms` (Qwen3) tell the two
    families apart.
    """

    layers: int
    hidden_size: int
    intermediate_size: int
    heads: int
    key_value_heads: int
    head_size: int
    vocabulary: int
    is_tied: bool
    has_qkv_bias: bool
    has_head_norms: bool

    @property
    def query_size(self) -> int:
        """Values of a token's queries, over all heads."""
        return self.heads * self.head_size

    @property
    def key_value_size(self) -> int:
        """Values of a token's keys; its values have as many."""
        return self.key_value_heads * self.head_size

    @property
    def linears(self) -> dict[str, Linear]:
        """The linear layers of one block, by their names."""
        hidden, inner, queries, keys = self.hidden_size, self.intermediate_size, self.query_size, self.key_value_size
        return {
            "q_proj": Linear(hidden, queries),
            "k_proj": Linear(hidden, keys),
            "v_proj": Linear(hidden, keys),
            "o_proj": Linear(queries, hidden),
            "gate_proj": Linear(hidden, inner),
            "up_proj": Linear(hidden, inner),
            "down_proj": Linear(inner, hidden),
        }

    @property
    def head(self) -> Linear:
        """The language head, whether or not it shares its weights with the embedding."""
        return Linear(self.hidden_size, self.vocabulary)

    @property
    def block_weights(self) -> int:
        """Weights of the linear layers of all blocks: what NF4 holds in 4 bits, and a token is multiplied with."""
        return self.layers * sum(linear.weights for linear in self.linears.values())

    @property
    def parameters(self) -> int:
        """All parameters, a tensor that is used twice counted once."""
        biases = self.query_size + 2 * self.key_value_size if self.has_qkv_bias else 0
        norms = 2 * self.hidden_size + (2 * self.head_size if self.has_head_norms else 0)
        embeddings = self.head.weights * (1 if self.is_tied else 2)
        return self.block_weights + self.layers * (biases + norms) + embeddings + self.hidden_size

    def adapter_parameters(self, rank: int, targets: str | tuple[str, ...], *, with_magnitudes: bool = False) -> int:
        """Parameters of a LoRA adapter: rank x (in + out) for each adapted layer (Hu et al. 2021, section 4.1).

        `targets` as peft reads them: 'all-linear', or the last parts of names. DoRA has a magnitude for each output
        besides (Liu et al. 2024, section 4.1).
        """
        linears = self.linears
        chosen = set(linears) if isinstance(targets, str) else {target.rpartition(".")[2] for target in targets}
        adapted = [(linear, self.layers) for name, linear in linears.items() if name in chosen]
        adapted += [(self.head, 1)] if "lm_head" in chosen else []
        return sum(
            times * (rank * (linear.inputs + linear.outputs) + (linear.outputs if with_magnitudes else 0))
            for linear, times in adapted
        )


def architecture_of(settings: ModelSettings) -> Architecture:
    """The architecture of a recipe's base model, without asking a hub.

    Raises ModelError where it is neither on this machine nor in the table of known bases, or is of another kind.
    """
    if not is_on_a_hub(settings.name):
        path = resolve_model(settings.name, revision=settings.revision, offline=True)
        return from_config(read_model_config(path), settings.name)
    repository = parse(settings.name, "model", None)
    assert repository is not None, "it has the form of a hub's id"
    _, _, name = repository.name.rpartition("/")
    if name in _known_bases():
        return from_config(_known_bases()[name], settings.name)
    try:
        path = resolve_model(settings.name, revision=settings.revision, offline=True)
    except FieldtuneError as error:
        raise ModelError(
            f"the dimensions of {settings.name} are not known: it is not on this machine, and not one of the known "
            f"bases ({', '.join(_shortest_names())}). Fetch it, and give its folder as model.name."
        ) from error
    return from_config(read_model_config(path), settings.name)


def from_config(config: dict[str, Any], name: str) -> Architecture:
    """The architecture that a config.json describes; `name` is for errors.

    Raises ModelError for one whose layers this estimate does not know, or that lacks a dimension.
    """
    kind = config.get("model_type")
    if kind not in _KNOWN_TYPES:
        raise ModelError(
            f"{name} is of the type {kind!r}; an estimate is made for {' and '.join(_KNOWN_TYPES)} alone. It can be "
            "trained all the same: watch the memory of its first steps."
        )
    heads = config.get("num_attention_heads")
    hidden = config.get("hidden_size")
    try:
        return Architecture(
            layers=config["num_hidden_layers"],
            hidden_size=config["hidden_size"],
            intermediate_size=config["intermediate_size"],
            heads=config["num_attention_heads"],
            key_value_heads=config.get("num_key_value_heads", heads),
            head_size=config.get("head_dim") or hidden // heads,  # type: ignore[operator]
            vocabulary=config["vocab_size"],
            is_tied=config.get("tie_word_embeddings", False),
            has_qkv_bias=kind == "qwen2",
            has_head_norms=kind == "qwen3",
        )
    except (KeyError, ValidationError, TypeError, ZeroDivisionError) as error:
        raise ModelError(f"the config.json of {name} does not tell the model's dimensions: {error!r}.") from error


@cache
def _known_bases() -> dict[str, dict[str, Any]]:
    """The configs of the table, by the models' names without their owner."""
    entries: Any = read_yaml(_BASES)["bases"]
    return {name: entry["config"] for entry in entries for name in entry["names"]}


def known_base_names() -> tuple[str, ...]:
    """What the bases of the table are called, without their owner."""
    return tuple(_known_bases())


def _shortest_names() -> list[str]:
    """The name of each known size that the others of its size begin with."""
    entries: Any = read_yaml(_BASES)["bases"]
    return [entry["names"][0] for entry in entries]
