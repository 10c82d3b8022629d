"""Every error this project raises on purpose, in one tree.

A message says what was found, what was expected and what to do, in that order: the command line prints it alone,
without a traceback. Anything that is not a `FieldtuneError` is a bug of ours and keeps its traceback.

    FieldtuneError
    ├── RecipeError          the recipe, or a --set override, does not say something that can be done
    ├── DataError            rows that cannot be read, mapped, split or encoded
    ├── ContractError        rows that were read, and are not what the recipe's contract asks for
    ├── ModelError           a model that is missing, broken or of an architecture that a runtime cannot carry
    ├── TrainingError        training produced something that must not be kept (a non-finite loss, say)
    ├── ExportError          quantizing or converting failed, or would fail
    ├── EngineError          a runtime refused or broke while it ran an artifact
    │   └── MachineError     it was not the artifact: out of memory, a library that is missing, a bug
    ├── CommandError         a verb that was run from a notebook could not be done, or was interrupted
    ├── StorageError         the disk is full, or a folder cannot be written
    └── MissingDependencyError  an optional package is not installed; the message holds the install command
"""


class FieldtuneError(Exception):
    """Base of the tree; the command line turns it into one message and exit status 2."""


def first_line(error: BaseException) -> str:
    """The first line of what another library's error says, which may go on for many."""
    return next(iter(str(error).splitlines()), type(error).__name__)


class RecipeError(FieldtuneError):
    """The recipe, or an override of it, is not one that can be run."""


class DataError(FieldtuneError):
    """Rows that cannot be read, mapped to messages, split, or encoded."""


class ContractError(FieldtuneError):
    """Rows that do not keep the contract: a verdict, so that the command line ends with exit status 1."""


class ModelError(FieldtuneError):
    """A model that is missing, broken, or of an architecture that a chosen runtime cannot carry."""


class TrainingError(FieldtuneError):
    """Training produced something that must not be kept."""


class ExportError(FieldtuneError):
    """A conversion or quantization failed, or is known in advance to fail."""


class EngineError(FieldtuneError):
    """A runtime refused to load an artifact, or broke while it ran it."""


class MachineError(EngineError):
    """An artifact could not be run for a reason that is not the artifact's own."""


class CommandError(FieldtuneError):
    """A verb that was run in a process of its own ended without a result."""


class StorageError(FieldtuneError):
    """The disk is full, or a folder cannot be written."""


class MissingDependencyError(FieldtuneError):
    """An optional package is not installed."""

    def __init__(self, package: str, needed_for: str, install: str) -> None:
        super().__init__(f"{needed_for} needs the package {package!r}, which is not installed. Run: {install}")
