"""All exceptions of this package.

NvembedError
├── InputError        (ValueError)       a text, argument or option is invalid
├── DataError         (ValueError)       a corpus, queries, qrels or a vector file is malformed
├── ConfigError       (ValueError)       a model's config.json or a recipe is invalid or not supported
├── WeightsError      (ValueError)       checkpoint files are missing, damaged, misnamed, misshapen or refused
├── DownloadError     (OSError)          a model, or vectors of a server, could not be fetched
├── OutputError       (OSError)          a result could not be written; no partial result remains
├── NumericsError     (ArithmeticError)  a vector or loss is not finite
└── MissingExtraError (ImportError)      an optional dependency is not installed

A message has what was expected, what was received, and what to do.
"""

from collections.abc import Iterator
from contextlib import contextmanager


class NvembedError(Exception):
    """Root of this package's exceptions."""


class InputError(NvembedError, ValueError):
    """A text, argument or option is invalid."""


class DataError(NvembedError, ValueError):
    """A corpus, queries, qrels or a vector file is malformed."""


class ConfigError(NvembedError, ValueError):
    """A model's config.json or a recipe is invalid or not supported."""


class WeightsError(NvembedError, ValueError):
    """Checkpoint files are missing, damaged, misnamed, misshapen or refused."""


class DownloadError(NvembedError, OSError):
    """A model could not be downloaded from the hub, or vectors could not be fetched from a server."""


class OutputError(NvembedError, OSError):
    """A result could not be written; no partial result remains."""


class NumericsError(NvembedError, ArithmeticError):
    """A vector or loss is not finite."""


class MissingExtraError(NvembedError, ImportError):
    """An optional dependency is not installed."""


@contextmanager
def needs_extra(extra: str, what: str) -> Iterator[None]:
    """Turn an ImportError inside into a ``MissingExtraError`` that names the extra to install.

    Args:
        extra: the extra in pyproject.toml, such as ``learn``.
        what: the subject of the message, such as ``"nvembed cluster"``.
    """
    try:
        yield
    except MissingExtraError:
        raise
    except ImportError as error:
        raise MissingExtraError(
            f"{what} needs the package {error.name}. Install it with: pip install 'nvembed[{extra}]'"
        ) from error
