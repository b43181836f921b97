"""How to recognise a folder that ``nvembed embed`` wrote."""

from pathlib import Path

INDEX = "index"  # the folder of its index
HOME = ".nvembed"  # beside a corpus: vectors and indexes of it


def is_embedded(path: str | Path) -> bool:
    """Whether ``nvembed embed`` wrote this folder, finished or not."""
    begun = (Path(path) / name for name in ("shards", "plan.json"))
    return (Path(path) / "files.jsonl").is_file() and any(entry.exists() for entry in begun)
