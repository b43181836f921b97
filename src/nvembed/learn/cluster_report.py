"""The folder that ``nvembed cluster`` writes.

====================  =====================================================================
report.md             settings, clusters, their terms and representative passages
clusters.json         the same as data
assignments.jsonl     ``{"id", "cluster", "similarity"}`` per passage, in the corpus's order (or .parquet)
map.png               the corpus in the plane
map.json              ``{"clusters": [{"cluster", "name", "size", "x", "y", "color"}],
                      "points": [{"id", "x", "y", "cluster", "snippet"}]}``, x and y from 0 to 1
====================  =====================================================================

A passage in no cluster (HDBSCAN only) has the cluster -1. ``similarity`` is the cosine with the mean of its
cluster, or null.
"""

import heapq
import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from nvembed.files import atomic_path, write_json
from nvembed.learn import cluster
from nvembed.learn.cluster import NOISE, Clustering
from nvembed.learn.map import MIN_ROWS, project
from nvembed.learn.picture import cluster_colors, draw_map
from nvembed.learn.source import EmbeddedSource, Sample, sample
from nvembed.learn.topics import Term, name_of, name_terms
from nvembed.read.beir import Passage

SAMPLE_ROWS = {"kmeans": 100_000, "hdbscan": 20_000}  # UMAP, before HDBSCAN, takes minutes for more
SAMPLE_BYTES = 2**30  # of float32 vectors in memory
SNIPPET_CHARS = 160
QUOTE_CHARS = 400


@dataclass(frozen=True)
class TopicCluster:
    """A cluster of the whole corpus, with its most central passages and their similarity."""

    number: int
    name: str
    size: int
    terms: list[Term]
    representatives: list[tuple[float, Passage]]


@dataclass(frozen=True)
class ClusteredCorpus:
    rows: int
    clusters: list[TopicCluster]
    noise: int
    how: str


@dataclass(frozen=True)
class ClusterOptions:
    """``sample_rows``: most passages that clusters are fitted on; None is ``SAMPLE_ROWS``.
    ``map_rows``: most of these that are drawn on the map.
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


def cluster_corpus(source: EmbeddedSource, out: Path, name: str, options: ClusterOptions) -> ClusteredCorpus:
    """Cluster a corpus, name the clusters, draw the map, and write everything to the new folder ``out``.

    Memory holds a sample of the vectors (at most ``SAMPLE_BYTES``) and one block of the others.

    Args:
        source: the corpus with its vectors.
        out: a folder that does not exist yet; it appears whole or not at all.
        name: of the corpus, in the report.

    Raises:
        InputError: the options do not fit the corpus.
        OutputError: ``out`` exists or cannot be written.
        MissingExtraError: the extra ``learn`` is not installed.
    """
    limit = min(
        options.sample_rows or SAMPLE_ROWS[options.method], max(MIN_ROWS, SAMPLE_BYTES // (4 * source.dim))
    )
    rows = sample(source, limit, seed=options.seed)
    if options.method == "kmeans":
        clustering = cluster.kmeans(rows.vectors, k=options.k, seed=options.seed)
    else:
        clustering = cluster.hdbscan(rows.vectors, min_size=options.min_size, seed=options.seed)
    with atomic_path(out) as folder:
        folder.mkdir()
        sizes, nearest = _assign(source, rows, clustering, folder, options)
        texts = [passage.text for passage in rows.passages]
        terms = name_terms(texts, clustering.labels, len(clustering.centers), stop_words=options.stop_words)
        clusters = [
            TopicCluster(
                number, name_of(terms[number], number), int(sizes[number]), terms[number], nearest[number]
            )
            for number in range(len(clustering.centers))
        ]
        result = ClusteredCorpus(source.rows, clusters, source.rows - int(sizes.sum()), clustering.how)
        mapped = _write_map(folder, rows, clustering, result, name, options)
        notes = _notes(source, options, len(rows.positions), mapped)
        report = cluster_report(result, name, notes, clustering.silhouettes, picture=mapped > 0)
        (folder / "report.md").write_text(report, encoding="utf-8")
        write_json(folder / "clusters.json", _as_data(result, source, options, clustering))
    return result


def _assign(
    source: EmbeddedSource, fitted_on: Sample, clustering: Clustering, folder: Path, options: ClusterOptions
) -> tuple[np.ndarray, list[list[tuple[float, Passage]]]]:
    """Write every passage's cluster; return the sizes and the passages nearest to each centre."""
    centers = clustering.centers / np.maximum(
        np.linalg.norm(clustering.centers, axis=1, keepdims=True), 1e-12
    )
    sizes = np.zeros(len(centers), dtype=np.int64)
    nearest: list[list[tuple[float, Passage]]] = [[] for _ in centers]
    first = 0
    with _Assignments(folder, options.format) as write:
        for block in source.blocks():
            end = first + len(block.passages)
            labels = cluster.assign(clustering, fitted_on.vectors, block.vectors)
            here = slice(*np.searchsorted(fitted_on.positions, [first, end]))
            labels[fitted_on.positions[here] - first] = clustering.labels[here]
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
    folder: Path,
    fitted_on: Sample,
    clustering: Clustering,
    result: ClusteredCorpus,
    name: str,
    options: ClusterOptions,
) -> int:
    """Write map.json and map.png; return how many passages are on it (0: too few for a map)."""
    rows = np.random.default_rng(options.seed).permutation(len(fitted_on.positions))[: options.map_rows]
    if len(rows) < MIN_ROWS:
        return 0
    rows = np.sort(rows)
    places = project(fitted_on.vectors[rows], seed=options.seed)
    places = (places - places.min(axis=0)) / max(float(np.ptp(places, axis=0).max()), 1e-12)
    labels = clustering.labels[rows]
    title = f"{name}: {result.rows:,} passages, {len(result.clusters)} clusters"
    if len(rows) < result.rows:
        title += f"; {len(rows):,} passages drawn"
    names = [item.name for item in result.clusters]
    draw_map(folder / "map.png", places, labels, names, [item.size for item in result.clusters], title)
    points = [
        {
            "id": fitted_on.passages[row].id, "x": round(float(x), 5), "y": round(float(y), 5),
            "cluster": int(clustering.labels[row]), "snippet": snippet(fitted_on.passages[row].text),
        }
        for row, (x, y) in zip(rows, places, strict=True)
    ]  # fmt: skip
    clusters = []
    for item, color in zip(result.clusters, cluster_colors(len(names)), strict=True):
        own = places[labels == item.number]
        x, y = np.median(own, axis=0) if len(own) else (None, None)
        about = {"cluster": item.number, "name": item.name, "size": item.size, "color": color}
        clusters.append({**about, "x": x, "y": y})
    content = {"format": 1, "corpus": name, "passages": result.rows, "clusters": clusters, "points": points}
    text = json.dumps(content, ensure_ascii=False, default=float) + "\n"
    (folder / "map.json").write_text(text, encoding="utf-8")
    return len(rows)


