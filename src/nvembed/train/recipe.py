"""The settings of a training stage: ``recipes/*/stage1.toml`` and ``stage2.toml`` as a validated record."""

from typing import Literal, Self

from pydantic import Field, NonNegativeFloat, NonNegativeInt, PositiveFloat, PositiveInt, model_validator

from nvembed.model.config import PoolingKind
from nvembed.recipe import Recipe

Output = Literal["float32", "int8", "binary"]


class ModelSection(Recipe):
    """``[model]``: the model that is trained. Training compares it with the checkpoint."""

    base: str
    """The language model: a hub id. For the record and for ``recipes/reproduce.sh``."""
    bidirectional: bool
    """Attention without the causal mask (paper: section 3.1); false for the paper's ablation."""
    num_layers: PositiveInt | None = None
    """How many of the backbone's first layers are used. Default: all."""
    pooling: PoolingKind
    """How token states become one vector: latent (paper: section 3.2), mean, eos or self."""
    num_latents: PositiveInt | None = None
    """Latent pooling: how many latents. Paper: 512."""
    num_heads: PositiveInt | None = None
    """Latent and self pooling: how many attention heads. Paper: 8."""
    head_dim: PositiveInt | None = None
    """Latent pooling: the size of each head. Released: 4,096."""
    max_tokens: int = Field(ge=3)
    """Most tokens of a text, prompt, BOS and EOS included; longer texts are cut. Paper: 512."""
    own_prompts: bool = False
    """Train with the query and document prompts that the model's folder has, instead of the instructions of
    the tasks. Default: false."""
    query_prompt: str | None = None
    """With ``own_prompts``: the query prompt, if the folder lacks the right one. Default: the folder's."""
    document_prompt: str | None = None
    """With ``own_prompts``: the document prompt. Default: the folder's."""

    @model_validator(mode="after")
    def _pooler_has_sizes(self) -> Self:
        sizes = {"latent": ("num_latents", "num_heads", "head_dim"), "self": ("num_heads",)}
        for key in sizes.get(self.pooling, ()):
            if getattr(self, key) is None:
                raise ValueError(f"{key} with {self.pooling} pooling")
        _check_prompts(self)
        return self


class BatchSection(Recipe):
    """``[batch]``: the texts of one step.

    ``micro_batch_tokens`` and ``graph_tokens`` bound memory. Without dropout they change results by rounding
    alone; with dropout ``micro_batch_tokens`` also decides which values are dropped.
    """

    global_batch: PositiveInt
    """Queries per step, over all processes. Paper: 128 (Table 11)."""
    group: PositiveInt = 1
    """How many examples of one set follow each other. Default: 1: all sets are mixed (paper: section 2.2)."""
    hard_negatives: NonNegativeInt
    """Most hard negatives of a query: the first ones of its record. Paper: 7 (Table 11)."""
    in_batch_negatives: bool
    """Use the passages of other queries as negatives. Paper: true in stage 1, false in stage 2."""
    alone: tuple[str, ...] = ()
    """Tasks without in-batch negatives in any case. Default: none."""
    gather: bool = True
    """Use the passages of all processes as negatives. Default: true; false: only those of the query's own."""
    micro_batch_tokens: PositiveInt
    """Most tokens computed at a time. It bounds memory."""
    graph_tokens: NonNegativeInt = 0
    """Tokens whose activations are kept: they are computed once per step, others twice. Default: 0."""


class LossSection(Recipe):
    """``[loss]``: InfoNCE, and the forms of the vectors that are trained.

    The loss of a step is the mean over all ``dims`` and ``outputs``.
    """

    temperature: PositiveFloat
    """Cosines are divided by it. The paper gives no value."""
    info_nce: NonNegativeFloat = 1.0
    """Weight of InfoNCE; 0 leaves it out, for distillation alone. Default: 1."""
    spread_out: NonNegativeFloat = 0.0
    """Weight of the global orthogonal regulariser, which spreads vectors evenly. Default: 0."""
    dims: tuple[PositiveInt, ...] = ()
    """Matryoshka: train the first so many dimensions too, normalised again. Default: only whole vectors."""
    outputs: tuple[Output, ...] = Field(default=("float32",), min_length=1)
    """Train vectors as float32, int8 or binary outputs show them; gradients pass straight through the
    rounding. Default: float32."""


