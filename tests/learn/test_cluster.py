"""Clusters, their names and the map: against oracles, and the same for the same seed."""

import json
from collections.abc import Iterator
from math import log
from pathlib import Path

import numpy as np
import pytest
from sources import from_vectors

from conftest import unit_rows
from nvembed.errors import DataError, InputError, OutputError
from nvembed.evaluate.scores import v_measure
from nvembed.learn import cluster
from nvembed.learn.cluster_report import ClusterOptions, cluster_corpus, markdown, snippet
from nvembed.learn.map import project
from nvembed.learn.picture import cluster_colors
from nvembed.learn.source import BLOCK, EmbeddedSource, sample
from nvembed.learn.topics import class_tf_idf, name_of, name_terms
from nvembed.read.beir import Passage
from nvembed.vectors.store import VectorSettings

SETTINGS = VectorSettings("f" * 32, "Instruct: sort\nQuery: ", 512, "float32")
WORDS = [
    ["judo", "throw", "mat"],
    ["radio", "wave", "signal"],
    ["bread", "yeast", "oven"],
    ["star", "orbit", "moon"],
]


def grouped(
    sizes: list[int], dim: int = 32, spread: float = 0.5, seed: int = 0
) -> tuple[np.ndarray, np.ndarray]:
    """Unit rows around one direction per group, in random order, and their groups."""
    rng = np.random.default_rng(seed)
    labels = rng.permutation(np.repeat(np.arange(len(sizes)), sizes))
    rows = unit_rows(len(sizes), dim, seed)[labels] + spread / dim**0.5 * rng.standard_normal(
        (len(labels), dim)
    )
    return (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32), labels


def corpus(sizes: list[int], dim: int = 32) -> tuple[EmbeddedSource, np.ndarray, list[Passage]]:
    vectors, labels = grouped(sizes, dim)
    rng = np.random.default_rng(1)
    texts = [" ".join(["the", *rng.choice(WORDS[label], 4)]) for label in labels]
    passages = [Passage(f"p{i}", text) for i, text in enumerate(texts)]
    return from_vectors(lambda: passages, vectors, SETTINGS), labels, passages


def test_class_tf_idf_is_the_double_loop() -> None:
    counts = np.random.default_rng(0).integers(0, 4, (5, 30))
    counts[:, 7] = 0  # a term that stands nowhere
    counts[3] = 0  # a cluster without a term
    expected = np.zeros(counts.shape)
    mean = sum(int(c) for row in counts for c in row) / len(counts)
    for c, row in enumerate(counts):
        for t, count in enumerate(row):
            if count:
                frequency = sum(int(other[t]) for other in counts)
                expected[c, t] = count / sum(map(int, row)) * log(1 + mean / frequency)
    np.testing.assert_allclose(class_tf_idf(counts).toarray(), expected, atol=1e-12)


def test_names() -> None:
    texts = ["Visual Studio crashes", "visual studio and C++", "the 39 cats", "cats and c#"]
    terms = name_terms(texts, np.array([0, 0, 1, 1]), 2)
    assert name_of(terms[0], 0).startswith("visual studio, ")
    assert {"c++", "crashes"} <= {term.text for term in terms[0]}
    assert terms[1][0].text == "cats"
    assert not {"39", "the", "and"} & {term.text for term in terms[1]}
    weights = [term.weight for term in name_terms(["a1 a1 b1 c1", "d1"], np.array([0, 1]), 2)[0]]
    assert weights == sorted(weights, reverse=True)
    assert name_terms(["the", "a of"], np.array([0, 1]), 2) == [[], []]
    assert name_of([], 1) == "cluster 1"
    assert {t.text for t in name_terms(["the und", "x1"], np.array([0, 1]), 2, stop_words=None)[0]} >= {
        "the und"
    }
    noisy = name_terms(["alpha beta", "gamma delta"], np.array([0, -1]), 1)
    assert {word for term in noisy[0] for word in term.text.split()} == {"alpha", "beta"}


def test_kmeans_finds_groups_and_their_number() -> None:
    vectors, gold = grouped([50, 40, 30, 20])
    found = cluster.kmeans(vectors)
    assert v_measure(gold, found.labels) == 1
    assert np.bincount(found.labels).tolist() == [50, 40, 30, 20], "the largest comes first"
    assert max(found.silhouettes, key=lambda k: found.silhouettes[k]) == 4
    again = cluster.kmeans(vectors)
    np.testing.assert_array_equal(again.labels, found.labels)
    for number, center in enumerate(found.centers):
        np.testing.assert_allclose(center, vectors[found.labels == number].mean(axis=0), atol=1e-6)
    np.testing.assert_array_equal(cluster.assign(found, vectors, vectors), found.labels)
    assert cluster.kmeans(vectors, k=3).silhouettes == {}


