"""A search in several indexes: the same as in one with all documents, where scores can be compared."""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from embedded_folder import DOCUMENTS, embed, write_embedded

from nvembed.embed.embedded import open_embedded
from nvembed.errors import InputError
from nvembed.search.index import PassageIndex, build
from nvembed.search.retrieve import Hit, fused
from nvembed.search.several import search_several

NAMES = list(DOCUMENTS)
QUERIES = ("judo throws", "a cat sleeps on the sofa", "il gatto dorme", "pictures of bones all day")


def made(folder: Path, names: list[str], **more: Any) -> PassageIndex:
    source = open_embedded(write_embedded(folder, {name: DOCUMENTS[name] for name in names}, **more))
    return build(source, folder / "index")


@pytest.fixture(scope="module")
def indexes(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, PassageIndex]]:
    folder = tmp_path_factory.mktemp("several")
    opened = {
        "all": made(folder / "all", NAMES),
        "a": made(folder / "a", NAMES[::2]),
        "b": made(folder / "b", NAMES[1::2]),
        "other": made(folder / "other", NAMES[1::2], fingerprint="f" * 32, dim=32),
    }
    yield opened
    for index in opened.values():
        index.close()


def search(indexes: Mapping[str, PassageIndex], names: str, query: str, **more: Any) -> list[Hit]:
    vectors = {name: embed([query], indexes[name].record.dim)[0] for name in names.split()}
    if more.get("mode") == "text":
        vectors = dict.fromkeys(vectors)  # type: ignore[arg-type]
    return search_several(indexes, query, vectors, **more).hits


@pytest.mark.parametrize("query", QUERIES)
def test_cosines_of_one_model_are_one_list(indexes: dict[str, PassageIndex], query: str) -> None:
    whole = search(indexes, "all", query, mode="vector", top=10)
    merged = search(indexes, "a b", query, mode="vector", top=10)
    scores = {hit.id: hit.score for hit in whole}  # up to rounding, which depends on the rows beside it
    assert {hit.id: hit.score for hit in merged} == pytest.approx(scores, abs=1e-5)
    assert [hit.score for hit in merged] == sorted((hit.score for hit in merged), reverse=True)
    assert [hit.ranks for hit in merged] == [{"vector": rank} for rank in range(1, len(whole) + 1)]
    assert {hit.index for hit in whole} == {"all"}
    assert all(hit.document in [NAMES[::2], NAMES[1::2]]["ab".index(hit.index)] for hit in merged)
    hybrid = search(indexes, "a b", query, top=10)
    by_vector = {hit.id: hit.ranks["vector"] for hit in merged}
    assert {hit.id: hit.ranks.get("vector") for hit in hybrid} == by_vector
    assert all(hit.score == fused(hit.ranks.values()) for hit in hybrid)
    assert [hit.score for hit in hybrid] == sorted((hit.score for hit in hybrid), reverse=True)


@pytest.mark.parametrize(("names", "mode"), [("a other", "vector"), ("a b", "text"), ("a other", "hybrid")])
def test_what_cannot_be_compared_is_fused_by_rank(
    indexes: dict[str, PassageIndex], names: str, mode: str
) -> None:
    merged = search(indexes, names, "all day a cat", mode=mode, top=20)
    for name in names.split():
        alone = search(indexes, name, "all day a cat", mode=mode, top=20)
        mine = [hit for hit in merged if hit.index == name]
        assert {hit.id: hit.ranks for hit in mine} == {hit.id: hit.ranks for hit in alone}
        assert [hit.score for hit in mine] == [fused(hit.ranks.values()) for hit in mine]
    assert [hit.score for hit in merged] == sorted((hit.score for hit in merged), reverse=True)


def test_another_prompt_is_another_space(indexes: dict[str, PassageIndex]) -> None:
    vectors: dict[str, np.ndarray | None] = {"a": embed(["cat"])[0], "b": embed(["a cat"])[0]}
    hits = search_several(indexes, "cat", vectors, mode="vector", top=10).hits
    assert [hit.score for hit in hits[:2]] == [fused([1]), fused([1])]


def test_one_index_is_searched_as_ever(indexes: dict[str, PassageIndex]) -> None:
    for mode in ("hybrid", "vector", "text"):
        vector = None if mode == "text" else embed(["a cat"])[0]
        plain = indexes["all"].search("a cat", vector, mode=mode, top=3).hits
        hits = search(indexes, "all", "a cat", mode=mode, top=3)
        assert [(hit.id, hit.score, hit.ranks) for hit in hits] == [
            (hit.id, hit.score, hit.ranks) for hit in plain
        ]


def test_a_filter_that_an_index_cannot_apply(indexes: dict[str, PassageIndex]) -> None:
    assert {hit.index for hit in search(indexes, "a b", "a", where=["year >= 2000"])} == {"a", "b"}
    with pytest.raises(InputError, match="index 'a': no field 'page'"):
        search(indexes, "b a", "a", where=["page = 3"])


def test_words_that_match_anywhere(indexes: dict[str, PassageIndex]) -> None:
    vectors: dict[str, np.ndarray | None] = {"a": None, "b": None}
    assert search_several(indexes, "gatto", vectors, mode="text").words_matched is True
    assert search_several(indexes, "zebra", vectors, mode="text").words_matched is False