class TeacherModel(Recipe):
    """A model that others learn from."""

    model: str
    """The teacher: an embedding model, as a folder, a hub id, or ``package/folder``."""
    instruct: bool = False
    """Give the teacher the instructions of the texts. Default: false."""
    own_prompts: bool = False
    """Give the teacher the query and document prompts that its folder has. Default: false."""
    query_prompt: str | None = None
    """With ``own_prompts``: the query prompt, if the folder lacks the right one. Default: the folder's."""
    document_prompt: str | None = None
    """With ``own_prompts``: the document prompt. Default: the folder's."""

    @model_validator(mode="after")
    def _one_kind_of_prompt(self) -> Self:
        if self.instruct and self.own_prompts:
            raise ValueError("either instruct or own_prompts, not both")
        _check_prompts(self)
        return self


class TeacherSection(TeacherModel):
    """``[teacher]``: a second term of the loss: the model learns a teacher's neighbours of each text.

    The paper has no teacher. Without the section there is none.
    """

    weight: PositiveFloat
    """Weight of this term; InfoNCE has weight 1."""
    temperature: PositiveFloat
    """The cosines of both models are divided by it in this term."""


class DistilTeacher(TeacherModel):
    """``[distil.teachers.NAME]``: a model whose vectors are learnt."""

    weight: PositiveFloat = 1.0
    """Weight of this teacher. Default: 1."""


class DistilSection(Recipe):
    """``[distil]``: the model learns the vectors of teachers, through a linear projection that is trained.

    The projections are only for training. The paper has no teacher. Without the section there is none.
    """

    cosine: NonNegativeFloat
    """Weight of ``1 - cosine`` of the projected vector and the teacher's."""
    squared: NonNegativeFloat
    """Weight of the squared distance of the projected vector, which is not normalised, and the teacher's."""
    joined: bool = False
    """One projection into the vectors of all teachers, end to end, not one for each. Default: false."""
    translations: tuple[str, ...] = ()
    """Tasks whose positives are translations of the queries: the teacher's vector of the query is the target
    of both. Default: none."""
    teachers: dict[str, DistilTeacher] = Field(min_length=1)
    """Name -> teacher."""

    @model_validator(mode="after")
    def _weighs_something(self) -> Self:
        if not self.cosine and not self.squared:
            raise ValueError("cosine or squared above 0")
        for name in self.teachers:
            if not name.isidentifier():
                raise ValueError(f"names of letters, digits and _ for teachers, got {name!r}")
        return self


class OptimizerSection(Recipe):
    """``[optimizer]``: AdamW (the paper: "Adam", with weight decay)."""

    steps: PositiveInt
    """Steps of the stage. Paper: 20,000 and 18,000 (Table 11)."""
    learning_rate: PositiveFloat
    """Peak learning rate of the backbone or its adapter. Paper: 2e-5 and 1.5e-5 (Table 11)."""
    pooler_learning_rate: PositiveFloat
    """Peak learning rate of the pooler."""
    warmup_steps: NonNegativeInt
    """Steps over which the rate rises from 0 to its peak. Paper: 50 (Table 11)."""
    schedule: Literal["linear"]
    """How the rate falls to 0 after its peak. Paper: linear (appendix C)."""
    weight_decay: NonNegativeFloat
    """Decay of matrices; norms and biases have none. Paper: 0.03 (Table 11)."""
    betas: tuple[float, float]
    """Decay rates of the two moments, from 0 and below 1."""
    epsilon: PositiveFloat
    """Added to the denominator of an update."""
    max_grad_norm: PositiveFloat
    """Gradients with a larger norm are scaled down to it."""
    master_weights: bool = True
    """Keep a float32 copy of weights that are trained in bfloat16, for 4 more bytes per weight: otherwise
    small updates are lost in rounding. Default: true."""
    offload: bool = False
    """Keep these copies and the moments in the host's memory, which saves 12 bytes per weight on the GPU.
    Default: false."""

    @model_validator(mode="after")
    def _orderly(self) -> Self:
        if not all(0 <= beta < 1 for beta in self.betas):
            raise ValueError("betas from 0 up to, but not including, 1")
        if self.warmup_steps >= self.steps:
            raise ValueError("fewer warmup_steps than steps")
        if self.offload and not self.master_weights:
            raise ValueError("master_weights = true with offload, which keeps them in the host's memory")
        return self


