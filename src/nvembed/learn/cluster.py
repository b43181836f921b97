"""Clusters of vectors, by k-means and HDBSCAN.  n sampled rows, D numbers, K clusters.

Both are scikit-learn's and are fitted on a sample in memory. Any further vector joins the cluster of the
nearest centre (k-means) or of the nearest sampled vector (HDBSCAN). Rows are unit vectors, so Euclidean
distance orders them as the cosine does.
"""

import warnings
from dataclasses import dataclass
from typing import Any

import numpy as np

from nvembed.errors import InputError, needs_extra
from nvembed.learn.map import MIN_ROWS, project

NOISE = -1
WHOLE_ROWS = 20_000  # above this k-means takes mini-batches
MINI_BATCH = 4096
SILHOUETTE_ROWS = 2_000  # k is chosen on so many rows: the distances between all of them are kept
CANDIDATES = (2, 3, 4, 5, 6, 8, 10, 12, 14, 16, 18, 20, 24, 28, 32, 40, 50, 64, 80, 100)
HDBSCAN_DIMS = 5


@dataclass(frozen=True)
class Clustering:
    """Clusters of a sample, the largest first.

    ``labels``: int64 (n,), ``NOISE`` where HDBSCAN puts a row into no cluster. ``centers``: float32 (K, D),
    means of the clusters' rows. ``silhouettes``: k -> mean silhouette, where k was chosen.
    """

    method: str
    labels: np.ndarray
    centers: np.ndarray
    how: str
    silhouettes: dict[int, float]


def kmeans(vectors_nD: np.ndarray, *, k: int | None = None, seed: int = 0) -> Clustering:
    """Cluster unit rows by k-means: at once up to ``WHOLE_ROWS`` rows, in mini-batches above.

    Args:
        vectors_nD: float32 (n, D), unit rows.
        k: number of clusters; None takes the k of ``CANDIDATES`` with the highest mean silhouette
            (Rousseeuw 1987, Euclidean) on ``SILHOUETTE_ROWS`` random rows.
        seed: of the starts and of the sample.

    Raises:
        InputError: k is below 2, or there are fewer distinct rows than clusters.
        MissingExtraError: scikit-learn is not installed.
    """
    distinct = len(np.unique(vectors_nD, axis=0)) if len(vectors_nD) <= WHOLE_ROWS else len(vectors_nD)
    if k is not None and not 2 <= k <= distinct:
        raise InputError(f"k is {k:,}; expected 2 to {distinct:,}, the number of distinct vectors")
    if distinct < 3:
        raise InputError(f"expected at least 3 distinct texts to cluster, got {distinct}")
    silhouettes = choose_k(vectors_nD, seed=seed) if k is None else {}
    chosen = max(silhouettes, key=lambda c: silhouettes[c]) if k is None else k
    labels = _fit(vectors_nD, chosen, seed, starts=3)
    how = f"k-means, k = {chosen}"
    if len(vectors_nD) > WHOLE_ROWS:
        how += f" (mini-batches of {MINI_BATCH:,})"
    labels, centers = by_size(vectors_nD, labels)
    return Clustering("kmeans", labels, centers, how, silhouettes)


