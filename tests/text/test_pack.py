import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from nvembed.text.pack import batches, pack
from nvembed.text.tokenize import Tokens

token_lists = st.lists(
    st.tuples(st.integers(1, 40), st.integers(0, 39)).filter(lambda pair: pair[1] < pair[0]), max_size=30
)


def tokens_of(shapes: list[tuple[int, int]]) -> list[Tokens]:
    """Texts whose ids tell where they came from: text number * 1000 + position."""
    return [
        Tokens(np.arange(length, dtype=np.int32) + 1000 * row, start, length)
        for row, (length, start) in enumerate(shapes)
    ]


def test_pack_lays_texts_end_to_end() -> None:
    batch = pack(tokens_of([(3, 1), (2, 0), (4, 3)]), [2, 0])
    assert batch.input_ids.tolist() == [2000, 2001, 2002, 2003, 0, 1, 2]
    assert batch.input_ids.dtype == np.int64
    assert batch.lengths == (4, 3)
    assert batch.pool_index.tolist() == [3, 5, 6]
    assert batch.pool_lengths == (1, 2)
    assert batch.rows.tolist() == [2, 0]


@given(token_lists, st.integers(1, 100))
def test_batches_hold_every_text_once_within_the_budget(shapes: list[tuple[int, int]], budget: int) -> None:
    tokens = tokens_of(shapes)
    work = batches(tokens, budget)
    assert sorted(row for batch in work for row in batch.rows) == list(range(len(tokens)))
    lengths = [length for batch in work for length in batch.lengths]
    assert lengths == sorted(lengths, reverse=True)
    for batch in work:
        assert sum(batch.lengths) == len(batch.input_ids)
        assert len(batch.input_ids) <= budget or len(batch.rows) == 1
        pooled = np.split(batch.input_ids[batch.pool_index], np.cumsum(batch.pool_lengths)[:-1])
        for row, ids in zip(batch.rows, pooled, strict=True):
            np.testing.assert_array_equal(ids, tokens[row].input_ids[tokens[row].pool_start :])