def _notes(source: EmbeddedSource, options: ClusterOptions, sampled: int, mapped: int) -> list[str]:
    settings = source.settings
    prompt = f"with the prompt {settings.prompt!r}" if settings.prompt else "without a prompt"
    notes = [f"Vectors: {source.dim:,} numbers each, model {settings.fingerprint}, {prompt}."]
    if sampled < source.rows:
        put = "the cluster of its nearest " + ("centre" if options.method == "kmeans" else "sampled passage")
        notes.append(
            f"Clusters were fitted and named on a random sample of {sampled:,} passages; each of the others "
            f"is in {put}."
        )
    if mapped == 0:
        notes.append(f"No map: it needs at least {MIN_ROWS} passages.")
    elif mapped < source.rows:
        notes.append(f"The map shows a random sample of {mapped:,} passages.")
    else:
        notes.append("The map shows every passage.")
    if mapped:
        notes.append("It keeps neighbours together (PCA, then UMAP); large distances on it mean little.")
    notes.append(f"Names are the terms with the highest c-TF-IDF. Seed {options.seed}.")
    return notes


def _as_data(
    result: ClusteredCorpus, source: EmbeddedSource, options: ClusterOptions, clustering: Clustering
) -> dict[str, Any]:
    return {
        "format": 1,
        "how": result.how,
        "passages": result.rows,
        "in_no_cluster": result.noise,
        "options": asdict(options),
        "vectors": source.settings.record,
        "silhouettes": clustering.silhouettes,
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


def cluster_report(
    result: ClusteredCorpus,
    name: str,
    notes: Sequence[str],
    silhouettes: Mapping[int, float],
    *,
    picture: bool,
) -> str:
    """Return the report: sizes and names, how k was chosen, terms and passages of each cluster."""
    lines = [f"# Clusters of {markdown(name)}", ""]
    lines += [f"{result.rows:,} passages, {len(result.clusters)} clusters. {result.how}."]
    if result.noise:
        lines += ["", f"In no cluster: {result.noise:,} passages ({result.noise / result.rows:.1%})."]
    lines += ["", *(f"- {markdown(note)}" for note in notes)]
    if picture:
        lines += ["", "![The corpus in the plane](map.png)"]
    lines += ["", "| cluster | name | passages | share |", "|---:|---|---:|---:|"]
    for item in result.clusters:
        share = item.size / result.rows
        lines.append(f"| {item.number} | {markdown(item.name)} | {item.size:,} | {share:.1%} |")
    if silhouettes:
        chosen = max(silhouettes, key=lambda k: silhouettes[k])
        lines += ["", "## How k was chosen", ""]
        lines += [f"The highest mean silhouette: k = {chosen}. Near 0 means that clusters touch.", ""]
        lines += ["| k | " + " | ".join(map(str, silhouettes)) + " |", "|---|" + "---:|" * len(silhouettes)]
        lines += ["| silhouette | " + " | ".join(f"{value:.3f}" for value in silhouettes.values()) + " |"]
    for item in result.clusters:
        lines += ["", f"## {item.number}: {markdown(item.name)}", ""]
        lines += [f"{item.size:,} passages. Terms: {markdown(', '.join(term.text for term in item.terms))}"]
        for similarity, passage in item.representatives:
            lines += ["", f"> {markdown(snippet(passage.text, QUOTE_CHARS))}  "]
            lines += [f"> ({markdown(passage.id)}, similarity {similarity:.3f})"]
    return "\n".join(lines) + "\n"


def snippet(text: str, chars: int = SNIPPET_CHARS) -> str:
    """Return the beginning of a text on one line."""
    line = " ".join(text.split())
    return line if len(line) <= chars else line[: chars - 1].rstrip() + "…"


def markdown(text: str) -> str:
    """Escape the characters of ``text`` that Markdown would interpret."""
    return re.sub(r"([\\`*_\[\]<>|#])", r"\\\1", text)
