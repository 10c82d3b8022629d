"""The machine's record is true to what the system says elsewhere, and bfloat16 is chosen only where it is native."""

import importlib.metadata
import os
import subprocess
import sys
from pathlib import Path

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


@pytest.mark.parametrize(
    ("flag", "name"), [("amx_int8", "A Processor @ 2 GHz (llama.cpp without AMX)"), ("avx2", None)]
)
def test_a_processor_whose_amx_is_not_used_says_so(flag: str, name: str | None) -> None:
    assert hardware._processor_name(CPU_INFO.format(flag=flag)) == (name or "A Processor @ 2 GHz")


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


def _checkout(folder: Path, name: str) -> str:
    """A repository with one commit whose project is called `name`; the commit."""
    identity = ["-c", "user.name=x", "-c", "user.email=x@example.org", "-c", "commit.gpgsign=false"]
    (folder / "pyproject.toml").write_text(f'[project]\nname = "{name}"\n', encoding="utf-8")
    for arguments in (["init", "-q"], ["add", "."], [*identity, "commit", "-q", "-m", "x"]):
        subprocess.run(["git", "-C", str(folder), *arguments], check=True)
    done = subprocess.run(["git", "-C", str(folder), "rev-parse", "HEAD"], capture_output=True, text=True, check=True)
    return done.stdout.strip()


def test_the_commit_says_whether_the_files_are_the_commits(tmp_path: Path) -> None:
    commit = _checkout(tmp_path, "fieldtune")
    assert hardware._git_commit(tmp_path) == commit
    (tmp_path / "runs").mkdir()
    (tmp_path / "runs" / "new").touch()
    assert hardware._git_commit(tmp_path) == commit
    with (tmp_path / "pyproject.toml").open("a", encoding="utf-8") as file:
        file.write("# changed\n")
    assert hardware._git_commit(tmp_path) == f"{commit}-dirty"


def test_another_projects_commit_is_not_ours(tmp_path: Path) -> None:
    _checkout(tmp_path, "somebody-elses")
    installed = tmp_path / ".venv" / "site-packages"
    installed.mkdir(parents=True)
    assert hardware._git_commit(tmp_path) is None
    assert hardware._git_commit(installed) is None


def test_threads_soon_sleep_while_they_wait_unless_the_environment_says_otherwise(monkeypatch):
    monkeypatch.delenv("GOMP_SPINCOUNT", raising=False)
    hardware.share_cores()
    assert os.environ["GOMP_SPINCOUNT"] == "1000"
    monkeypatch.setenv("GOMP_SPINCOUNT", "300000")
    hardware.share_cores()
    assert os.environ["GOMP_SPINCOUNT"] == "300000"
