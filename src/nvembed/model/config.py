"""Sizes and choices that define a model, and those of NV-Embed v2."""

from dataclasses import dataclass, field, replace
from typing import ClassVar, Literal, TypeVar

from nvembed.errors import ConfigError

Architecture = Literal["mistral", "llama", "qwen2", "qwen3", "ministral3"]
PoolingKind = Literal["latent", "mean", "eos", "self", "cls", "max", "mean_sqrt_len", "weighted_mean"]
Activation = Literal["identity", "gelu", "gelu_tanh", "relu", "silu", "tanh"]


@dataclass(frozen=True)
class RopeScaling:
    """Llama 3.1's piecewise scaling of rotary frequencies (config key ``rope_type: llama3``)."""

    factor: float
    low_freq_factor: float
    high_freq_factor: float
    original_max_position: int


@dataclass(frozen=True)
class YarnScaling:
    """YaRN's scaling of rotary frequencies.  Paper: Peng et al. 2023, sections 3.2 to 3.4."""

    factor: float
    original_max_position: int
    beta_fast: float = 32.0
    beta_slow: float = 1.0
    attention_factor: float = 1.0  # of cosines and sines
    truncate: bool = True  # round the corrected dimensions outwards


@dataclass(frozen=True)
class BackboneConfig:
    """The decoder: Mistral, Llama, Qwen2 (biases on q, k, v), Qwen3 (RMS norms on q and k) or Ministral 3."""

    architecture: Architecture
    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_layers: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    max_position: int
    rms_norm_eps: float = 1e-5
    rope_theta: float = 10000.0
    rope_scaling: RopeScaling | YarnScaling | None = None
    causal: bool = field(default=False, repr=False)
    """Keep the causal mask. Not in the repr, so that other models keep their fingerprints."""
    window: int | None = field(default=None, repr=False)
    """Inclusive radius of attention in a Mistral; None is the whole text."""
    temperature_beta: float = field(default=0.0, repr=False)
    """Ministral 3: queries at position p are multiplied by ``1 + beta ln(1 + floor(p / original))``."""

    @property
    def qkv_bias(self) -> bool:
        return self.architecture == "qwen2"

    @property
    def qk_norm(self) -> bool:
        return self.architecture == "qwen3"


@dataclass(frozen=True)
class _GroupedHeads:
    """The sizes of decoders whose heads share keys in groups; ``head_dim`` is a size of its own."""

    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_layers: int
    num_heads: int
    num_kv_heads: int
    head_dim: int


@dataclass(frozen=True)
class GemmaConfig(_GroupedHeads):
    """Gemma 3's text model: norms before and after each block, local and global layers.

    ``windows`` has one entry per layer: the inclusive radius of a local layer, None for a global one.
    """

    max_position: int
    windows: tuple[int | None, ...]
    query_scale: float  # factor of the attention scores
    rms_norm_eps: float = 1e-6
    global_theta: float = 1_000_000.0
    local_theta: float = 10_000.0
    global_factor: float = 1.0  # linear scaling of positions in the global layers
    activation: Activation = "gelu_tanh"
    causal: bool = False

    @property
    def architecture(self) -> str:
        return "gemma3"


@dataclass(frozen=True)
class EmbeddingGemma2Config(_GroupedHeads):
    """EmbeddingGemma 2's text tower; ``num_kv_heads`` and ``head_dim`` are those of its local layers.

    ``windows`` has one entry per layer: the inclusive radius of a local layer, None for a global one.
    """

    global_kv_heads: int
    global_head_dim: int
    gate_size: int  # numbers per token and layer that gate the layer's last block
    max_position: int
    windows: tuple[int | None, ...]
    rms_norm_eps: float = 1e-6
    global_theta: float = 1_000_000.0
    local_theta: float = 10_000.0
    activation: Activation = "gelu_tanh"


@dataclass(frozen=True)
class _HeadsOfHiddenSize:
    """The sizes of encoders whose heads divide the hidden size; each head has its own keys."""

    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_layers: int
    num_heads: int

    @property
    def num_kv_heads(self) -> int:
        return self.num_heads

    @property
    def head_dim(self) -> int:
        return self.hidden_size // self.num_heads


@dataclass(frozen=True)
class BertConfig(_HeadsOfHiddenSize):
    """BERT, XLM-RoBERTa and MPNet: learned positions, norms after each block, biases everywhere."""

    position_rows: int  # rows of the position table
    first_position: int = 0  # row of a text's first token: 0 in BERT, 2 in XLM-RoBERTa and MPNet
    token_types: int = 2  # rows of the token type table; 0 without one (MPNet)
    relative_buckets: int = 0  # MPNet: buckets of relative positions; 0 is no bias
    relative_distance: int = 128
    layer_norm_eps: float = 1e-12
    activation: Activation = "gelu"

    @property
    def max_position(self) -> int:
        return self.position_rows - self.first_position


