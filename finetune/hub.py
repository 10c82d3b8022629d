"""Finds a model or dataset: in the starter, in a local folder, or in a snapshot fetched from a hub.

Only weights in safetensors and plain text files are fetched: no pickles, no code. Both hubs keep their own cache and
their own log-in; a mirror is chosen with HF_ENDPOINT or MODELSCOPE_ENDPOINT, which the hubs' libraries read.
"""

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Literal, NamedTuple

from export.artifacts import is_git_lfs_pointer
from export.errors import DataError, FieldtuneError, MissingDependencyError, ModelError, StorageError
from export.stage import disk_is_full

Hub = Literal["hf", "modelscope"]
Kind = Literal["model", "dataset"]
MODEL_FILES = ("*.safetensors", "*.json", "*.jinja", "*.txt", "README.md", "LICENSE")
DATASET_FILES = ("*.jsonl", "*.json", "*.csv", "*.parquet", "README.md", "*.yaml")
_REPOSITORY = re.compile(r"^[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*$")
_COMMIT = re.compile(r"^[0-9a-f]{40}$")


class Repository(NamedTuple):
    """A repository on a hub."""

    hub: Hub
    name: str
    kind: Kind
    revision: str | None

    def __str__(self) -> str:
        at = f" at revision {self.revision!r}" if self.revision else ""
        return f"the {self.kind} {self.name!r}{at} on {'ModelScope' if self.hub == 'modelscope' else 'Hugging Face'}"

    def problem(self, message: str) -> FieldtuneError:
        """`message` as the error of this kind of repository."""
        return ModelError(message) if self.kind == "model" else DataError(message)


def resolve_model(name: str, *, revision: str | None, offline: bool) -> Path:
    """The complete model folder that a recipe's model name stands for.

    `starter` is the embedded model; a folder that exists is itself; `hf:owner/name` (or `owner/name`) and
    `modelscope:owner/name` are fetched, or with `offline` taken from the hub's cache without any connection. A folder
    in the hub's cache is named by its commit on Hugging Face.

    Raises ModelError when there is no such model or it is incomplete, with a remedy for each cause.
    """
    if (folder := _local_folder(name)) is not None:
        if revision is not None:
            raise ModelError(f"{name!r} is a local folder and has no revisions. Remove model.revision.")
        return _complete(folder, name)
    repository = parse(name, "model", revision)
    if repository is None:
        raise ModelError(
            f"there is no model {name!r}: it is not a folder here ({Path(name).expanduser().absolute()}) and has not "
            "the form of a hub's id. Use 'starter', a folder, 'hf:owner/name' or 'modelscope:owner/name'."
        )
    return _complete(download(repository, MODEL_FILES, offline=offline), name)


def download_dataset(name: str, *, revision: str | None, offline: bool) -> Path:
    """A folder with the data files and the README of the dataset `hf:owner/name` or `modelscope:owner/name`.

    All splits are fetched, in the hub's cache. Raises DataError when there is no such dataset.
    """
    repository = parse(name, "dataset", revision)
    if repository is None:
        raise DataError(f"{name!r} has not the form of a hub's id: hf:owner/name or modelscope:owner/name.")
    return download(repository, DATASET_FILES, offline=offline)


def parse(name: str, kind: Kind, revision: str | None) -> Repository | None:
    """The repository that `name` stands for, or None when it has not the form of a hub's id."""
    hub, colon, rest = name.rpartition(":")
    if not _REPOSITORY.match(rest) or (colon and hub not in ("hf", "modelscope")):
        return None
    return Repository("modelscope" if hub == "modelscope" else "hf", rest, kind, revision)


def is_on_a_hub(name: str) -> bool:
    """Whether a model's name stands for a repository: neither the starter nor something on this machine."""
    return name != "starter" and not Path(name).expanduser().exists() and parse(name, "model", None) is not None


