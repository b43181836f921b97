"""A marker that says which run a path belongs to, so that a restart goes on and another run is refused."""

import json
from pathlib import Path
from typing import Any

from nvembed.errors import OutputError
from nvembed.files import atomic_path


def claim(marker: Path, state: dict[str, Any]) -> None:
    """Write ``state`` to ``marker``, or check that it is what stands there.

    Raises:
        OutputError: ``marker`` is of a run with another state; the message says what differs.
    """
    if not marker.exists():
        with atomic_path(marker) as temporary:
            temporary.write_text(json.dumps(state, indent=1, ensure_ascii=False) + "\n")
        return
    found = json.loads(marker.read_text())
    expected = json.loads(json.dumps(state))
    differs = [name for name in {**found, **expected} if found.get(name) != expected.get(name)]
    if differs:
        name = differs[0]
        there, here = _short(found.get(name)), _short(expected.get(name))
        raise OutputError(
            f"{marker} is of a run with another {', '.join(differs)} ({name} there: {there}, here: {here}): "
            "remove what that run left, or write to another folder"
        )


def _short(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 120 else text[:117] + "..."
