"""The rules of the house that a machine can hold us to: imports, start-up, and that the documents tell the truth."""

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
HEAVY = {
    "torch",
    "transformers",
    "peft",
    "trl",
    "datasets",
    "accelerate",
    "optimum",
    "gptqmodel",
    "llama_cpp",
    "scipy",
} | {*("jsonschema", "nltk", "rouge_score", "sacrebleu")}
PYTHON_FILES = sorted([*(ROOT / "finetune").rglob("*.py"), *(ROOT / "export").rglob("*.py")])


def test_imports_point_one_way():
    from importlinter.cli import lint_imports

    assert lint_imports(config_filename=str(ROOT / "pyproject.toml"), no_cache=True) == 0


def test_export_never_names_finetune():
    # import-linter reads module imports; this also sees importlib strings and subprocess arguments
    for path in (ROOT / "export").rglob("*.py"):
        assert not re.search(r"^\s*(from|import) finetune|[\"']finetune\.", path.read_text(encoding="utf-8"), re.M), (
            path
        )


def _loaded_by(*arguments: str) -> set[str]:
    """The top-level modules that a command imports."""
    code = (
        "import sys\nfrom finetune.cli import main\n"
        "try:\n    main(sys.argv[1:])\nexcept SystemExit:\n    pass\n"
        "print('LOADED', *sorted({name.partition('.')[0] for name in sys.modules}))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, *arguments], capture_output=True, text=True, cwd=ROOT, check=True
    )
    return set(done.stdout.rpartition("LOADED ")[2].split())


@pytest.mark.parametrize(
    "arguments",
    [
        ["--help"],
        ["run", "--help"],
        ["validate", "recipes/quickstart.yaml"],
        ["estimate", "quickstart", "--hardware", "t4"],
        ["schema"],
        ["recipes"],
        ["init"],
    ],
    ids=" ".join,
)
def test_the_command_line_loads_nothing_heavy(arguments):
    loaded = _loaded_by(*arguments)
    assert "finetune" in loaded
    assert not loaded & HEAVY


@pytest.mark.parametrize("path", PYTHON_FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_heavy_libraries_are_imported_inside_functions_only(path):
    tree = ast.parse(path.read_text(encoding="utf-8"))
    for node in tree.body:
        names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
        names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
        assert not {name.partition(".")[0] for name in names} & HEAVY, f"{path}:{node.lineno}"


def _imported(path: Path, package: str) -> list[tuple[int, str]]:
    """The line and the full name of everything that a file of `package` imports, also within functions.

    A name that is taken from a module is listed as if it were a module of it: which of the two it is cannot be seen.
    """
    found = []
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found += [(node.lineno, alias.name) for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            above = package.split(".")[: len(package.split(".")) + 1 - node.level] if node.level else []
            module = ".".join([*above, *([node.module] if node.module else [])])
            found += [(node.lineno, f"{module}.{alias.name}") for alias in node.names]
    return found


def _private_of_others(path: Path, package: str) -> list[str]:
    """The imports in a file of `package` that reach into another package: a part begins with an underscore there."""
    foreign = []
    for line, name in _imported(path, package):
        parts = name.split(".")
        private = next((i for i, part in enumerate(parts) if part.startswith("_") and not part.startswith("__")), None)
        if private is not None and parts[0] in ("finetune", "export") and ".".join(parts[:private]) != package:
            foreign.append(f"{path}:{line}: {name}")
    return foreign


@pytest.mark.parametrize("path", PYTHON_FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_what_begins_with_an_underscore_is_imported_in_its_own_package_only(path):
    # what two packages need has a public home: a name without an underscore, or one in its package's __init__
    assert _private_of_others(path, ".".join(path.relative_to(ROOT).parent.parts)) == []


@pytest.mark.parametrize(
    "reach",
    [
        "from export.page._decision import decide",
        "from export.page import _decision",
        "import export.page._decision",
        "from ..page._decision import decide",
        "def f():\n    from export.page import _decision as other",
        "from export.converter import _converter_type",
    ],
)
def test_reaching_into_another_package_is_seen_however_it_is_written(tmp_path, reach):
    (tmp_path / "planted.py").write_text(f"from export.identity._reading import PROBES\n{reach}\n", encoding="utf-8")
    (seen,) = _private_of_others(tmp_path / "planted.py", "export.identity")
    assert "export.page._decision" in seen or "_converter_type" in seen


def _readme_commands() -> list[str]:
    return re.findall(r"^\$ ([^#\n]+)", (ROOT / "README.md").read_text(encoding="utf-8"), re.M)


def test_the_readmes_two_make_commands_are_the_makefiles_and_what_ci_runs():
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    targets = [command.split()[1] for command in _readme_commands() if command.startswith("make ")]
    assert targets == ["quickstart", "test"]
    for target in targets:
        assert re.search(rf"^{target}:", makefile, re.M), target
    assert "exec make test" in (ROOT / ".ci" / "run").read_text(encoding="utf-8")


def test_the_readmes_fieldtune_commands_run_as_far_as_they_need_no_hub(tmp_path, monkeypatch):
    from finetune import cli

    monkeypatch.chdir(tmp_path)
    commands = [command.split()[1:] for command in _readme_commands() if command.startswith("fieldtune ")]
    sample = ROOT / "data_templates/nlu_home_commands.sample.jsonl"
    (tmp_path / "commands.jsonl").write_bytes(sample.read_bytes())
    done = []
    for arguments in commands:
        parsed = cli._parser().parse_args(arguments)
        if arguments[0] in ("recipes", "validate", "estimate"):
            assert parsed.verb(parsed) == 0, arguments
            done.append(arguments[0])
    assert done == ["recipes", "recipes", "validate", "estimate"]


def test_the_readme_shows_a_result_table_and_no_placeholder():
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    assert "TABLE" not in readme
    for subject in ("merged", "gguf/q8_0", "gguf/q4_k_m", "gptq/4bit"):
        assert re.search(rf"^ *{subject} +[\d.]+±", readme, re.M), subject


def test_the_table_of_recipe_keys_is_the_schemas():
    from finetune.documentation import recipe_table

    documented = (ROOT / "recipes" / "README.md").read_text(encoding="utf-8")
    assert recipe_table() in documented, "run: python -m finetune.documentation"


def test_the_table_of_data_templates_is_the_templates():
    from finetune.documentation import template_table

    documented = (ROOT / "data_templates" / "README.md").read_text(encoding="utf-8")
    assert template_table() in documented, "run: python -m finetune.documentation"