def download(repository: Repository, patterns: tuple[str, ...], *, offline: bool) -> Path:
    """The local snapshot of a repository's files that match `patterns`."""
    fetch: dict[Hub, Callable[[Repository, tuple[str, ...], bool], Path]]
    fetch = {"hf": _from_hugging_face, "modelscope": _from_modelscope}
    return fetch[repository.hub](repository, patterns, offline)


def commit_of(snapshot: Path) -> str | None:
    """The commit of a snapshot in Hugging Face's cache, whose folder is named by it; None for any other folder."""
    return snapshot.name if _COMMIT.match(snapshot.name) else None


def _local_folder(name: str) -> Path | None:
    if name == "starter":
        return Path(__file__).resolve().parent / "starter" / "model"
    folder = Path(name).expanduser()
    if folder.is_dir():
        return folder
    if folder.is_file():
        raise ModelError(f"{name} is a file; expected a Hugging Face model folder. A GGUF file cannot be trained.")
    return None


def _complete(folder: Path, name: str) -> Path:
    """`folder`, when it holds a config and all its weights in safetensors."""
    if not (folder / "config.json").is_file():
        raise ModelError(f"{name!r} is not a model: {folder} has no config.json. Give a Hugging Face model folder.")
    if not any(folder.glob("*.safetensors")):
        pickled = any(folder.glob("*.bin")) or any(folder.glob("*.pt"))
        found = "only pickled weights, which can run code when loaded" if pickled else "no weights"
        raise ModelError(f"{name!r} has {found}: {folder} holds no *.safetensors. Save the model as safetensors.")
    missing = [shard for shard in _shards(folder) if not (folder / shard).is_file()]
    if missing:
        some = ", ".join(missing[:3])
        raise ModelError(
            f"{name!r} is incomplete: {folder} lacks {len(missing)} weight files ({some}). Fetch it again."
        )
    for path in sorted([*folder.glob("*.safetensors"), *folder.glob("*.json")]):
        if is_git_lfs_pointer(path):
            raise ModelError(
                f"{name!r} is incomplete: {path} is a Git LFS pointer, not the file itself. Run 'git lfs pull' in "
                f"{folder}, or give the model's id on a hub."
            )
    return folder


def _shards(folder: Path) -> list[str]:
    index = folder / "model.safetensors.index.json"
    if not index.is_file():
        return []
    try:
        return sorted(set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()))
    except (ValueError, KeyError, AttributeError, TypeError) as error:
        raise ModelError(f"{index} is not an index of weights ({error}). Fetch the model again.") from None


def _snapshot(
    snapshot_download: Callable[..., str], repository: Repository, patterns: tuple[str, ...], offline: bool
) -> Path:
    """The folder that a hub's own `snapshot_download` gives: both hubs' take the same arguments."""
    folder = snapshot_download(
        repository.name,
        repo_type=repository.kind,
        revision=repository.revision,
        allow_patterns=list(patterns),
        # a model's subfolders hold other formats of the same weights
        ignore_patterns=["*/*"] if repository.kind == "model" else None,
        local_files_only=offline,
    )
    return Path(folder)


def _from_hugging_face(repository: Repository, patterns: tuple[str, ...], offline: bool) -> Path:
    from huggingface_hub import errors, snapshot_download

    try:
        return _snapshot(snapshot_download, repository, patterns, offline)
    except errors.HFValidationError as error:
        raise repository.problem(f"{repository.name!r} cannot be a repository's name: {error}") from None
    # HTTPError is the base of whichever HTTP library this huggingface_hub uses: a download cut off in the middle
    except (errors.LocalEntryNotFoundError, errors.HTTPError) as error:  # type: ignore[attr-defined]
        raise repository.problem(_hugging_face_message(repository, error, offline)) from error
    # the disk's refusals, and whatever hf-xet, which fetches large files, raises: it has no errors of its own
    except (OSError, RuntimeError) as error:
        from huggingface_hub import constants

        raise _while_fetching(repository, error, f"{constants.HF_HUB_CACHE}", "HF_HOME") from error


