"""The folder that ``nvembed embed`` writes, as other rooms know it."""

from pathlib import Path

INDEX = "index"  # of the index that may lie in it


def is_embedded(path: str | Path) -> bool:
    """Whether ``path`` is what ``nvembed embed`` writes, finished or not."""
    begun = (Path(path) / name for name in ("shards", "plan.json"))
    return (Path(path) / "files.jsonl").is_file() and any(entry.exists() for entry in begun)
