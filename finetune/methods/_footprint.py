"""What a training method says of itself so that its memory and time can be estimated: sizes, no behaviour."""

from export.frozen import Frozen


class LoraSize(Frozen):
    """What decides how many parameters a LoRA adapter has. `targets`: 'all-linear', or names of layers."""

    rank: int
    targets: str | tuple[str, ...]
    has_magnitudes: bool


class Footprint(Frozen):
    """A training's sizes.

    `lora` is None where every weight is trained. A step sees `rows_per_step` rows in passes of `rows_per_pass`. One
    of `epochs` and `steps` decides how long it lasts: `steps` where it is given. The valid rows are scored
    `evaluations` times.
    """

    lora: LoraSize | None
    is_four_bit: bool
    recomputes_activations: bool
    rows_per_step: int
    rows_per_pass: int
    epochs: float
    steps: int | None
    evaluations: int
