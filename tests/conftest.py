"""For all tests: the network is closed, in this process and in every one it starts; processes share the cores."""

import os
import sys
from pathlib import Path

GUARD = Path(__file__).parent / "no_network"


def pytest_configure() -> None:
    """Installs the guard before any test module is imported."""
    os.environ["PYTHONPATH"] = os.pathsep.join([str(GUARD), *filter(None, [os.environ.get("PYTHONPATH")])])
    sys.path.insert(0, str(GUARD))
    sys.modules.pop("sitecustomize", None)
    import sitecustomize  # noqa: F401 - importing it closes the network

    if "PYTEST_XDIST_WORKER" in os.environ:
        # every worker would start as many threads as there are cores
        os.environ.setdefault("OMP_NUM_THREADS", "1")
