"""The folder that ``nvembed cluster`` writes.

====================  =====================================================================
report.md             what was done, the clusters, their terms and representative passages
clusters.json         the same as data
assignments.jsonl     ``{"id", "cluster", "similarity"}`` per passage, in the corpus's order (or .parquet)
map.png               the corpus in the plane
map.json              ``{"clusters": [{"cluster", "name", "size", "x", "y"}],
                      "points": [{"id", "x", "y", "cluster", "snippet"}]}``, x and y from 0 to 1
====================  =====================================================================

A passage in no cluster (HDBSCAN only) has the cluster -1. ``similarity`` is the cosine with the mean of its
cluster, or null.
"""

import heapq
import json
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from nvembed.files import atomic_path
from nvembed.learn import cluster
from nvembed.learn.cluster import NOISE, Clustering
from nvembed.learn.cluster_report import Cluster, Result, cluster_report, snippet
from nvembed.learn.map import MIN_ROWS, project
from nvembed.learn.picture import draw_map
from nvembed.learn.source import Sample, Source, sample
from nvembed.learn.topics import name_of, name_terms
from nvembed.read.beir import Passage

SAMPLE_ROWS = {"kmeans": 100_000, "hdbscan": 20_000}  # UMAP, before HDBSCAN, takes minutes for more
SAMPLE_BYTES = 2**30  # of float32 vectors in memory


@dataclass(frozen=True)
class Options:
    """``sample_rows``: clusters are fitted on so many passages at most, ``SAMPLE_ROWS`` where it is None.
    ``map_rows``: so many of these are drawn on the map.
    """

    method: Literal["kmeans", "hdbscan"] = "kmeans"
    k: int | None = None
    min_size: int | None = None
    representatives: int = 3
    stop_words: Literal["english"] | None = "english"
    sample_rows: int | None = None
    map_rows: int = 10_000
    format: Literal["jsonl", "parquet"] = "jsonl"
    seed: int = 0


