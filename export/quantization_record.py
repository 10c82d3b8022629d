"""quantization.json, which lies beside the weights of a GPTQ folder made here: how it was quantized, and on which rows.

Written by `export.formats.gptq`, and read by whoever looks at such a folder: neither needs to know of the other.
"""

from collections.abc import Sequence
from typing import Literal

from export.artifacts import Fallback, sha256_of_json
from export.frozen import Frozen

RECORD = "quantization.json"


class ModuleRecord(Frozen):
    """How one linear layer was quantized.

    `loss` is GPTQ's weighted squared error per calibration token (None of other methods); `samples` the tokens
    that reached the layer; `damp` the share of the mean Hessian diagonal that was added to it; `unused_inputs` counts
    inputs that were zero for every token, whose weights gptqmodel sets to zero.
    """

    name: str
    method: Literal["gptq", "plain rounding", "tuned rounding"]
    samples: int
    inputs: int
    loss: float | None
    damp: float
    unused_inputs: int
    diagonal_raised: bool

    def fallbacks(self, damp: float) -> tuple[Fallback, ...]:
        """What was done otherwise than asked, `damp` being what was asked for."""
        found = []
        if self.method == "plain rounding":
            reason = "no calibration token reached it" if self.samples == 0 else "its Hessian could not be inverted"
            found.append(Fallback(what=self.name, asked="GPTQ", used=self.method, reason=reason))
        elif self.damp > damp or self.diagonal_raised:
            used = f"damp {self.damp:g}" + (" and a raised diagonal" if self.diagonal_raised else "")
            reason = "its Hessian was not positive definite: give more, or more varied, calibration rows"
            found.append(Fallback(what=self.name, asked=f"damp {damp:g}", used=used, reason=reason))
        if self.unused_inputs:
            used = f"{self.unused_inputs} of {self.inputs} input columns set to zero"
            reason = "these inputs were zero for every calibration token"
            found.append(Fallback(what=self.name, asked="every column quantized", used=used, reason=reason))
        return tuple(found)


class CalibrationRecord(Frozen):
    """The calibration data as it was used: rows, packed end to end into equal sequences.

    `rows_sha256` has the hash of each row's token ids (`row_sha256`), in order: enough to find a held-out row among
    them, and not the rows themselves. Empty in the record of a version that did not keep them. `general_rows` of the
    rows are general ones, and not of the domain.
    """

    rows: int
    sequences: int
    sequence_tokens: int
    tokens: int
    rows_sha256: tuple[str, ...] = ()
    general_rows: int = 0


class QuantizationRecord(Frozen):
    """The content of quantization.json: settings as used, and one record per quantized layer.

    `tuning_steps` are those of tuned rounding, None for GPTQ's own.
    """

    bits: int
    group_size: int
    damp: float
    desc_act: bool
    symmetric: bool
    computed_in: str
    calibration: CalibrationRecord
    modules: tuple[ModuleRecord, ...]
    tuning_steps: int | None = None


def row_sha256(ids: Sequence[int]) -> str:
    """The hash by which a row of token ids is recognised."""
    return sha256_of_json(list(ids))