@dataclass(frozen=True)
class ModernBertConfig(_HeadsOfHiddenSize):
    """ModernBERT: rotary positions, pre-norm, gated MLP, local and global layers.

    ``windows`` has one entry per layer: the inclusive radius of a local layer, None for a global one.
    """

    max_position: int
    windows: tuple[int | None, ...]
    layer_norm_eps: float = 1e-5
    global_theta: float = 160_000.0
    local_theta: float = 10_000.0
    activation: Activation = "gelu"
    norm_bias: bool = False
    attention_bias: bool = False
    mlp_bias: bool = False


@dataclass(frozen=True)
class StaticConfig:
    """A table of token vectors without layers: StaticEmbedding of sentence-transformers, and model2vec."""

    vocab_size: int
    hidden_size: int
    num_layers: int = field(default=0, repr=False)

    intermediate_size: ClassVar[int] = 0
    num_heads: ClassVar[int] = 0
    num_kv_heads: ClassVar[int] = 0
    head_dim: ClassVar[int] = 0
    max_position: ClassVar[int] = 131_072
    """The model has no limit; this one bounds the memory of a text."""


DecoderConfig = BackboneConfig | GemmaConfig
AnyBackbone = DecoderConfig | EmbeddingGemma2Config | BertConfig | ModernBertConfig | StaticConfig
_Config = TypeVar("_Config", bound=AnyBackbone)


def with_layers(config: _Config, count: int) -> _Config:
    """Return the config of a backbone's first ``count`` layers."""
    if isinstance(config, BackboneConfig | BertConfig | StaticConfig):
        return replace(config, num_layers=count)
    return replace(config, num_layers=count, windows=config.windows[:count])


def in_direction(config: DecoderConfig, *, causal: bool) -> DecoderConfig:
    """Return a decoder's config with or without the causal mask.

    Gemma's window is ``w`` tokens in both cases: the token itself and those before it, or ``w / 2`` on both
    sides, as in transformers.
    """
    if isinstance(config, BackboneConfig) or config.causal == causal:
        return replace(config, causal=causal)
    widths = [
        None if radius is None else radius + 1 if config.causal else 2 * radius for radius in config.windows
    ]
    windows = [None if width is None else width - 1 if causal else width // 2 for width in widths]
    return replace(config, causal=causal, windows=tuple(windows))


@dataclass(frozen=True)
class DenseConfig:
    """A linear layer after pooling."""

    in_size: int
    out_size: int
    bias: bool
    activation: Activation


@dataclass(frozen=True)
class PoolerConfig:
    """Latent attention's sizes. ``head_dim`` is per head: NV-Embed v2's inner width is 8 x 4096."""

    num_latents: int = 512
    num_heads: int = 8
    head_dim: int = 4096
    ffn_mult: int = 4


@dataclass(frozen=True)
class ModelConfig:
    """A whole model. ``pooler`` matters for ``pooling`` ``latent`` and ``self`` (number of heads) only."""

    backbone: AnyBackbone
    pooler: PoolerConfig
    pooling: PoolingKind = "latent"
    dense: tuple[DenseConfig, ...] = field(default=(), repr=False)
    """Layers after pooling: the Dense modules of sentence-transformers."""

    @property
    def decoder(self) -> DecoderConfig:
        """The backbone as a decoder of the families that NV-Embed's layout can store: Llama and Gemma 3.

        Raises:
            ConfigError: the backbone is of another family.
        """
        if isinstance(self.backbone, DecoderConfig):
            return self.backbone
        kind = type(self.backbone).__name__.removesuffix("Config")
        raise ConfigError(
            f"the backbone is a {kind}; expected a decoder (Mistral, Llama, Qwen2, Qwen3, Gemma 3)"
        )

    @property
    def dim(self) -> int:
        """Length of a vector."""
        return self.dense[-1].out_size if self.dense else self.backbone.hidden_size


NV_EMBED_V2 = ModelConfig(
    backbone=BackboneConfig(
        architecture="mistral",
        vocab_size=32000,
        hidden_size=4096,
        intermediate_size=14336,
        num_layers=32,
        num_heads=32,
        num_kv_heads=8,
        head_dim=128,
        max_position=32768,
    ),
    pooler=PoolerConfig(),
)