def test_mini_batches_above_a_size(monkeypatch: pytest.MonkeyPatch) -> None:
    vectors, gold = grouped([50, 40, 30, 20])
    monkeypatch.setattr(cluster, "WHOLE_ROWS", 100)
    found = cluster.kmeans(vectors, k=4)
    assert "mini-batches" in found.how
    assert v_measure(gold, found.labels) > 0.95


def test_silhouette_is_scikit_learns() -> None:
    from sklearn.metrics import silhouette_score

    vectors, _ = grouped([30, 30, 30], spread=3)
    scores = cluster.choose_k(vectors, seed=0)
    labels = cluster.kmeans(vectors, k=3).labels
    assert scores[3] == pytest.approx(silhouette_score(vectors, labels), abs=0.02)
    assert all(k <= len(vectors) // 4 for k in scores)


def test_hdbscan_and_its_noise() -> None:
    vectors, gold = grouped([60, 50, 40])
    found = cluster.hdbscan(vectors)
    inside = found.labels >= 0
    assert inside.mean() > 0.9
    assert v_measure(gold[inside], found.labels[inside]) > 0.95
    np.testing.assert_array_equal(cluster.hdbscan(vectors).labels, found.labels)
    np.testing.assert_array_equal(cluster.assign(found, vectors, vectors), found.labels)
    assert cluster.assign(found, vectors, vectors[:0]).shape == (0,)


def test_project_keeps_neighbours() -> None:
    vectors, gold = grouped([60, 50, 40], dim=80)
    places = project(vectors)
    assert places.shape == (150, 2)
    np.testing.assert_array_equal(project(vectors), places)
    distances = np.linalg.norm(places[:, None] - places[None], axis=-1)
    nearest = distances.argsort(axis=1)[:, 1:6]
    assert (gold[nearest] == gold[:, None]).mean() > 0.95


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda v: cluster.kmeans(v, k=1), "k is 1; expected 2 to 20, the number of distinct vectors"),
        (lambda v: cluster.kmeans(v, k=21), "k is 21; expected 2 to 20"),
        (
            lambda v: cluster.kmeans(np.repeat(v[:2], 9, axis=0)),
            "at least 3 distinct texts to cluster, got 2",
        ),
        (lambda v: cluster.hdbscan(v[:9]), "9 texts; HDBSCAN expects at least 10: use --k instead"),
        (lambda v: cluster.hdbscan(v, min_size=11), "--min-size is 11; expected 2 to 10, half of the texts"),
        (lambda v: project(v[:9]), "9 texts; a map needs at least 10"),
    ],
)
def test_errors(call: object, message: str) -> None:
    with pytest.raises(InputError) as caught:
        call(unit_rows(20, 8))  # type: ignore[operator]
    assert message in str(caught.value)


def test_cluster_corpus(tmp_path: Path) -> None:
    source, gold, passages = corpus([50, 40, 30, 20])
    out = tmp_path / "topics"
    result = cluster_corpus(source, out, "set", ClusterOptions(format="parquet"))
    assert sorted(p.name for p in tmp_path.rglob("*")) == [
        "assignments.parquet", "clusters.json", "map.json", "map.png", "report.md", "topics",
    ]  # fmt: skip
    assert [item.size for item in result.clusters] == [50, 40, 30, 20]
    for item, words in zip(result.clusters, WORDS, strict=True):
        assert set(item.name.split(", ")[0].split()) <= set(words), "a cluster is named by its own words"
        assert len(item.representatives) == 3
        assert len({passage.text for _, passage in item.representatives}) == 3
    import pyarrow.parquet as pq

    table = pq.read_table(out / "assignments.parquet")
    assert table["id"].to_pylist() == [passage.id for passage in passages]
    np.testing.assert_array_equal(table["cluster"].to_numpy(), gold)
    points = json.loads((out / "map.json").read_text())
    assert [point["id"] for point in points["points"]] == [passage.id for passage in passages]
    places = np.array([[point["x"], point["y"]] for point in points["points"]])
    assert places.min() == 0
    assert places.max() == 1
    assert points["points"][0]["snippet"] == passages[0].text
    assert [item["size"] for item in points["clusters"]] == [50, 40, 30, 20]
    assert [item["color"] for item in points["clusters"]] == cluster_colors(4)
    data = json.loads((out / "clusters.json").read_text())
    best = data["clusters"][0]["representatives"][0]
    assert best["text"] == result.clusters[0].representatives[0][1].text
    assert data["vectors"]["fingerprint"] == "f" * 32
    assert data["options"]["seed"] == 0
    report = (out / "report.md").read_text()
    assert "The map shows every passage." in report
    assert "sample" not in report
    assert "with the prompt" in report
    with pytest.raises(OutputError, match="exists already"):
        cluster_corpus(source, out, "set", ClusterOptions(k=2))


