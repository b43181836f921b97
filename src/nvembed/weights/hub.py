"""A model's folder: a local one as it is, or one fetched from the hub, resumable and with a progress bar."""

import os
from pathlib import Path

from nvembed.errors import DownloadError, WeightsError
from nvembed.weights.tensors import missing_files

# Never fetched: code and pickles. Everything we read is data.
WANTED = ["*.json", "*.safetensors", "*.md", "LICENSE*"]
# Enough to run. Another library's cache may hold no more than this.
NEEDED = [
    "config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "*.safetensors",
    "*.safetensors.index.json",
]


def model_folder(path_or_id: str | os.PathLike[str], *, revision: str | None = None) -> Path:
    """Return the local folder of a model, fetching it from the hub only if it is not complete here.

    Args:
        path_or_id: a folder, or a hub id such as ``nvidia/NV-Embed-v2``.
        revision: a hub branch, tag or commit; ``None`` is the newest one that is here already, else the
            default branch. Pass a commit to be sure which.

    Raises:
        WeightsError: a path that is no folder.
        DownloadError: the hub cannot be reached, or refuses (a gated model says how to be let in).
    """
    folder = Path(path_or_id).expanduser()
    if folder.is_dir():
        return folder
    name = str(path_or_id)
    parts = name.split("/")
    if folder.exists() or len(parts) != 2 or not all(parts) or parts[0] in (".", "..", "~"):
        raise WeightsError(f"{name} is no folder and no hub id: expected a model's folder or 'owner/model'")
    return _fetch(name, revision)


def _fetch(repo: str, revision: str | None) -> Path:
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
    except (LocalEntryNotFoundError, ValueError):  # not here, or no name the hub could have: said below
        pass
    try:
        return Path(snapshot_download(repo, revision=revision, allow_patterns=WANTED))
    except GatedRepoError as error:
        raise DownloadError(
            f"{repo} is gated: accept its licence at https://huggingface.co/{repo}, then log in with "
            "`hf auth login` (or set HF_TOKEN) and try again"
        ) from error
    except RepositoryNotFoundError as error:
        raise DownloadError(
            f"{repo} is not on the hub, or is private: check the name, or log in with `hf auth login`; "
            "there is no folder of that name here either"
        ) from error
    except RevisionNotFoundError as error:
        raise DownloadError(
            f"{repo} has no revision {revision!r}: check the branch, tag or commit"
        ) from error
    except Exception as error:
        # Each version of the hub's client rests on another HTTP library, with exceptions of its own.
        why = " ".join(f"{type(error).__name__}: {error}".split())
        raise DownloadError(
            f"{repo} is not complete here and could not be fetched ({why}); files that came whole are kept: "
            "try again to resume, or pass the path of a folder that holds it"
        ) from error