def _hugging_face_message(repository: Repository, error: Exception, offline: bool) -> str:
    """What went wrong, and the remedy for it: each cause has its own."""
    from huggingface_hub import constants, errors

    where = f"(looked at {constants.ENDPOINT})"
    if isinstance(error, errors.GatedRepoError):
        return (
            f"{repository} is gated {where}: accept its terms on its page, then log in with 'hf auth login' or set "
            "HF_TOKEN to a token that may read it."
        )
    if isinstance(error, errors.RepositoryNotFoundError):
        return (
            f"there is no such repository, or it is private: {repository} {where}. Check the spelling of owner/name; "
            "for a private one log in with 'hf auth login' or set HF_TOKEN."
        )
    if isinstance(error, errors.RevisionNotFoundError):
        return f"{repository} does not exist {where}, though the repository does. Use a branch, a tag or a commit."
    if offline or constants.is_offline_mode():
        return (
            f"{repository} is not, or not wholly, in the local cache ({constants.HF_HUB_CACHE}), and working offline "
            "was asked for. Run once with a connection, or give a local folder."
        )
    if isinstance(error, errors.HfHubHTTPError) and error.response is not None:
        return f"{repository} {where} answered with status {error.response.status_code}. Try again later."
    return (
        f"{repository} could not be fetched {where}: {_cause(error)}. Check the connection, set HF_ENDPOINT to a "
        "mirror, use modelscope:owner/name, or give a local folder."
    )


def _from_modelscope(repository: Repository, patterns: tuple[str, ...], offline: bool) -> Path:
    try:
        from modelscope.hub.snapshot_download import snapshot_download
    except ModuleNotFoundError as error:
        if error.name is None or not error.name.startswith("modelscope"):
            raise
        needed_for = f"{repository.kind}s from ModelScope ({repository.name})"
        raise MissingDependencyError("modelscope", needed_for, "pip install 'fieldtune[modelscope]'") from None
    try:
        return _snapshot(snapshot_download, repository, patterns, offline)
    # the package raises requests' errors, its own and ValueError, and has moved them between releases
    except Exception as error:
        if disk_is_full(error) or isinstance(error, PermissionError):
            raise _while_fetching(repository, error, "ModelScope's cache", "MODELSCOPE_CACHE") from error
        raise repository.problem(_modelscope_message(repository, error, offline)) from error


def _modelscope_message(repository: Repository, error: Exception, offline: bool) -> str:
    status = getattr(getattr(error, "response", None), "status_code", None)
    if offline:
        return (
            f"{repository} is not in the local cache, and working offline was asked for. Run once with a connection, "
            "or give a local folder."
        )
    if status in (401, 403):
        return f"{repository} may not be read: {_cause(error)}. Log in with 'modelscope login'."
    if status == 404:
        return f"there is no such repository, or it is private: {repository}. Check the spelling of owner/name."
    return f"{repository} could not be fetched: {_cause(error)}. Check the connection, or give a local folder."


def _while_fetching(repository: Repository, error: Exception, cache: str, variable: str) -> FieldtuneError:
    """What stopped a download that the hub itself did not refuse."""
    remedy = f"set {variable} to a folder with room that you may write to"
    if disk_is_full(error):
        return StorageError(
            f"the disk is full: {repository} was not fetched into {cache}. Free some space, or {remedy}."
        )
    if isinstance(error, PermissionError):
        where = error.filename or cache
        return StorageError(f"{repository} was not fetched: {where} cannot be written. You can {remedy}.")
    return repository.problem(
        f"{repository} could not be fetched: {_cause(error)}. Run again to go on from there; HF_HUB_DISABLE_XET=1 "
        "fetches by plain HTTP, and a local folder needs no hub."
    )


def _cause(error: BaseException) -> str:
    """The innermost error in one line: what the network really said."""
    while (inner := error.__cause__) is not None:
        error = inner
    return f"{type(error).__name__}: {str(error).strip().partition(chr(10))[0].rstrip('.')}"
