"""The environment of a process that finds this project and sees no NVIDIA device, whatever the machine has."""

import os
import sys
from pathlib import Path


def processor_only() -> dict[str, str]:
    """For `subprocess.run(env=...)`."""
    paths = os.pathsep.join([str(Path(__file__).parents[1]), *sys.path])
    return {**os.environ, "CUDA_VISIBLE_DEVICES": "", "PYTHONPATH": paths}
