"""A corpus in the plane: PCA, then UMAP.  n rows, D numbers.

Measured against t-SNE, spectral embedding and PCA alone: benchmarks/results/cluster.md.
"""

import warnings

import numpy as np

from nvembed.errors import InputError, needs_extra

PCA_DIMS = 50  # UMAP's neighbours are then searched in 50 dimensions: twice as fast, and no worse
NEIGHBORS = 15
MIN_ROWS = 10  # fewer rows have no neighbourhoods


def project(vectors_nD: np.ndarray, *, dims: int = 2, spread_out: bool = True, seed: int = 0) -> np.ndarray:
    """Place unit rows in ``dims`` dimensions so that neighbours stay neighbours: float32 (n, dims).

    Args:
        vectors_nD: float32 (n, D), at least ``MIN_ROWS``.
        dims: 2 for a map.
        spread_out: keep points apart, for a picture; False packs them, for a clustering.
        seed: the same seed gives the same places (on the same machine and library versions).

    Raises:
        InputError: too few rows.
        MissingExtraError: scikit-learn or umap-learn is not installed.
    """
    rows = len(vectors_nD)
    if rows < MIN_ROWS:
        raise InputError(f"{rows} texts; a map needs at least {MIN_ROWS}")
    with needs_extra("learn", "the map"), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # about tensorflow, which only parametric UMAP needs
        from sklearn.decomposition import PCA
        from umap import UMAP
    reduced = vectors_nD
    if min(vectors_nD.shape) > PCA_DIMS:
        solver = "randomized" if max(vectors_nD.shape) > 1000 else "full"
        reduced = PCA(PCA_DIMS, svd_solver=solver, random_state=seed).fit_transform(vectors_nD)
    neighbors = min(NEIGHBORS, rows - 1)
    # The spectral start needs more rows than dimensions.
    start = "spectral" if rows > 4 * (dims + 1) else "random"
    model = UMAP(
        n_components=dims, n_neighbors=neighbors, min_dist=0.1 if spread_out else 0.0, metric="cosine",
        init=start, n_jobs=1, random_state=seed,
    )  # fmt: skip
    with warnings.catch_warnings():  # about a graph in several parts, which is not a fault of the corpus
        warnings.simplefilter("ignore")
        return np.asarray(model.fit_transform(reduced), dtype=np.float32)
