"""Every exception this package raises on purpose.

NvembedError
├── InputError        (ValueError)       a text, an argument or an option that cannot be used
├── DataError         (ValueError)       a corpus, queries, qrels or a vector file that is malformed
├── ConfigError       (ValueError)       a model's config.json or a recipe that cannot be used
├── WeightsError      (ValueError)       checkpoint files: missing, corrupt, misnamed, misshapen, refused
├── DownloadError     (OSError)          a model, or vectors of a server, that could not be fetched
├── OutputError       (OSError)          a result that could not be written; nothing is left half-written
├── NumericsError     (ArithmeticError)  a non-finite vector or loss
└── MissingExtraError (ImportError)      an optional dependency that is not installed

A message says what was expected, what was got, and what to do.
"""

from collections.abc import Iterator
from contextlib import contextmanager


class NvembedError(Exception):
    """Root of this package's exceptions."""


class InputError(NvembedError, ValueError):
    """A text, an argument or an option that cannot be used."""


class DataError(NvembedError, ValueError):
    """A corpus, queries, qrels or a vector file that is malformed."""


class ConfigError(NvembedError, ValueError):
    """A model's config.json or a recipe that cannot be used."""


class WeightsError(NvembedError, ValueError):
    """Checkpoint files: missing, corrupt, misnamed, misshapen or refused."""


class DownloadError(NvembedError, OSError):
    """A model that could not be fetched from the hub, or vectors that could not be from a server."""


class OutputError(NvembedError, OSError):
    """A result that could not be written; nothing is left half-written."""


class NumericsError(NvembedError, ArithmeticError):
    """A non-finite vector or loss."""


class MissingExtraError(NvembedError, ImportError):
    """An optional dependency that is not installed."""


@contextmanager
def needs_extra(extra: str, what: str) -> Iterator[None]:
    """Turn a failed import inside into a ``MissingExtraError`` that names the extra to install.

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
