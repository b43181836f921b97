"""One step's batch on its way into the model: distinct texts, each rank's share, packed micro-batches.

Shapes: Q queries, C passages, U distinct texts, D hidden size.
"""

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from nvembed.data.collate import ExampleBatch
from nvembed.model.nv_embed import PackedBatch
from nvembed.text.pack import batches
from nvembed.text.tokenize import TextTokenizer, Tokens


@dataclass(frozen=True)
class StepBatch:
    """The whole step, the same on every rank, in host memory; each rank embeds the texts of its own share."""

    texts: tuple[tuple[str, str], ...]  # U (prompt, text) pairs, one rank's share after another
    shares: tuple[range, ...]  # the rows of each rank's texts
    distinct: Tensor  # int64: the rows of the U texts without repetitions
    query_rows: Tensor  # (Q,) int64 into the U texts
    passage_rows: Tensor  # (C,) int64
    positive: Tensor  # (Q,) int64 into the C passages
    allowed: Tensor  # (Q, C) bool


@dataclass
class MicroBatch:
    """Some texts of a share, packed. ``states`` are the outputs of the frozen layers, once computed."""

    packed: PackedBatch
    rows: Tensor  # int64, which of the share's texts
    states: Tensor | None = None

    @property
    def num_tokens(self) -> int:
        return len(self.packed.input_ids)


def step_batch(batch: ExampleBatch, *, ranks: int, gather: bool) -> StepBatch:
    """Divide a collated batch among the ranks: whole queries with their passages, as evenly as possible.

    A text that occurs several times in a share (a label, a common negative) is embedded once; its gradient is
    the sum over its uses. Every rank computes the whole plan from the same examples, so that only vectors are
    exchanged. A rank may have no text.
    """
    owner_C = np.searchsorted(batch.positive, np.arange(len(batch.passages)), side="right") - 1
    bounds = [len(batch.queries) * rank // ranks for rank in range(ranks + 1)]
    query_rank = np.searchsorted(bounds, np.arange(len(batch.queries)), side="right") - 1
    texts: list[tuple[str, str]] = []
    shares: list[range] = []
    query_rows: list[int] = []
    passage_rows: list[int] = []
    for rank in range(ranks):
        rows: dict[tuple[str, str], int] = {}
        start = len(texts)
        for own, prompts, values, rows_of_side in (
            (query_rank == rank, batch.query_prompts, batch.queries, query_rows),
            (query_rank[owner_C] == rank, batch.passage_prompts, batch.passages, passage_rows),
        ):
            for index in np.flatnonzero(own):
                pair = prompts[index], values[index]
                rows_of_side.append(rows.setdefault(pair, start + len(rows)))
        texts += rows
        shares.append(range(start, len(texts)))
    first: dict[tuple[str, str], int] = {}
    for row, pair in enumerate(texts):
        first.setdefault(pair, row)
    allowed = batch.allowed
    if not gather:
        allowed = allowed & (query_rank[:, None] == query_rank[owner_C][None, :])
    return StepBatch(
        texts=tuple(texts),
        shares=tuple(shares),
        distinct=torch.tensor(list(first.values())),
        query_rows=torch.tensor(query_rows),
        passage_rows=torch.tensor(passage_rows),
        positive=torch.from_numpy(batch.positive),
        allowed=torch.from_numpy(allowed),
    )


def tokenise(texts: Sequence[tuple[str, str]], tokenizer: TextTokenizer, max_tokens: int) -> list[Tokens]:
    """Tokenise (prompt, text) pairs; a text longer than ``max_tokens`` is cut.

    Raises:
        InputError: a prompt that leaves nothing to pool.
    """
    by_prompt: dict[str, list[int]] = defaultdict(list)
    for row, (prompt, _) in enumerate(texts):
        by_prompt[prompt].append(row)
    tokens_of: dict[int, Tokens] = {}
    for prompt, rows in by_prompt.items():
        tokens = tokenizer([texts[row][1] for row in rows], prompt=prompt, max_length=max_tokens)
        tokens_of |= dict(zip(rows, tokens, strict=True))
    return [tokens_of[row] for row in range(len(texts))]


def micro_batches(tokens: Sequence[Tokens], max_tokens: int, device: torch.device) -> list[MicroBatch]:
    """Pack a share's texts, longest first, into micro-batches of at most ``max_tokens`` tokens."""
    return [
        MicroBatch(
            PackedBatch.of(batch.input_ids, batch.lengths, batch.pool_index, batch.pool_lengths, device),
            torch.from_numpy(batch.rows).to(device),
        )
        for batch in batches(tokens, max_tokens)
    ]
