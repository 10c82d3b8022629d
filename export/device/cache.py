"""How much memory a context takes for what was read: keys and values, and the states of linear layers.

Keys and values: 2 x layers x heads x width x bytes for each token, of the layers with full attention; of layers with a
window only its tokens and a batch's, where llama.cpp is asked for no more (`swa_full` off, as llama-server, the
bundle's client and the runs of this package have it). llama.cpp rounds a context up to 256 tokens. A linear layer
(Qwen3.5's gated delta net) keeps a state of one size however long the text is: its recurrence and the last inputs of
its convolution, both in float32 (llama.cpp, llama-hparams: n_embd_r and n_embd_s). A test holds all of it against
llama.cpp's own account.
"""

from typing import Any

from export.device.profile import CacheType
from export.frozen import Frozen
from export.readers.gguf import block_size

CACHE_STEP_TOKENS = 256
# a window's cache has room for the batch that is being computed too
_BATCH_TOKENS = 512
_FLOAT32 = 4


class CacheShape(Frozen):
    """What decides a cache's size. `values_per_token` are keys and values of one token, over all full layers.

    `window_values_per_token` are those of layers that look back no further than `window_tokens`; `state_values` the
    numbers that linear layers keep, whatever the length. `layers` are those that have keys and values.
    """

    layers: int
    values_per_token: int
    window_values_per_token: int = 0
    window_tokens: int = 0
    state_values: int = 0

    def bytes_per_token(self, cache_type: CacheType) -> int:
        """What one token more takes, while it is inside every window."""
        return _stored(self.values_per_token + self.window_values_per_token, cache_type)

    def cache_bytes(self, context_tokens: int, cache_type: CacheType) -> int:
        """What llama.cpp allocates for a context of so many tokens."""
        windowed = min(_rounded(context_tokens), _rounded(self.window_tokens + _BATCH_TOKENS))
        return (
            _rounded(context_tokens) * _stored(self.values_per_token, cache_type)
            + windowed * _stored(self.window_values_per_token, cache_type)
            + self.state_values * _FLOAT32
        )

    def read_bytes(self, tokens: int, cache_type: CacheType) -> int:
        """What is read for one more token behind so many."""
        return (
            tokens * _stored(self.values_per_token, cache_type)
            + min(tokens, self.window_tokens) * _stored(self.window_values_per_token, cache_type)
            + self.state_values * _FLOAT32
        )


def cache_shape(metadata: dict[str, Any]) -> CacheShape:
    """The shape that a GGUF file's metadata declares."""
    architecture = metadata["general.architecture"]

    def setting(key: str, otherwise: Any = None) -> Any:
        return metadata.get(f"{architecture}.{key}", otherwise)

    layers, heads = setting("block_count"), setting("attention.head_count")
    width = setting("embedding_length") // (heads if isinstance(heads, int) else max(heads))
    both = setting("attention.key_length", width) + setting("attention.value_length", width)
    of_layers = setting("attention.head_count_kv", heads)
    key_value_heads = of_layers if isinstance(of_layers, list) else [of_layers] * layers
    interval = setting("full_attention_interval", 1) if setting("ssm.state_size") else 1
    full = [layer for layer in range(layers) if (layer + 1) % interval == 0]
    windowed = _windowed(setting, layers)
    return CacheShape(
        layers=len(full),
        values_per_token=sum(both * key_value_heads[layer] for layer in full if layer not in windowed),
        window_values_per_token=sum(both * key_value_heads[layer] for layer in windowed),
        window_tokens=setting("attention.sliding_window", 0) if windowed else 0,
        state_values=(layers - len(full)) * _state_values(setting),
    )


def _windowed(setting: Any, layers: int) -> frozenset[int]:
    """Layers that have a window: those that the file marks, or by its period all but every n-th."""
    pattern = setting("attention.sliding_window_pattern")
    if not setting("attention.sliding_window") or pattern is None:
        return frozenset()
    if isinstance(pattern, list):
        return frozenset(layer for layer, has_window in enumerate(pattern) if has_window)
    return frozenset(layer for layer in range(layers) if (layer + 1) % pattern)


def _state_values(setting: Any) -> int:
    """The numbers that one linear layer keeps: its recurrence, and the inputs that its convolution looks back on."""
    state, inner = setting("ssm.state_size"), setting("ssm.inner_size")
    if not state:
        return 0
    kept = setting("ssm.conv_kernel") - 1
    return int(state * inner + kept * (inner + 2 * setting("ssm.group_count", 0) * state))


def _stored(values: int, cache_type: CacheType) -> int:
    block, block_bytes = block_size(cache_type)
    return values * block_bytes // block


def _rounded(tokens: int) -> int:
    return -(-tokens // CACHE_STEP_TOKENS) * CACHE_STEP_TOKENS
