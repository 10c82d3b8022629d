"""What storing one tensor in one type is expected to cost, in nats per assistant token.

Two things are measured and multiplied. How far rounding moves a tensor's outputs: the squared error of its weights,
each channel weighted by its mean square (`export.importance`), which is cheap and told for every tensor and type. And
what such an error costs: the divergence that demoting the tensors of one group adds, over their errors, which takes
running files. To second order the divergence is a square form of the errors, so that small ones of
independent tensors add up; larger ones do not, and what is chosen by them is measured again. A third is measured for
each type: how much more an error in it costs than one in another (`export.search.searching`).
"""

import re
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping

from export.importance import Importances
from export.readers.gguf import StoredTensor, rows_of

_LAYER = re.compile(r"^blk\.(\d+)\.(.+)\.weight$")
# Rows of a matrix that its error is estimated on, in evenly spaced spans: an embedding has 150,000.
_SPANS, _ROWS_IN_A_SPAN = 16, 32
# A group whose demotion cannot be told from noise is taken to cost this share of the costliest: never nothing.
LEAST_SHARE = 1e-3


def kind_of(name: str) -> str:
    """What a tensor is for, whatever its layer: "attn_q", "ffn_down", "token_embd"."""
    found = _LAYER.match(name)
    return found[2] if found else name.removesuffix(".weight")


def groups_of(names: Iterable[str], bands: int) -> dict[str, tuple[str, ...]]:
    """Tensors by kind and, for those of layers, by which of `bands` equal parts of the depth they lie in."""
    names = tuple(names)
    layers = 1 + max((int(found[1]) for name in names if (found := _LAYER.match(name))), default=0)
    groups: dict[str, list[str]] = defaultdict(list)
    for name in names:
        found = _LAYER.match(name)
        part = f" {1 + int(found[1]) * bands // layers}/{bands}" if found else ""
        groups[kind_of(name) + part].append(name)
    return {group: tuple(members) for group, members in groups.items()}


def output_error(plain: StoredTensor, rounded: StoredTensor, importances: Importances | None) -> float:
    """The squared error of a tensor's outputs for one token, summed over outputs: estimated on some of its rows."""
    import numpy as np

    known = importances.of.get(plain.name) if importances is not None else None
    total, looked_at = 0.0, 0
    for begin, end in _spans(plain.rows):
        squares = np.square(rows_of(plain, begin, end) - rows_of(rounded, begin, end), dtype=np.float64)
        total += float((squares * known.mean_squares).sum() if known is not None else squares.sum())
        looked_at += end - begin
    return total * plain.rows / looked_at


def _spans(rows: int) -> Iterator[tuple[int, int]]:
    """All rows of a small matrix, and evenly spaced spans of a large one."""
    step = max(_ROWS_IN_A_SPAN, rows // _SPANS)
    return ((begin, min(rows, begin + _ROWS_IN_A_SPAN)) for begin in range(0, rows, step))


def cost_per_error(added: Mapping[str, float], errors: Mapping[str, float]) -> dict[str, float]:
    """By group, nats per unit of error: what its demotion is measured to add to the divergence, over its errors."""
    least = LEAST_SHARE * max(0.0, *added.values())
    return {group: max(more, least) / errors[group] if errors[group] > 0 else 0.0 for group, more in added.items()}
