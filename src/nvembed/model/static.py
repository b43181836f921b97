"""Static embeddings: a vector per token, whose mean over a text is the text's.

Shapes: N packed tokens, D hidden size.
"""

from typing import Any

from torch import Tensor, nn

from nvembed.model.attention import Segments
from nvembed.model.config import StaticConfig
from nvembed.model.layers import Backbone, embedding


class StaticTokens(Backbone):
    """A backbone without layers: a token's state is its row of the table."""

    def __init__(self, config: StaticConfig) -> None:
        super().__init__()
        self.config = config
        self.embed_tokens = embedding(config.vocab_size, config.hidden_size)
        self.layers = nn.ModuleList()
        self.norm = nn.Identity()

    def positions(self, x_ND: Tensor, segments: Segments) -> list[Any]:  # noqa: ARG002 (no layer reads them)
        return []
