"""For all tests: the network is closed, in this process and in every one it starts."""

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
