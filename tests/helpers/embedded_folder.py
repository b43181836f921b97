"""An embedded corpus in the format of ``docs/reference/embedded-corpus.md``, with vectors made from words."""

import hashlib
import json
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from nvembed.embed.shard import schema

FINGERPRINT = "0" * 32
DIM = 64

DOCUMENTS: dict[str, tuple[list[str], dict[str, Any]]] = {
    "judo.md": (
        ["Judo throws are allowed in freestyle wrestling.", "Leg locks are not. They never were."],
        {"year": 2019, "lang": "en", "draft": False},
    ),
    "radio.md": (
        ["Radiologists train for years after medical school.", "They read pictures of bones all day."],
        {"year": 2021, "lang": "en", "draft": True, "page": 3},
    ),
    "it's; DROP TABLE x.md": (["Il gatto dorme sul divano. Café!"], {"year": 2022, "lang": "it"}),
    "empty": (["A cat sleeps on the sofa all day, and a dog barks."], {}),
}


def embed(texts: list[str], dim: int = DIM) -> np.ndarray:
    """Float32 unit rows: counts of words in ``dim`` buckets."""
    vectors = np.full((len(texts), dim), 1e-3, np.float32)
    for row, text in enumerate(texts):
        for word in text.lower().replace(",", " ").replace(".", " ").split():
            vectors[row, zlib.crc32(word.encode()) % dim] += 1
    return np.asarray(vectors / np.linalg.norm(vectors, axis=1, keepdims=True))


def write_embedded(
    folder: Path,
    documents: dict[str, tuple[list[str], dict[str, Any]]] = DOCUMENTS,
    *,
    fingerprint: str = FINGERPRINT,
    prompt: str = "",
    model: str = "model",
    dim: int = DIM,
    per_shard: int = 2,
) -> Path:
    (folder / "shards").mkdir(parents=True)
    names = list(documents)
    shards = []
    for number, first in enumerate(range(0, len(names), per_shard)):
        rows: list[dict[str, Any]] = []
        for name in names[first : first + per_shard]:
            texts, metadata = documents[name]
            place = 0
            for i, text in enumerate(texts):
                rows.append(
                    {
                        "id": f"{name}#{i}",
                        "document": name,
                        "start": place,
                        "end": place + len(text),
                        "text": text,
                        "tokens": len(text.split()),
                        "truncated": False,
                        "metadata": json.dumps(metadata),
                    }
                )
                place += len(text) + 1
        vectors = embed([row["text"] for row in rows], dim).astype(np.float16)
        whole = schema(dim, "float16")
        columns = [pa.array([row[name] for row in rows], whole.field(name).type) for name in whole.names[:-1]]
        columns.append(
            pa.FixedSizeListArray.from_arrays(pa.array(vectors.reshape(-1)), type=whole.field("vector").type)
        )
        path = folder / "shards" / f"{number:05d}.parquet"
        pq.write_table(pa.table(columns, schema=whole), path)
        shards.append(
            {
                "name": path.name,
                "documents": len(names[first : first + per_shard]),
                "rows": len(rows),
                "tokens": sum(row["tokens"] for row in rows),
                "bytes": path.stat().st_size,
                "sha256": hashlib.sha256(path.read_bytes()).hexdigest(),
            }
        )
    manifest = {
        "format": 1,
        "job": "1" * 32,
        "corpus": "corpus",
        "model": model,
        "settings": {
            "fingerprint": fingerprint,
            "prompt": prompt,
            "dtype": "float32",
            "max_length": 512,
            "batch_tokens": 2048,
            "storage": "float16",
            "chunk_tokens": 512,
            "overlap_tokens": 64,
            "shard_passages": 2048,
            "field": None,
            "on_error": "stop",
        },
        "dim": dim,
        "counts": {
            "files": len(names),
            "documents": len(names),
            "passages": sum(shard["rows"] for shard in shards),
            "tokens": sum(shard["tokens"] for shard in shards),
            "truncated": 0,
            "empty": 0,
            "skipped": 0,
        },
        "files_sha256": "0" * 64,
        "ignored": {},
        "skipped": [],
        "shards": shards,
    }
    (folder / "files.jsonl").write_text("")
    (folder / "manifest.json").write_text(json.dumps(manifest, indent=1))
    return folder
