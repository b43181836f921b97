"""A fitted classifier on disk.

``classifier.json`` (classes, temperature, what made the vectors, a checksum) and ``classifier.npz``
(``weights`` float32 (K, D), ``bias`` float32 (K,)); nothing in them is code.
"""

import hashlib
import json
import zipfile
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from nvembed.embed.cache import Settings
from nvembed.errors import DataError, InputError
from nvembed.learn.classify import Classifier

FORMAT = 1
DESCRIPTION, NUMBERS = "classifier.json", "classifier.npz"


@dataclass(frozen=True)
class Stored:
    """A classifier, the model's name as it was given, and what made the vectors that it was fitted on."""

    classifier: Classifier
    model: str
    settings: Settings


def save_classifier(folder: Path, stored: Stored) -> None:
    """Write the two files into an existing folder."""
    classifier = stored.classifier
    np.savez(folder / NUMBERS, weights=classifier.weights, bias=classifier.bias)
    content = {
        "format": FORMAT,
        "model": stored.model,
        "vectors": asdict(stored.settings),
        "dim": classifier.weights.shape[1],
        "classes": classifier.classes,
        "inverse_temperature": classifier.inverse_temperature,
        "sha256": _sha256(folder / NUMBERS),
    }
    text = json.dumps(content, indent=1, ensure_ascii=False) + "\n"
    (folder / DESCRIPTION).write_text(text, encoding="utf-8")


def load_classifier(folder: str | Path) -> Stored:
    """Read what ``save_classifier`` wrote.

    Raises:
        DataError: a file is missing, damaged, or of another format.
    """
    folder = Path(folder)
    try:
        content: Any = json.loads((folder / DESCRIPTION).read_text(encoding="utf-8"))
        if not isinstance(content, dict) or content.get("format") != FORMAT:
            raise DataError(f"{folder / DESCRIPTION}: expected format {FORMAT}: fit the classifier again")
        if content["sha256"] != _sha256(folder / NUMBERS):
            raise DataError(f"{folder / NUMBERS} is not the file that was written: fit the classifier again")
        with np.load(folder / NUMBERS, allow_pickle=False) as arrays:
            weights, bias = arrays["weights"], arrays["bias"]
        classes, temperature = content["classes"], float(content["inverse_temperature"])
        settings, model = Settings(**content["vectors"]), str(content["model"])
    except FileNotFoundError as error:
        raise DataError(
            f"{folder} is no fitted classifier ({Path(error.filename).name} is missing): make one with "
            "nvembed classify fit"
        ) from error
    except (OSError, KeyError, TypeError, ValueError, zipfile.BadZipFile) as error:
        if isinstance(error, DataError):
            raise
        raise DataError(f"{folder}: the classifier cannot be read ({error}): fit it again") from error
    finite = np.isfinite(weights).all() and np.isfinite(bias).all() and np.isfinite(temperature)
    if weights.shape != (len(classes), content["dim"]) or bias.shape != (len(classes),) or not finite:
        raise DataError(
            f"{folder}: {len(classes)} classes with weights {weights.shape} and bias {bias.shape}, "
            f"{'' if finite else 'not '}all finite; expected ({len(classes)}, {content['dim']}): fit it again"
        )
    return Stored(Classifier(classes, weights, bias, temperature), model, settings)


def check_fits(stored: Stored, settings: Settings, *, folder: str | Path) -> None:
    """Refuse vectors of another model or prompt than the classifier was fitted on.

    Raises:
        InputError: says which differs.
    """
    known = stored.settings
    if known.fingerprint != settings.fingerprint:
        raise InputError(
            f"{folder} was fitted on vectors of the model {known.fingerprint} ({stored.model}); "
            f"got the model {settings.fingerprint}: use the same one, or fit again"
        )
    if known.prompt != settings.prompt:
        raise InputError(
            f"{folder} was fitted on vectors behind the prompt {known.prompt!r}; "
            f"got the prompt {settings.prompt!r}: use the same one, or fit again"
        )


def _sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()
