"""Extracts the change of a backbone by training as an adapter of low rank."""

import re
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from nvembed.errors import WeightsError
from nvembed.weights.adapter import BACKBONE_PREFIX, Adapter
from nvembed.weights.causal_lm import CausalLM
from nvembed.weights.tensors import Checkpoint


@dataclass(frozen=True)
class Extracted:
    pairs: dict[str, tuple[Tensor, Tensor]]  # weight name -> A (r, in), B (out, r): scale 1, float32
    whole: dict[str, Tensor]  # norms and biases that changed
    rank: int
    error: float  # |D - B A| / |D|: Frobenius norms over all matrices, including the embedding

    def peft_config(self) -> dict[str, Any]:
        """Return the ``adapter_config.json`` that peft needs."""
        modules = [name.removesuffix(".weight").split(".") for name in self.pairs]
        return {
            "peft_type": "LORA",
            "task_type": "FEATURE_EXTRACTION",
            "r": self.rank,
            "lora_alpha": self.rank,
            "lora_dropout": 0.0,
            "bias": "none",
            "inference_mode": True,
            "target_modules": sorted({module[-1] for module in modules}),
            "layers_to_transform": sorted({int(module[2]) for module in modules}),
            "layers_pattern": "layers",
        }


def extract(model: Checkpoint, adapter: Adapter, base: CausalLM, rank: int) -> Extracted:
    """Return the best adapter of ``rank`` for the difference between a trained backbone and ``base``.

    For each matrix of a layer, ``B A`` is the truncated singular value decomposition of its change, the
    closest matrix of that rank. Norms and biases are kept whole. The change of the token embedding is lost,
    which ``error`` includes; training with ``frozen_layers`` of 1 or more does not change the embedding.

    Args:
        model, adapter: the checkpoint that was trained, and its changes by training.

    Raises:
        WeightsError: nothing changed, or a change is not finite.
    """
    pairs, whole = {}, {}
    residual = total = 0.0
    for name in (name for name in model.tensors if name.startswith(BACKBONE_PREFIX)):
        trained = adapter.merged(name, model.read(name), torch.float32)
        change = trained - base.read(name.removeprefix(BACKBONE_PREFIX), None).float()
        size = float(change.square().sum(dtype=torch.float64))
        if size != size:
            raise WeightsError(f"{name} has values that are not finite: use an earlier state")
        if change.ndim == 1:
            if size > 0:
                whole[name] = trained
            continue
        total += size
        residual += size
        if size > 0 and re.search(r"\.layers\.\d+\.", name):
            u, s, v = torch.linalg.svd(change, full_matrices=False)
            root = s[:rank].sqrt()
            a, b = root[:, None] * v[:rank], u[:, :rank] * root
            room = rank - len(root)  # above 0 for a matrix with fewer rows than the rank
            pairs[name] = F.pad(a, (0, 0, 0, room)), F.pad(b, (0, room))
            residual -= float((b @ a).square().sum(dtype=torch.float64))
    if total == 0:
        raise WeightsError("the trained backbone equals the base: there is no adapter to write")
    return Extracted(pairs, whole, rank, (max(residual, 0.0) / total) ** 0.5)
