"""A model's folder: a local one, or one of the hub, which is downloaded."""

import os
from pathlib import Path

from nvembed.errors import DownloadError, WeightsError
from nvembed.weights.tensors import missing_files

# Code and pickles are never downloaded: everything that is read is data.
ALLOWED = ["*.json", "*.safetensors", "*.md", "LICENSE*"]
# Enough to run. Another library's cache may have only these.
NEEDED = [
    "config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "*.safetensors",
    "*.safetensors.index.json",
]


def model_folder(
    path_or_id: str | os.PathLike[str], *, revision: str | None = None, download: bool = True
) -> Path:
    """Return the local folder of a model; a model of the hub is downloaded if it is not complete here.

    Args:
        path_or_id: a folder, or a hub id such as ``nvidia/NV-Embed-v2``.
        revision: a hub branch, tag or commit; ``None`` is the newest one that is here already, else the
            default branch. Pass a commit to be sure which.
        download: if False, a model that is not here is an error.

    Raises:
        WeightsError: neither a folder nor a hub id.
        DownloadError: the model is not here and was not downloaded; the message says why and what to do.
    """
    folder = Path(path_or_id).expanduser()
    if folder.is_dir():
        return folder
    name = str(path_or_id)
    parts = name.split("/")
    if folder.exists() or len(parts) != 2 or not all(parts) or parts[0] in (".", "..", "~"):
        raise WeightsError(f"{name} is not a folder; expected a model's folder, or a hub id (owner/model)")
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
        here = Path(snapshot_download(repo, revision=revision, allow_patterns=NEEDED, local_files_only=True))
        if not missing_files(here):
            return here
    except (LocalEntryNotFoundError, ValueError):  # not here, or not a name of the hub: reported below
        pass
    if not download:
        raise DownloadError(f"{repo} is not complete on this machine")
    try:
        return Path(snapshot_download(repo, revision=revision, allow_patterns=ALLOWED))
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
        # Versions of the hub's client use different HTTP libraries, with exceptions of their own.
        why = " ".join(f"{type(error).__name__}: {error}".split())
        raise DownloadError(
            f"{repo} is not complete on this machine and could not be downloaded ({why}). Complete files are "
            "kept: try again to resume, or pass the path of a folder with the model"
        ) from error
