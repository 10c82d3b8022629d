"""Watches gptqmodel quantize, module by module: what optimum's interface drops.

gptqmodel never stops when a module cannot be quantized as asked; it rounds it plainly, raises the damping or zeroes
columns, and says so in a log line. optimum throws away the return values that would tell. This file turns them into
records; what becomes of the records is decided in `gptq`.
"""

import contextlib
from collections.abc import Iterator
from typing import Any

from export.errors import ExportError
from export.quantization_record import ModuleRecord


@contextlib.contextmanager
def recording(model: Any) -> Iterator[dict[str, ModuleRecord]]:
    """While it lasts, every layer of `model` that optimum quantizes leaves a record, by name.

    optimum names the class in its own module and offers no hook, so that name is replaced for the duration: a
    subclass that calls gptqmodel's methods unchanged and reads what they return. The alternative, a copy of optimum's
    loop, would have to follow it from release to release.
    """
    from optimum.gptq import quantizer as optimum_quantizer

    names = {id(module): name for name, module in model.named_modules()}
    records: dict[str, ModuleRecord] = {}
    plain = optimum_quantizer.GPTQ
    optimum_quantizer.GPTQ = _recording_class(plain, names, records)
    try:
        yield records
    finally:
        optimum_quantizer.GPTQ = plain


def _recording_class(plain: Any, names: dict[int, str], records: dict[str, ModuleRecord]) -> Any:
    """A subclass of gptqmodel's GPTQ that writes into `records`."""

    class RecordingGptq(plain):
        unused_inputs = 0
        diagonal_raised = False
        mocked = False

        def finalize_hessian(self, target_device: Any = None) -> Any:
            hessian = super().finalize_hessian(target_device=target_device)
            diagonal = self.H.diagonal()
            if not bool(diagonal.isfinite().all()):
                raise ExportError(
                    f"the calibration inputs of {names[id(self.module)]} are not finite: the model overflows or its "
                    "weights are broken. Check the merged model's perplexity before quantizing it."
                )
            self.unused_inputs = int((diagonal == 0).sum())
            return hessian

        def hessian_inverse(self, hessian: Any) -> Any:
            before = hessian.diagonal().clone()
            inverse = super().hessian_inverse(hessian)
            self.diagonal_raised = not bool((hessian.diagonal() == before).all())
            return inverse

        def quantize(self, blocksize: int = 128) -> Any:
            result = super().quantize(blocksize=blocksize)
            loss, damp, samples = result[5:8]
            # after a NaN gptqmodel calls itself again with an identity Hessian, through a flag it never takes back
            self.mocked = self.mocked or self.qcfg.mock_quantization
            self.qcfg.mock_quantization = False
            rounded = self.mocked or isinstance(loss, str)
            name = names[id(self.module)]
            records[name] = ModuleRecord(
                name=name,
                method="plain rounding" if rounded else "gptq",
                samples=int(samples),
                inputs=int(self.columns),
                loss=None if rounded else float(loss),
                damp=float(damp),
                unused_inputs=self.unused_inputs,
                diagonal_raised=self.diagonal_raised,
            )
            return result

    return RecordingGptq
