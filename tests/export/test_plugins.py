"""Steps are found by the name of their file; a typo and a broken file never look alike."""

import sys

import pytest

from export import plugins
from export.errors import RecipeError


@pytest.fixture
def package(tmp_path, monkeypatch):
    """A package with one sound step, one file that fails to import, and one private file."""
    folder = tmp_path / "made_up_steps"
    folder.mkdir()
    (folder / "__init__.py").write_text("")
    (folder / "sound.py").write_text(
        "from export.plugins import Step\nclass Sound(Step):\n    '''Does it.'''\n    size: int = 1\nstep = Sound\n"
    )
    (folder / "broken.py").write_text("import a_library_that_is_not_there\n")
    (folder / "_private.py").write_text("raise RuntimeError('listed')\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    yield "made_up_steps"
    for name in [name for name in sys.modules if name.startswith("made_up_steps")]:
        del sys.modules[name]


def test_a_section_of_one_step_tells_several_apart_by_their_key(package, tmp_path):
    from pydantic import TypeAdapter

    folder = tmp_path / "made_up_steps"
    (folder / "broken.py").unlink()
    for name in ("sound", "other"):
        (folder / f"{name}.py").write_text(
            "from typing import Literal\nfrom export.plugins import Step\n"
            f"class Found(Step):\n    'Does it.'\n    method: Literal['{name}'] = '{name}'\nstep = Found\n"
        )
    section = TypeAdapter(plugins.one_of(package, "method"))
    assert section.validate_python({"method": "other"}).method == "other"
    assert section.validate_python({"method": "sound"}).method == "sound"


def test_listing_imports_nothing(package):
    assert plugins.names(package) == ("broken", "sound")
    assert f"{package}.sound" not in sys.modules


def test_a_typo_names_the_nearest_step(package):
    with pytest.raises(RecipeError, match="Did you mean 'sound'"):
        plugins.find(package, "sounds")


def test_a_step_that_fails_to_import_says_why(package):
    with pytest.raises(ModuleNotFoundError, match="a_library_that_is_not_there"):
        plugins.find(package, "broken")