def test_colors_of_clusters_are_distinct_and_visible_on_white_and_on_dark_grey() -> None:
    def luminance(color: str) -> float:
        channels = np.array([int(color[i : i + 2], 16) for i in (1, 3, 5)]) / 255
        linear = np.where(channels <= 0.04045, channels / 12.92, ((channels + 0.055) / 1.055) ** 2.4)
        return float(linear @ [0.2126, 0.7152, 0.0722])

    colors = cluster_colors(40)
    assert len(set(colors)) == 40
    for color in colors:  # WCAG 2.2, 1.4.11: at least 3 to 1
        assert 1.05 / (luminance(color) + 0.05) >= 3
        assert (luminance(color) + 0.05) / (luminance("#1d2327") + 0.05) >= 3


def test_a_sample_stands_for_a_larger_corpus(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source, gold, passages = corpus([1000, 500, 200, 100])
    assert source.rows > BLOCK
    most = 0

    def blocks() -> Iterator[object]:
        nonlocal most
        for block in source.blocks():
            most = max(most, len(block.passages))
            yield block

    watched = EmbeddedSource(source.rows, source.dim, source.settings, blocks)  # type: ignore[arg-type]
    options = ClusterOptions(k=4, sample_rows=300, map_rows=100)
    result = cluster_corpus(watched, tmp_path / "topics", "set", options)
    assert most <= BLOCK
    rows = [json.loads(line) for line in (tmp_path / "topics" / "assignments.jsonl").read_text().splitlines()]
    assert [row["id"] for row in rows] == [passage.id for passage in passages]
    np.testing.assert_array_equal([row["cluster"] for row in rows], gold)
    assert [item.size for item in result.clusters] == [1000, 500, 200, 100]
    report = (tmp_path / "topics" / "report.md").read_text()
    assert "random sample of 300 passages" in report
    assert "the cluster of its nearest centre" in report
    assert "The map shows a random sample of 100 passages." in report
    assert len(json.loads((tmp_path / "topics" / "map.json").read_text())["points"]) == 100


def test_sample_is_uniform_and_in_order() -> None:
    vectors = unit_rows(3000, 4)
    passages = [Passage(str(i), str(i)) for i in range(3000)]
    source = from_vectors(lambda: passages, vectors, SETTINGS)
    drawn = sample(source, 500, seed=1)
    assert [int(passage.id) for passage in drawn.passages] == drawn.positions.tolist()
    np.testing.assert_allclose(drawn.vectors, vectors[drawn.positions], atol=1e-6)
    assert len(set(drawn.positions.tolist())) == 500
    assert abs(drawn.positions.mean() - 1500) < 150
    assert sample(source, 9999, seed=1).positions.tolist() == list(range(3000))


def test_sources_are_checked() -> None:
    vectors = unit_rows(6, 4)
    passages = [Passage(str(i), str(i)) for i in range(6)]
    vectors[4, 2] = np.nan
    with pytest.raises(DataError, match="the vector of row 4 is not finite"):
        sample(from_vectors(lambda: passages, vectors, SETTINGS), 6, seed=0)
    with pytest.raises(DataError, match="has 5 passages; expected 6"):
        sample(from_vectors(lambda: passages[:5], unit_rows(6, 4), SETTINGS), 6, seed=0)


def test_texts_in_markdown() -> None:
    assert markdown("a|b *c* <d> #e") == r"a\|b \*c\* \<d\> \#e"
    assert snippet("a\n b  c") == "a b c"
    assert snippet("word " * 99, 12) == "word word w…"
