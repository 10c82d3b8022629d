"""Shared by the tests of bundles and of rehearsals: one run of the embedded model, and its bundle.

The run is taught a robot's talk for a few steps: it answers in JSON, often wrongly. A test that changes any of it works
on a copy.
"""

import pytest
from filelock import FileLock

from export.artifacts import sha256_of_folder
from export.engines.llama_library import open_vocabulary
from tests.bundle.making import make_bundle


@pytest.fixture(scope="session")
def run(tmp_path_factory, worker_id):
    """The folder of a finished run, which all processes of a parallel test run share."""
    base = tmp_path_factory.getbasetemp()
    folder = (base if worker_id == "master" else base.parent) / "bundled"
    folder.mkdir(exist_ok=True)
    return folder / "robot"


@pytest.fixture(scope="session")
def bundle(run):
    """The folder of that run's bundle; the first process that asks makes it."""
    is_made = run.with_name("is_made")
    with FileLock(run.with_name("making.lock")):
        made = run / "bundle" / "robot" if is_made.exists() else make_bundle(run)
        is_made.touch()
    content = sha256_of_folder(made)
    yield made
    assert sha256_of_folder(made) == content, "a test changed the bundle that all of them share"


@pytest.fixture(scope="session")
def vocabulary(bundle):
    """The tokenizer of the bundle's file."""
    with open_vocabulary(bundle / "model-q8_0.gguf") as opened:
        yield opened
