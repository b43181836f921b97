"""The settings of a training stage: ``recipes/*/stage1.toml`` and ``stage2.toml`` as a validated record."""

from typing import Literal, Self

from pydantic import Field, NonNegativeFloat, NonNegativeInt, PositiveFloat, PositiveInt, model_validator

from nvembed.model.config import PoolingKind
from nvembed.recipe import Recipe


class ModelSection(Recipe):
    """``[model]``: which model is trained; compared with the checkpoint."""

    base: str
    bidirectional: bool
    """Attention without the causal mask; false for the paper's ablation."""
    num_layers: PositiveInt | None = None
    """How many of the backbone's first layers are used. Default: all."""
    pooling: PoolingKind
    num_latents: PositiveInt
    num_heads: PositiveInt
    head_dim: PositiveInt
    max_tokens: int = Field(ge=3)


class BatchSection(Recipe):
    """``[batch]``: one step's texts.

    ``micro_batch_tokens`` and ``graph_tokens`` bound memory. Without dropout they change results by rounding
    alone; with dropout ``micro_batch_tokens`` also decides which values are dropped.
    """

    global_batch: PositiveInt
    group: PositiveInt = 1
    """How many examples of one set are neighbours in the order; 1 mixes all sets, as the paper does."""
    hard_negatives: NonNegativeInt
    in_batch_negatives: bool
    alone: tuple[str, ...] = ()
    """Tasks without in-batch negatives even where others have them."""
    gather: bool = True
    """Passages of all ranks are negatives; false: only those of a query's own rank."""
    micro_batch_tokens: PositiveInt
    graph_tokens: NonNegativeInt = 0
    """Tokens whose activations are kept from the first pass, and which need no second one."""


class LossSection(Recipe):
    temperature: PositiveFloat


class TeacherSection(Recipe):
    """``[teacher]``: a model whose neighbourhoods among a step's texts are learnt too. The paper has none."""

    model: str
    """As mining's teacher: an embedding model: a folder, a hub id, or ``package/folder``."""
    instruct: bool
    """Give the teacher the texts' instructions."""
    weight: PositiveFloat
    """By which its term of the loss is multiplied; InfoNCE's is 1."""
    temperature: PositiveFloat
    """By which its cosines, and the model's, are divided in that term."""


class OptimizerSection(Recipe):
    """AdamW: the paper's "Adam, weight decay 0.03". The rate rises over ``warmup_steps``, then falls to 0."""

    steps: PositiveInt
    learning_rate: PositiveFloat
    pooler_learning_rate: PositiveFloat
    warmup_steps: NonNegativeInt
    schedule: Literal["linear"]
    weight_decay: NonNegativeFloat
    betas: tuple[float, float]
    epsilon: PositiveFloat
    max_grad_norm: PositiveFloat
    master_weights: bool = True
    """Keep a float32 copy of what is trained in bfloat16: exact small updates for 4 more bytes a weight."""
    offload: bool = False
    """Keep masters and moments in the host's memory and update there: 12 bytes a weight less on the GPU."""

    @model_validator(mode="after")
    def _orderly(self) -> Self:
        if not all(0 <= beta < 1 for beta in self.betas):
            raise ValueError("betas from 0 up to, but not including, 1")
        if self.warmup_steps >= self.steps:
            raise ValueError("fewer warmup_steps than steps")
        if self.offload and not self.master_weights:
            raise ValueError("master_weights where offload is on: they are what lies in the host's memory")
        return self


class AdapterSection(Recipe):
    """``[adapter]``: what of the backbone is trained. The pooler always is."""

    kind: Literal["lora", "full", "none"]
    rank: PositiveInt = 16
    alpha: PositiveInt = 32
    dropout: float = Field(default=0.0, ge=0, lt=1)
    targets: tuple[str, ...] = Field(
        default=("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"), min_length=1
    )
    frozen_layers: NonNegativeInt = 0
    """How many of the first layers are not trained; they run once a step, without gradient."""


class RunSection(Recipe):
    dtype: Literal["float32", "bfloat16"]
    activation_checkpointing: bool = False
    compile: bool = False
    """Compile the backbone's layers (torch.compile): a minute at the start, faster steps after it."""
    seed: int = Field(ge=0, lt=2**63)
    log_every: PositiveInt = 1
    evaluate_every: PositiveInt
    save_every: PositiveInt


class StageRecipe(Recipe):
    """One training stage."""

    stage: Literal[1, 2]
    blend: str
    model: ModelSection
    batch: BatchSection
    loss: LossSection
    teacher: TeacherSection | None = None
    optimizer: OptimizerSection
    adapter: AdapterSection
    run: RunSection
