"""The machine's record is true to what the system says elsewhere, and bfloat16 is chosen only where it is native."""

import importlib.metadata
import os
import subprocess
import sys

import pytest

from export import hardware

CPU_INFO = "processor\t: 0\nmodel name\t: A Processor @ 2 GHz\nflags\t\t: fpu sse2 {flag} avx2\n"


@pytest.mark.parametrize(("flag", "native"), [("avx512_bf16", True), ("amx_bf16", True), ("avx512f", False)])
def test_bfloat16_needs_a_processor_that_multiplies_it(flag: str, native: bool) -> None:
    assert hardware._cpu_has_bfloat16(CPU_INFO.format(flag=flag)) is native


def test_no_cpu_info_means_no_bfloat16() -> None:
    assert hardware._cpu_has_bfloat16("") is False


@pytest.mark.parametrize(("flag", "dtype"), [("amx_bf16", "bfloat16"), ("avx2", "float32")])
def test_compute_dtype_follows_the_processor(monkeypatch: pytest.MonkeyPatch, flag: str, dtype: str) -> None:
    import torch

    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(hardware, "_cpu_info", lambda: CPU_INFO.format(flag=flag))
    assert hardware.compute_dtype() == dtype


def test_environment_names_this_machine() -> None:
    found = hardware.environment()
    assert found.packages["torch"] == importlib.metadata.version("torch")
    assert "not-a-package" not in hardware.package_versions(("not-a-package",))
    assert found.cores >= 1
    assert found.memory_bytes > 2**28
    assert found.processor
    assert hardware.Environment.model_validate_json(found.model_dump_json()) == found


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="this system has no processor affinity")
def test_cores_honour_affinity() -> None:
    code = "import os; os.sched_setaffinity(0, {min(os.sched_getaffinity(0))}); "
    code += "from export import hardware; print(hardware.available_cores())"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "1"


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="other systems report the peak of one process only")
def test_peak_memory_of_a_small_process_is_small_whoever_started_it() -> None:
    block = bytearray(b"\1") * (400 << 20)
    code = "from export import hardware; print(hardware.peak_memory_bytes())"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert int(done.stdout) < len(block)


def test_peak_memory_is_in_bytes() -> None:
    before = hardware.peak_memory_bytes()
    block = bytearray(b"\1") * (64 << 20)
    after = hardware.peak_memory_bytes()
    del block
    # a peak in kilobytes would be three orders of magnitude short of a Python process
    assert before > 8 << 20
    assert after >= before
