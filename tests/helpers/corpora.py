"""What the tests of embedding share: a small corpus of every kind, and a model that is no model."""

import hashlib
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from nvembed.embed.job import EmbedSettings

DIM = 8


@dataclass(frozen=True)
class Part:
    vectors: np.ndarray
    num_tokens: np.ndarray
    truncated: np.ndarray
    empty: np.ndarray


def word_offsets(texts: Sequence[str]) -> list[np.ndarray]:
    """A token per word."""
    found = []
    for text in texts:
        spans, end = [], 0
        for word in text.split():
            start = text.index(word, end)
            end = start + len(word)
            spans.append((start, end))
        found.append(np.array(spans, dtype=np.int64).reshape(-1, 2))
    return found


def vector(text: str) -> np.ndarray:
    seed = int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big")
    values = np.random.default_rng(seed).standard_normal(DIM)
    return (values / np.linalg.norm(values)).astype(np.float32)


def encode(texts: Sequence[str], window: int = 3) -> Iterator[Part]:
    """Vectors by the text's hash, ``window`` texts at a time; a text of more than 50 words is cut."""
    for start in range(0, len(texts), window):
        some = texts[start : start + window]
        words = np.array([len(text.split()) for text in some])
        vectors = np.stack([vector(text) for text in some])
        yield Part(vectors, np.minimum(words, 50) + 2, words > 50, words == 0)


def settings(**changes: object) -> EmbedSettings:
    values: dict[str, object] = {
        "fingerprint": "f" * 32,
        "prompt": "",
        "dtype": "float32",
        "dim": DIM,
        "max_length": 52,
        "batch_tokens": 2048,
        "storage": "float16",
        "chunk_tokens": 20,
        "overlap_tokens": 4,
    }
    return EmbedSettings(**{**values, **changes})  # type: ignore[arg-type]


def pdf(*pages: str) -> bytes:
    """A PDF with a line of text on each page."""
    kids = " ".join(f"{4 + 2 * i} 0 R" for i in range(len(pages)))
    objects = [
        b"<< /Type /Catalog /Pages 2 0 R >>",
        f"<< /Type /Pages /Kids [{kids}] /Count {len(pages)} >>".encode(),
        b"<< /Type /Font /Subtype /Type1 /BaseFont /Helvetica >>",
    ]
    for i, text in enumerate(pages):
        content = f"BT /F1 12 Tf 20 100 Td ({text}) Tj ET".encode()
        objects.append(
            f"<< /Type /Page /Parent 2 0 R /MediaBox [0 0 600 200] /Contents {5 + 2 * i} 0 R "
            "/Resources << /Font << /F1 3 0 R >> >> >>".encode()
        )
        objects.append(b"<< /Length %d >>\nstream\n%s\nendstream" % (len(content), content))
    out = b"%PDF-1.4\n"
    places = []
    for number, body in enumerate(objects, start=1):
        places.append(len(out))
        out += b"%d 0 obj\n%s\nendobj\n" % (number, body)
    table = len(out)
    out += b"xref\n0 %d\n0000000000 65535 f \n" % (len(objects) + 1)
    out += b"".join(b"%010d 00000 n \n" % place for place in places)
    return out + b"trailer << /Size %d /Root 1 0 R >>\nstartxref\n%d\n%%%%EOF\n" % (len(objects) + 1, table)


def sentences(number: int, count: int) -> str:
    return " ".join(f"Document {number} says in sentence {i} what it says." for i in range(count))


def make_corpus(folder: Path) -> Path:
    """Every kind of file, with documents that are cut and some that are not: 24 documents in 8 files."""
    (folder / "sub").mkdir(parents=True)
    (folder / "a.md").write_text(f"# Title\n\n{sentences(1, 9)}\n", encoding="utf-8")
    (folder / "b.txt").write_text(f"plain\r\n\r\n{sentences(2, 5)}", encoding="utf-8")
    (folder / "c.html").write_text(
        "<html><head><title>A  page</title><style>x{}</style></head><body><h1>Head</h1>"
        "<p>Ünï &amp; <b>bold</b> text.</p><script>no()</script>"
        "<ul><li>one</li><li>two</li></ul></body></html>",
        encoding="utf-8",
    )
    (folder / "d.pdf").write_bytes(pdf(sentences(3, 2), sentences(4, 2)))
    records = [
        {"_id": f"r{i}", "text": sentences(i, i), "year": 2000 + i, "tags": ["x"]} for i in range(1, 9)
    ]
    lines = "".join(json.dumps(record) + "\n" for record in records)
    (folder / "sub" / "e.jsonl").write_text(lines, encoding="utf-8")
    (folder / "sub" / "f.csv").write_text('text,lang\n"one, two\nthree",en\n\nfour,de\n', encoding="utf-8")
    table = {"text": [sentences(i, 3) for i in range(10)], "n": list(range(10)), "v": [[0.5]] * 10}
    pq.write_table(pa.table(table), folder / "sub" / "g.parquet", row_group_size=3)
    (folder / "picture.png").write_bytes(b"\x89PNG\0")
    return folder


def content(folder: Path) -> dict[str, bytes]:
    """Every file of a folder but its lock."""
    files = sorted(path for path in folder.rglob("*") if path.is_file() and path.name != ".lock")
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in files}
