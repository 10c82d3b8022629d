"""The machines that an estimate is made for: known ones, from a table with its sources, and this one, measured."""

import time
from functools import cache
from pathlib import Path
from typing import Literal, NamedTuple

from pydantic import Field

from export.errors import RecipeError
from export.frozen import Frozen
from export.hardware import ComputeDtype
from export.plugins import nearest
from finetune.yaml_text import read_yaml

_TABLE = Path(__file__).with_name("hardware.yaml")
THIS_MACHINE = "this_machine"
# What one training process reached of the probe's figure on two idle and on two shared cores: see the benchmark.
_CPU_EFFICIENCY = (0.12, 0.5)
_CPU_BLOCK_SECONDS = (0.002, 0.02)
_GPU_EFFICIENCY = (0.1, 0.4)  # and this: as in the table
_GPU_BLOCK_SECONDS = (0.002, 0.01)
_PROBE_SECONDS = 0.5
# Rows of the square matrices that the probe multiplies: past the caches, and short enough for one core.
_PROBE_SIZE = {"cpu": 1024, "cuda": 4096}


class Hardware(Frozen):
    """A machine: how fast it multiplies in the type that training computes in, and what it can hold.

    `efficiency` is the lowest and the highest share of `flops_per_second` that a training is expected to reach,
    `block_seconds` the least and the most that a pass takes for each block besides its products.
    """

    title: str
    kind: Literal["gpu", "cpu"]
    dtype: ComputeDtype
    flops_per_second: float = Field(gt=0)
    memory_bytes: int = Field(gt=0)
    efficiency: tuple[float, float]
    block_seconds: tuple[float, float]
    source: str


class _Probed(NamedTuple):
    """What the probe ran on, and the floating-point operations per second that it saw."""

    on_gpu: bool
    flops_per_second: float


@cache
def known_hardware() -> dict[str, Hardware]:
    """The machines of the table, by the names that --hardware takes."""
    return {name: Hardware.model_validate(entry) for name, entry in read_yaml(_TABLE).items()}


def find_hardware(name: str) -> Hardware:
    """The machine of that name, this one measured. Raises RecipeError, with the nearest name, when there is none."""
    if name == THIS_MACHINE:
        return this_machine()
    if name not in known_hardware():
        raise RecipeError(f"no hardware is called {name!r}. {nearest(name, (*known_hardware(), THIS_MACHINE))}")
    return known_hardware()[name]


def this_machine() -> Hardware:
    """The machine this runs on, measured: half a second of products in the type that training would compute in."""
    from export.hardware import compute_dtype, environment

    dtype = compute_dtype()
    probed = _probe(dtype)
    here = environment()
    return Hardware(
        title=f"this machine ({here.identity})",
        kind="gpu" if probed.on_gpu else "cpu",
        dtype=dtype,
        flops_per_second=probed.flops_per_second,
        memory_bytes=_device_bytes() if probed.on_gpu else here.memory_bytes,
        efficiency=_GPU_EFFICIENCY if probed.on_gpu else _CPU_EFFICIENCY,
        block_seconds=_GPU_BLOCK_SECONDS if probed.on_gpu else _CPU_BLOCK_SECONDS,
        source=f"square products in {dtype}, timed for {_PROBE_SECONDS} s just now",
    )


def _probe(dtype: ComputeDtype) -> _Probed:
    """Multiplies two square matrices for a while: 2 n^3 operations a product. The first product warms up."""
    import torch

    device = "cuda" if torch.cuda.is_available() else "cpu"
    size = _PROBE_SIZE[device]
    matrix = torch.ones(size, size, dtype=getattr(torch, dtype), device=device)
    products, began = 0, 0.0
    with torch.inference_mode():
        matrix @ matrix
        while products == 0 or time.perf_counter() - began < _PROBE_SECONDS:
            began = began or time.perf_counter()
            (matrix @ matrix)[0, 0].item()  # reading a value waits for the device
            products += 1
    return _Probed(device == "cuda", products * 2 * size**3 / (time.perf_counter() - began))


def _device_bytes() -> int:
    import torch

    return int(torch.cuda.get_device_properties(0).total_memory)