def choose_k(vectors_nD: np.ndarray, *, seed: int) -> dict[int, float]:
    """Return the mean silhouette of k-means for each of ``CANDIDATES`` that leaves 4 rows per cluster."""
    from sklearn.metrics import pairwise_distances, silhouette_score

    rows = np.random.default_rng(seed).permutation(len(vectors_nD))[:SILHOUETTE_ROWS]
    some = vectors_nD[np.sort(rows)]
    distances = pairwise_distances(some)
    np.fill_diagonal(distances, 0)
    most = max(2, len(np.unique(some, axis=0)) // 4)
    silhouettes = {}
    for k in (k for k in CANDIDATES if k <= most):
        labels = _fit(some, k, seed, starts=2)
        if 1 < len(np.unique(labels)) < len(some):
            silhouettes[k] = float(silhouette_score(distances, labels, metric="precomputed"))
    if not silhouettes:
        raise InputError("no k fits the vectors, which are nearly equal: pass --k")
    return silhouettes


def hdbscan(vectors_nD: np.ndarray, *, min_size: int | None = None, seed: int = 0) -> Clustering:
    """Cluster unit rows by HDBSCAN on ``HDBSCAN_DIMS`` dimensions that ``map.project`` makes of them.

    The reduction is needed: in hundreds of dimensions all distances are similar and HDBSCAN calls most rows
    noise (benchmarks/results/cluster.md).

    Args:
        vectors_nD: float32 (n, D), unit rows.
        min_size: fewest rows of a cluster; None is 1 % of the rows, at least 5.
        seed: of the reduction.

    Raises:
        InputError: too few rows, ``min_size`` does not fit them, or every row is noise.
        MissingExtraError: scikit-learn or umap-learn is not installed.
    """
    from sklearn.cluster import HDBSCAN

    rows = len(vectors_nD)
    if rows < MIN_ROWS:
        raise InputError(f"{rows} texts; HDBSCAN expects at least {MIN_ROWS}: use --k instead")
    size = max(5, round(rows / 100)) if min_size is None else min_size
    if not 2 <= size <= rows // 2:
        raise InputError(f"--min-size is {size:,}; expected 2 to {rows // 2:,}, half of the texts")
    reduced = project(vectors_nD, dims=HDBSCAN_DIMS, spread_out=False, seed=seed)
    labels = np.asarray(HDBSCAN(min_cluster_size=size, copy=True).fit_predict(reduced), dtype=np.int64)
    if labels.max() < 0:
        raise InputError(
            f"HDBSCAN found no cluster of {size:,} texts or more: lower --min-size, or use k-means (--k)"
        )
    labels, centers = by_size(vectors_nD, labels)
    how = f"HDBSCAN, clusters of at least {size:,} texts, on {HDBSCAN_DIMS} dimensions made by PCA and UMAP"
    return Clustering("hdbscan", labels, centers, how, {})


def by_size(vectors_nD: np.ndarray, labels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Number clusters from the largest to the smallest; return (labels, means float32 (K, D))."""
    old, first, counts = np.unique(labels, return_index=True, return_counts=True)
    order = [i for i in np.lexsort((first, -counts)) if old[i] >= 0]  # of equal sizes, the first row decides
    renamed = np.full(len(labels), NOISE, dtype=np.int64)
    for number, i in enumerate(order):
        renamed[labels == old[i]] = number
    means = [vectors_nD[renamed == number].mean(axis=0, dtype=np.float64) for number in range(len(order))]
    return renamed, np.stack(means).astype(np.float32)


def assign(clustering: Clustering, sample_nD: np.ndarray, vectors_ND: np.ndarray) -> np.ndarray:
    """Return the cluster of further unit rows: int64 (N,).

    That of the nearest sampled vector under HDBSCAN (which may be noise), else of the nearest centre.
    """
    if clustering.method == "hdbscan":
        nearest = [
            (part @ sample_nD.T).argmax(axis=1)
            for part in np.array_split(vectors_ND, len(vectors_ND) // 256 + 1)
        ]
        return np.asarray(clustering.labels[np.concatenate(nearest)])
    centers = clustering.centers
    nearness = vectors_ND @ centers.T - 0.5 * np.square(centers).sum(axis=1)  # half of |x|^2 - |x - c|^2
    return np.asarray(nearness.argmax(axis=1), dtype=np.int64)


def _fit(vectors_nD: np.ndarray, k: int, seed: int, *, starts: int) -> np.ndarray:
    cluster = _sklearn_cluster()
    if len(vectors_nD) > WHOLE_ROWS:
        model = cluster.MiniBatchKMeans(k, batch_size=MINI_BATCH, n_init=starts, random_state=seed)
    else:
        model = cluster.KMeans(k, n_init=starts, random_state=seed)
    with warnings.catch_warnings():  # fewer distinct vectors than k: a cluster stays empty
        warnings.filterwarnings("ignore", "Number of distinct clusters")
        return np.asarray(model.fit_predict(vectors_nD), dtype=np.int64)


def _sklearn_cluster() -> Any:
    with needs_extra("learn", "nvembed cluster"):
        import sklearn.cluster
    return sklearn.cluster
