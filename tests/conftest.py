"""What several tests share: small random models, the parity checkpoint, and where shared data lies."""

import json
import signal
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from nvembed.encoder import Encoder
from nvembed.model.config import BackboneConfig, ModelConfig, PoolerConfig
from nvembed.model.nv_embed import NVEmbed

ROOT = Path(__file__).parent.parent
# A shell's background jobs ignore Ctrl-C, and so would the commands that tests interrupt.
signal.signal(signal.SIGINT, signal.default_int_handler)
TINY_A = ROOT / "tests" / "parity" / "tiny-a"


def beside_checkout(name: str) -> Path:
    """Return ``shared/name`` beside the checkout, or skip saying what is missing."""
    for parent in ROOT.parents:
        if (parent / "shared").is_dir():
            found = parent / "shared" / name
            if found.exists():
                return found
    pytest.skip(f"shared/{name} is not beside the checkout")


def tiny_backbone(architecture: str = "mistral", **sizes: Any) -> BackboneConfig:
    values: dict[str, Any] = {
        "architecture": architecture,
        "vocab_size": 32000,
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_layers": 2,
        "num_heads": 4,
        "num_kv_heads": 2,
        "head_dim": 8,
        "max_position": 512,
    }
    return BackboneConfig(**{**values, **sizes})


TINY_POOLER = PoolerConfig(num_latents=6, num_heads=2, head_dim=16)


def tiny_model(pooling: str = "latent", seed: int = 0, **sizes: Any) -> NVEmbed:
    """A random model whose every weight matters: norms and biases are random too."""
    torch.manual_seed(seed)
    model = NVEmbed(ModelConfig(tiny_backbone(**sizes), TINY_POOLER, pooling))  # type: ignore[arg-type]
    with torch.no_grad():
        for weight in model.parameters():
            if weight.ndim == 1:
                weight.normal_(1.0, 0.3)
    return model


@pytest.fixture(scope="session")
def tiny_encoder() -> Encoder:
    return Encoder.from_pretrained(TINY_A, device="cpu", dtype="float32")


@pytest.fixture(scope="session")
def texts() -> list[str]:
    """Every distinct text of the parity cases: control characters, emoji, markers, long words, long texts."""
    cases = json.loads((TINY_A / "cases.json").read_text())
    return list(dict.fromkeys(text for case in cases[:9] for text in case["texts"]))


def unit_rows(rows: int, dim: int, seed: int = 0) -> np.ndarray:
    vectors = np.random.default_rng(seed).standard_normal((rows, dim)).astype(np.float32)
    return np.asarray(vectors / np.linalg.norm(vectors, axis=1, keepdims=True))
