"""The static twin of a model: a vector per token, so that a text costs a look-up and a mean.

Shapes: V tokens, D dimensions of the model, d of the twin, T texts, N tokens of all texts.

Each token goes through the model by itself. The vectors are centred, rotated to their principal directions,
and multiplied by ``a / (a + p)``, where ``p`` is the token's share of a corpus: frequent tokens carry little
meaning. With texts and their vectors ``y``, the table is then fitted (conjugate gradients):

    argmin_E  sum_t |mean of E over text t - y_t|^2 + ridge |E - E_0|^2

Paper: Arora et al. 2017, section 3 (the weights, SIF).
"""

import os
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from nvembed.compress.folder import Reduction, tokenizer_files
from nvembed.model.quantised import quantise_rows
from nvembed.weights.adapter import json_bytes
from nvembed.weights.save import save_model
from nvembed.weights.sentence_transformers import MODULES, SETTINGS
from nvembed.weights.static import FACTORS, TABLES
from nvembed.weights.tensors import Checkpoint

SIF = 1e-4  # a
RIDGE = 0.05  # against texts with vectors of length 1
STEPS = 30  # of conjugate gradients; the error changes little afterwards


@dataclass(frozen=True)
class FitTexts:
    """Tokenised texts end to end, without special tokens, and what the model returns for them."""

    ids: np.ndarray  # (N,) int64
    lengths: np.ndarray  # (T,)
    vectors: np.ndarray  # (T, D) float32


def zipf_shares(size: int) -> np.ndarray:
    """Return each token's share of all text, if frequency falls with its id as 1 / rank."""
    inverse = 1 / np.arange(1, size + 1)
    return np.asarray(inverse / inverse.sum())


def counted_shares(counts_V: np.ndarray) -> np.ndarray:
    """Return each token's share of a corpus; those that do not occur count half."""
    smoothed = counts_V + 0.5
    return np.asarray(smoothed / smoothed.sum())


def static_table(
    vectors_VD: np.ndarray, shares_V: np.ndarray, dims: int, texts: FitTexts | None = None
) -> np.ndarray:
    """Return the token vectors of the twin, (V, d) float32.

    Args:
        vectors_VD: what the model returns for each token by itself.
        shares_V: each token's share of all text.
        texts: fit the table to them.
    """
    centred_VD = vectors_VD - vectors_VD.mean(0)
    _, directions_DD = np.linalg.eigh(centred_VD.T.astype(np.float64) @ centred_VD)
    rotation_Dd = np.ascontiguousarray(directions_DD[:, ::-1][:, :dims], dtype=np.float32)
    table_Vd = (centred_VD @ rotation_Dd) * (SIF / (SIF + shares_V))[:, None].astype(np.float32)
    if texts is None:
        return np.asarray(table_Vd)
    targets_Td = (texts.vectors - texts.vectors.mean(0)) @ rotation_Dd
    return _fitted(torch.from_numpy(table_Vd), texts, torch.from_numpy(targets_Td)).numpy()


def _fitted(table_Vd: Tensor, texts: FitTexts, targets_Td: Tensor) -> Tensor:
    means = _means(texts, len(table_Vd))
    back = means.t().coalesce()
    own_Td = means @ table_Vd
    table_Vd = table_Vd * ((own_Td * targets_Td).sum() / own_Td.square().sum())
    rest_Vd = back @ (targets_Td - means @ table_Vd)
    step_Vd, squares_d = rest_Vd.clone(), rest_Vd.square().sum(0)
    for _ in range(STEPS):  # one system per dimension, all at once
        product_Vd = back @ (means @ step_Vd) + RIDGE * step_Vd
        size_d = squares_d / (step_Vd * product_Vd).sum(0).clamp_min(_LEAST)
        table_Vd = table_Vd + size_d * step_Vd
        rest_Vd -= size_d * product_Vd
        before_d, squares_d = squares_d, rest_Vd.square().sum(0)
        step_Vd = rest_Vd + squares_d / before_d.clamp_min(_LEAST) * step_Vd
    return table_Vd


_LEAST = 1e-20


def _means(texts: FitTexts, size: int) -> Tensor:
    """Return the sparse (T, V) matrix that takes a table to the mean of each text."""
    rows_N = np.repeat(np.arange(len(texts.lengths)), texts.lengths)
    weights_N = (1 / texts.lengths).astype(np.float32)[rows_N]
    return torch.sparse_coo_tensor(
        torch.from_numpy(np.stack([rows_N, texts.ids])),
        torch.from_numpy(weights_N),
        (len(texts.lengths), size),
        check_invariants=True,
    ).coalesce()


def write_static(
    folder: str | os.PathLike[str],
    source: Checkpoint,
    table_Vd: np.ndarray,
    *,
    tokens: np.ndarray | None,
    bits: Literal["int8"] | None,
) -> None:
    """Write a twin to a new folder that this package, sentence-transformers and model2vec open.

    Args:
        tokens: ids of the source's tokens that the rows belong to; None is all.
        bits: store the table in 8 bits, with a scale per token.

    Raises:
        OutputError: the folder exists, or the disk is full.
    """
    table = torch.from_numpy(table_Vd)
    parts: list[tuple[str, Tensor]] = [(TABLES, table)]
    if bits is not None:
        parts = list(zip((TABLES, FACTORS), quantise_rows(table), strict=True))

    def files(_: str) -> Mapping[str, bytes]:
        names = ("StaticEmbedding", "."), ("Normalize", "1_Normalize")
        modules = [
            {"idx": n, "name": str(n), "path": path, "type": f"sentence_transformers.models.{kind}"}
            for n, (kind, path) in enumerate(names)
        ]
        config = {
            "model_type": "model2vec",
            "architectures": ["StaticModel"],
            "hidden_dim": table_Vd.shape[1],
            "normalize": True,
        }
        kept = {
            path.name: path.read_bytes()
            for name in ("LICEN*", "NOTICE*")
            for path in source.folder.glob(name)
        }
        return (
            kept
            | tokenizer_files(source, Reduction(tokens=tokens))
            | {
                "config.json": json_bytes(config),
                MODULES: json_bytes(modules),
                SETTINGS: json_bytes({"prompts": {}, "similarity_fn_name": "cosine"}),
            }
        )

    save_model(folder, parts, files)