class AdapterSection(Recipe):
    """``[adapter]``: which part of the backbone is trained. The pooler is always trained."""

    kind: Literal["lora", "full", "none"]
    """lora: adapters (paper: appendix C). full: every weight. none: the pooler alone."""
    rank: PositiveInt = 16
    """Rank of the adapters. Default: 16 (paper: Table 11)."""
    alpha: PositiveInt = 32
    """Scale of the adapters; their product is multiplied by alpha / rank. Default: 32 (paper: Table 11)."""
    dropout: float = Field(default=0.0, ge=0, lt=1)
    """Share of the adapters' inputs that is dropped: 0 to below 1. Default: 0. Paper: 0.1 (Table 11)."""
    targets: tuple[str, ...] = Field(
        default=("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"), min_length=1
    )
    """Names of the linear layers that get adapters. Default: all of them; the paper names none."""
    frozen_layers: NonNegativeInt = 0
    """How many of the first layers are not trained; they run once per step, without gradient. Default: 0."""


class RunSection(Recipe):
    """``[run]``: how the stage runs."""

    dtype: Literal["float32", "bfloat16"]
    """Number format of the model. Paper: bfloat16 (appendix C)."""
    activation_checkpointing: bool = False
    """Keep only the inputs of layers for the backward pass and compute the layers again: less memory, more
    time. Default: false."""
    compile: bool = False
    """Compile the layers of the backbone (torch.compile): a minute at the start, then faster steps.
    Default: false."""
    seed: int = Field(ge=0, lt=2**63)
    """Decides the order of examples, the first values of adapters, and dropout."""
    log_every: PositiveInt = 1
    """Without a terminal, print a line every so many steps. Default: 1."""
    evaluate_every: PositiveInt
    """Score the development tasks every so many steps, and after the last one."""
    save_every: PositiveInt
    """Save a state every so many steps, after an improvement, and after the last step."""


def _check_prompts(section: ModelSection | TeacherModel) -> None:
    if not section.own_prompts and (section.query_prompt is not None or section.document_prompt is not None):
        raise ValueError("own_prompts = true with query_prompt or document_prompt")


def own_prompts(section: ModelSection | TeacherModel, folder: tuple[str, str]) -> tuple[str, str]:
    """Return the query and the document prompt of a section, from those of the model's folder."""
    query, document = section.query_prompt, section.document_prompt
    return folder[0] if query is None else query, folder[1] if document is None else document


class StageRecipe(Recipe):
    """One training stage."""

    stage: Literal[1, 2]
    """Which sets of the blend are used: those whose ``stages`` name it."""
    blend: str
    """The file with the training sets, in the recipe's folder."""
    model: ModelSection
    batch: BatchSection
    loss: LossSection
    teacher: TeacherSection | None = None
    distil: DistilSection | None = None
    optimizer: OptimizerSection
    adapter: AdapterSection
    run: RunSection

    @model_validator(mode="after")
    def _has_a_loss(self) -> Self:
        if not self.loss.info_nce and self.teacher is None and self.distil is None:
            raise ValueError("loss.info_nce above 0, or a section [distil] or [teacher]")
        if self.model.own_prompts and any(teacher.instruct for teacher in self.teachers.values()):
            raise ValueError("instruct = false with model.own_prompts, which leaves no instructions")
        return self

    @property
    def teachers(self) -> dict[str, TeacherModel]:
        """Every teacher; that of ``[teacher]`` has the name ``""``."""
        teachers: dict[str, TeacherModel] = {} if self.teacher is None else {"": self.teacher}
        return teachers if self.distil is None else {**teachers, **self.distil.teachers}
