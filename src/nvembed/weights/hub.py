"""The folder of a model, which is local or downloaded from the hub."""

import os
from pathlib import Path

from nvembed.errors import DownloadError, WeightsError
from nvembed.weights.tensors import missing_files, read_json

# Code and pickles are never downloaded.
ALLOWED = ["*.json", "*.safetensors", "*.md", "LICENSE*"]
# The files that a model needs to run. The cache of another library may have no others.
NEEDED = [
    "config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "*.safetensors",
    "*.safetensors.index.json",
]
# Of sentence-transformers' layout. The cache may lack them although the model has them: another library
# fetched only what it reads.
LAYOUT = ("modules.json", "config_sentence_transformers.json")


def model_folder(
    path_or_id: str | os.PathLike[str], *, revision: str | None = None, download: bool = True
) -> Path:
    """Return the local folder of a model; a model of the hub is downloaded if the cache is incomplete.

    Args:
        path_or_id: a folder, or a hub id such as ``nvidia/NV-Embed-v2``.
        revision: a hub branch, tag or commit; ``None`` is the newest one in the cache, or the default branch.
            A commit is always the same model.
        download: False makes a model that is not in the cache an error.

    Raises:
        WeightsError: the argument is neither a folder nor a hub id.
        DownloadError: the model is not in the cache and was not downloaded; the message says why.
    """
    folder = Path(path_or_id).expanduser()
    if folder.is_dir():
        return folder
    name = str(path_or_id)
    parts = name.split("/")
    if folder.exists() or len(parts) != 2 or not all(parts) or parts[0] in (".", "..", "~"):
        raise WeightsError(f"{name} is not a folder; expected a model's folder or a hub id (owner/model)")
    return _fetch(name, revision, download)


def _fetch(repo: str, revision: str | None, download: bool) -> Path:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import (
        GatedRepoError,
        LocalEntryNotFoundError,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    try:
        cached = Path(
            snapshot_download(repo, revision=revision, allow_patterns=NEEDED, local_files_only=True)
        )
        usable = not missing_files(cached)
        if usable and not unknown_files(cached):
            return cached
    except (LocalEntryNotFoundError, ValueError):  # not in the cache, or not a valid name: reported below
        usable = False
    if not download:
        if usable:
            return cached
        raise DownloadError(f"{repo} is not complete on this machine")
    try:
        folder = Path(snapshot_download(repo, revision=revision, allow_patterns=ALLOWED))
        for name in unknown_files(folder):  # the model does not have them: the next time, nobody is asked
            _marker(folder, name).parent.mkdir(parents=True, exist_ok=True)
            _marker(folder, name).touch()
        return folder
    except GatedRepoError as error:
        raise DownloadError(
            f"{repo} is gated: accept its licence at https://huggingface.co/{repo}, then log in with "
            "`hf auth login` (or set HF_TOKEN) and run the command again"
        ) from error
    except RepositoryNotFoundError as error:
        raise DownloadError(
            f"{repo} is neither a folder nor on the hub, or it is private: check the name, or log in with "
            "`hf auth login`"
        ) from error
    except RevisionNotFoundError as error:
        raise DownloadError(
            f"{repo} has no revision {revision!r}: check the branch, tag or commit"
        ) from error
    except Exception as error:
        if usable:  # what may be missing is reported when the folder is opened
            return cached
        # Versions of the hub's client use different HTTP libraries with different exceptions.
        reason = " ".join(f"{type(error).__name__}: {error}".split())
        raise DownloadError(
            f"{repo} is not complete on this machine and could not be downloaded ({reason}). Complete files "
            "are kept: try again to resume, or pass the path of a folder with the model"
        ) from error


def unknown_files(folder: Path) -> list[str]:
    """Return which files of ``LAYOUT`` a folder of the hub's cache lacks although the model may have them.

    NV-Embed's layout does not need them. In other folders nothing is missing: they are what they are.
    """
    if not _is_snapshot(folder) or read_json(folder / "config.json").get("model_type") == "nvembed":
        return []
    return [name for name in LAYOUT if not (folder / name).is_file() and not _marker(folder, name).is_file()]


def repo_of(folder: Path) -> str:
    """Return the hub id of a folder of the hub's cache."""
    return folder.parent.parent.name.removeprefix("models--").replace("--", "/")


def _is_snapshot(folder: Path) -> bool:
    return (
        folder.parent.name == "snapshots"
        and folder.parent.parent.name.startswith("models--")
        and (folder / "config.json").is_file()
    )


def _marker(folder: Path, name: str) -> Path:
    """Return where the hub's client marks that a commit does not have a file."""
    return folder.parent.parent / ".no_exist" / folder.name / name
