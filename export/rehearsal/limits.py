"""A hard limit on the memory and the processors of a process that is about to start, by what this system offers.

Where systemd runs and lets us, a scope of its own (cgroup v2: MemoryMax, no swap): it counts resident pages, those of
files among them, and the kernel ends what goes beyond. Else a limit on addresses (setrlimit(2), RLIMIT_AS): it
counts every mapping, resident or not, so that what stays below it holds less memory than that; asking for more fails.
Processors are given by affinity, which counts whole ones.
"""

import os
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Literal

from export.errors import RecipeError
from export.frozen import Frozen

# sd_booted(3): where systemd is not the init, its tools are of no use
_BOOTED = Path("/run/systemd/system")
# cgroups(7): the line of version 2 in /proc/self/cgroup names the group
_TELLS_ITS_LIMIT = "cat /sys/fs/cgroup$(sed -n 's/^0:://p' /proc/self/cgroup)/memory.max"


class Limit(Frozen):
    """What a process may use: `kind` says what holds it to that, and `counts` what that counts, in words.

    `starts_with` is the command that it is started by, if any.
    """

    memory_bytes: int
    cpus: int
    kind: Literal["cgroup", "address space"]
    counts: str
    starts_with: tuple[str, ...] = ()

    def enter(self) -> Callable[[], None]:
        """What the new process does before it becomes the program that is limited."""
        mine = sorted(os.sched_getaffinity(0))[: self.cpus]

        def restrict() -> None:
            import resource

            os.sched_setaffinity(0, mine)
            if self.kind == "address space":
                resource.setrlimit(resource.RLIMIT_AS, (self.memory_bytes, self.memory_bytes))

        return restrict


def limit_of(memory_bytes: int, cpus: int) -> Limit:
    """The hardest limit that this system offers. Raises RecipeError for more processors than there are."""
    here = len(os.sched_getaffinity(0))
    if cpus > here:
        raise RecipeError(f"--cpus {cpus}: found {here} on this machine; expected no more than these.")
    scope = _scope(memory_bytes)
    if scope is not None:
        counts = "resident pages, those of files among them; the kernel ends what goes beyond"
        return Limit(memory_bytes=memory_bytes, cpus=cpus, kind="cgroup", counts=counts, starts_with=scope)
    counts = "addresses, mapped or not, of which resident memory is a part; asking for more fails"
    return Limit(memory_bytes=memory_bytes, cpus=cpus, kind="address space", counts=counts)


def _scope(memory_bytes: int) -> tuple[str, ...] | None:
    """A command that starts another one in a scope of its own, or None where it was tried and did not work."""
    if not _BOOTED.is_dir() or shutil.which("systemd-run") is None:
        return None
    whose = () if os.geteuid() == 0 else ("--user",)
    properties = ("-p", f"MemoryMax={memory_bytes}", "-p", "MemorySwapMax=0")
    command = ("systemd-run", *whose, "--scope", "--quiet", "--collect", *properties)
    # a scope may be given without the limit that was asked of it: the kernel's own word counts
    tried = subprocess.run([*command, "sh", "-c", _TELLS_ITS_LIMIT], capture_output=True, timeout=30, check=False)
    told = tried.stdout.strip()
    return command if tried.returncode == 0 and told.isdigit() and int(told) <= memory_bytes else None


def parse_memory(text: str) -> int:
    """Bytes of a text such as 1GB, 512MB, 1G or 1.5GiB. Raises ValueError for any other: a number has a unit."""
    units = {"gib": 2**30, "mib": 2**20, "gb": 10**9, "mb": 10**6, "g": 10**9, "m": 10**6}
    lower = text.strip().lower()
    unit = next((unit for unit in units if lower.endswith(unit)), None)
    if unit is None:
        raise ValueError(f"{text} has no unit")
    size = float(lower.removesuffix(unit)) * units[unit]
    if not 1 <= size < float("inf"):
        raise ValueError(f"{text} is no memory")
    return int(size)