def cluster_corpus(source: Source, out: Path, name: str, options: Options) -> Result:
    """Cluster a corpus, name the clusters, draw the map, and write it all to the new folder ``out``.

    Memory holds a sample of the vectors (``SAMPLE_BYTES`` at most) and one block of the others.

    Args:
        source: the corpus with its vectors.
        out: a folder that does not exist yet; it appears whole or not at all.
        name: what the corpus is called in the report.

    Raises:
        InputError: the options do not fit the corpus.
        OutputError: ``out`` exists or cannot be written.
        MissingExtraError: the extra ``corpus`` is not installed.
    """
    limit = min(
        options.sample_rows or SAMPLE_ROWS[options.method], max(MIN_ROWS, SAMPLE_BYTES // (4 * source.dim))
    )
    drawn = sample(source, limit, seed=options.seed)
    if options.method == "kmeans":
        found = cluster.kmeans(drawn.vectors, k=options.k, seed=options.seed)
    else:
        found = cluster.hdbscan(drawn.vectors, min_size=options.min_size, seed=options.seed)
    with atomic_path(out) as folder:
        folder.mkdir()
        sizes, nearest = _assign(source, drawn, found, folder, options)
        texts = [passage.text for passage in drawn.passages]
        terms = name_terms(texts, found.labels, len(found.centers), stop_words=options.stop_words)
        clusters = [
            Cluster(
                number, name_of(terms[number], number), int(sizes[number]), terms[number], nearest[number]
            )
            for number in range(len(found.centers))
        ]
        result = Result(source.rows, clusters, source.rows - int(sizes.sum()), found.how)
        mapped = _write_map(folder, drawn, found, result, name, options)
        notes = _notes(source, options, len(drawn.positions), mapped)
        report = cluster_report(result, name, notes, found.silhouettes, picture=mapped > 0)
        (folder / "report.md").write_text(report, encoding="utf-8")
        _write_json(folder / "clusters.json", _as_data(result, source, options, found))
    return result


def _assign(
    source: Source, drawn: Sample, found: Clustering, folder: Path, options: Options
) -> tuple[np.ndarray, list[list[tuple[float, Passage]]]]:
    """Write every passage's cluster; return the sizes and the passages nearest to each centre."""
    centers = found.centers / np.maximum(np.linalg.norm(found.centers, axis=1, keepdims=True), 1e-12)
    sizes = np.zeros(len(centers), dtype=np.int64)
    nearest: list[list[tuple[float, Passage]]] = [[] for _ in centers]
    first = 0
    with _Assignments(folder, options.format) as write:
        for block in source.blocks():
            end = first + len(block.passages)
            labels = cluster.assign(found, drawn.vectors, block.vectors)
            here = slice(*np.searchsorted(drawn.positions, [first, end]))
            labels[drawn.positions[here] - first] = found.labels[here]
            similarity = np.einsum("nd,nd->n", block.vectors, centers[labels])
            write([passage.id for passage in block.passages], labels, similarity)
            for number in np.unique(labels[labels >= 0]):
                rows = np.flatnonzero(labels == number)
                sizes[number] += len(rows)
                scored = [(float(similarity[row]), block.passages[row]) for row in rows.tolist()]
                nearest[number] = _best(nearest[number] + scored, options.representatives)
            first = end
    return sizes, nearest


def _best(scored: list[tuple[float, Passage]], keep: int) -> list[tuple[float, Passage]]:
    """Return the ``keep`` most similar passages, of equal texts the first."""
    distinct: dict[str, tuple[float, Passage]] = {}
    for pair in scored:
        distinct.setdefault(pair[1].text, pair)
    return heapq.nlargest(keep, distinct.values(), key=lambda pair: pair[0])


class _Assignments:
    """A file of assignments, written block by block."""

    def __init__(self, folder: Path, format: str) -> None:
        self._path = folder / f"assignments.{format}"
        self._file: Any = None

    def __enter__(self) -> Callable[[list[str], np.ndarray, np.ndarray], None]:
        if self._path.suffix == ".jsonl":
            self._file = self._path.open("w", encoding="utf-8")
            return self._lines
        import pyarrow as pa
        import pyarrow.parquet as pq

        columns = [("id", pa.string()), ("cluster", pa.int32()), ("similarity", pa.float32())]
        self._file = pq.ParquetWriter(self._path, pa.schema(columns), compression="zstd")
        return self._table

    def __exit__(self, *_: object) -> None:
        self._file.close()

    def _lines(self, ids: list[str], labels: np.ndarray, similarity: np.ndarray) -> None:
        for id_, label, value in zip(ids, labels.tolist(), similarity.tolist(), strict=True):
            row = {"id": id_, "cluster": label, "similarity": None if label == NOISE else round(value, 6)}
            self._file.write(json.dumps(row, ensure_ascii=False) + "\n")

    def _table(self, ids: list[str], labels: np.ndarray, similarity: np.ndarray) -> None:
        import pyarrow as pa

        columns = [
            pa.array(ids),
            pa.array(labels.astype(np.int32)),
            pa.array(similarity, mask=labels == NOISE),
        ]
        self._file.write_table(pa.table(columns, schema=self._file.schema))


def _write_map(
    folder: Path, drawn: Sample, found: Clustering, result: Result, name: str, options: Options
) -> int:
    """Write map.json and map.png; return how many passages are on it (0: too few for a map)."""
    rows = np.random.default_rng(options.seed).permutation(len(drawn.positions))[: options.map_rows]
    if len(rows) < MIN_ROWS:
        return 0
    rows = np.sort(rows)
    places = project(drawn.vectors[rows], seed=options.seed)
    places = (places - places.min(axis=0)) / max(float(np.ptp(places, axis=0).max()), 1e-12)
    labels = found.labels[rows]
    title = f"{name}: {result.rows:,} passages, {len(result.clusters)} clusters"
    if len(rows) < result.rows:
        title += f"; {len(rows):,} passages drawn"
    names = [item.name for item in result.clusters]
    draw_map(folder / "map.png", places, labels, names, [item.size for item in result.clusters], title)
    points = [
        {
            "id": drawn.passages[row].id, "x": round(float(x), 5), "y": round(float(y), 5),
            "cluster": int(found.labels[row]), "snippet": snippet(drawn.passages[row].text),
        }
        for row, (x, y) in zip(rows, places, strict=True)
    ]  # fmt: skip
    clusters = []
    for item in result.clusters:
        own = places[labels == item.number]
        x, y = np.median(own, axis=0) if len(own) else (None, None)
        clusters.append({"cluster": item.number, "name": item.name, "size": item.size, "x": x, "y": y})
    content = {"format": 1, "corpus": name, "passages": result.rows, "clusters": clusters, "points": points}
    _write_json(folder / "map.json", content, indent=None)
    return len(rows)


def _notes(source: Source, options: Options, sampled: int, mapped: int) -> list[str]:
    settings = source.settings
    prompt = f"behind the prompt {settings.prompt!r}" if settings.prompt else "without a prompt"
    notes = [f"Vectors: {source.dim:,} numbers each, model {settings.fingerprint}, {prompt}."]
    if sampled < source.rows:
        put = "the cluster of its nearest " + ("centre" if options.method == "kmeans" else "sampled passage")
        notes.append(
            f"Clusters were fitted and named on a random sample of {sampled:,} passages; every other one was "
            f"put into {put}."
        )
    if mapped == 0:
        notes.append(f"No map: it needs at least {MIN_ROWS} passages.")
    elif mapped < source.rows:
        notes.append(f"The map shows a random sample of {mapped:,} passages.")
    else:
        notes.append("The map shows every passage.")
    if mapped:
        notes.append("It keeps neighbours together (PCA, then UMAP): distances far apart in it mean little.")
    notes.append(f"Names are the terms with the highest c-TF-IDF. Seed {options.seed}.")
    return notes


def _as_data(result: Result, source: Source, options: Options, found: Clustering) -> dict[str, Any]:
    return {
        "format": 1,
        "how": result.how,
        "passages": result.rows,
        "in_no_cluster": result.noise,
        "options": asdict(options),
        "vectors": asdict(source.settings),
        "silhouettes": found.silhouettes,
        "clusters": [
            {
                "cluster": item.number,
                "name": item.name,
                "size": item.size,
                "terms": {term.text: term.weight for term in item.terms},
                "representatives": [
                    {"id": passage.id, "similarity": value, "text": passage.text}
                    for value, passage in item.representatives
                ],
            }
            for item in result.clusters
        ],
    }


def _write_json(path: Path, content: dict[str, Any], *, indent: int | None = 1) -> None:
    path.write_text(
        json.dumps(content, indent=indent, ensure_ascii=False, default=float) + "\n", encoding="utf-8"
    )
