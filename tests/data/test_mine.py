"""Mining: every method against a slow oracle, what must never happen, and runs that stop and go on."""

import json
import shutil
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nvembed.data.example import Example, open_examples
from nvembed.data.mine import CHUNK, Corpus, mine_set
from nvembed.data.rule import Candidates, Method, Rule, check_rule, fill, keep, limit, sample
from nvembed.data.teacher import VectorBlocks, bm25_teacher, dense_teacher
from nvembed.errors import DataError, InputError, NumericsError, OutputError
from nvembed.text.bm25 import Bm25
from nvembed.vectors.store import VectorSettings

METHODS: list[tuple[Method, float]] = [
    ("naive", 0.0),
    ("shifted", 2.0),
    ("absolute", 0.3),
    ("margin", 0.1),
    ("percentage", 0.95),
]


def oracle(scores: list[float], known: list[int], rule: Rule) -> list[int]:
    """Sort every passage, and go down the list as the paper says it in words."""
    ranking = sorted(range(len(scores)), key=lambda i: (-scores[i], i))[: rule.depth]
    positive = min(scores[i] for i in known)
    found = []
    rank = 0
    for number in ranking:
        if number in known:
            continue
        rank += 1
        score = scores[number]
        t = rule.threshold
        below = (
            positive * t if positive >= 0 else positive * (2 - t)
        )  # five per cent below, on either side of 0
        wanted = {
            "naive": True,
            "shifted": rank > t,
            "absolute": score < t,
            "margin": score < positive - t,
            "percentage": score < below,
        }[rule.method]
        if wanted:
            found.append(number)
    return found[: rule.negatives]


@settings(max_examples=150, deadline=None)
@given(
    method=st.sampled_from(METHODS),
    data=st.data(),
    size=st.integers(2, 30),
    depth=st.integers(7, 30),
)
def test_methods_against_the_oracle(
    method: tuple[Method, float], data: st.DataObject, size: int, depth: int
) -> None:
    # Sixty-fourths: exact in float32, with many ties, and never on a threshold by rounding alone.
    scores = [n / 64 for n in data.draw(st.lists(st.integers(-64, 64), min_size=size, max_size=size))]
    known = data.draw(st.lists(st.integers(0, size - 1), min_size=1, max_size=3, unique=True))
    rule = Rule(method=method[0], threshold=method[1], negatives=5, depth=depth)
    order = sorted(range(size), key=lambda i: (-scores[i], i))[:depth]
    candidates = Candidates(
        np.array([[scores[i] for i in order]], dtype=np.float32),
        np.array([order]),
        np.array([min(scores[i] for i in known)], dtype=np.float32),
    )
    kept = keep(candidates, rule, [set(known)])
    places = sample(kept[0], rule, np.random.default_rng(0), count=5)
    assert [order[place] for place in places] == oracle(scores, known, rule)


def test_percentage_stays_below_a_negative_positive() -> None:
    positive = np.array([0.8, 0.0, -0.4], dtype=np.float32)
    assert limit("percentage", 0.95, positive) == pytest.approx([0.76, 0.0, -0.42])
    assert limit("percentage", 1.0, positive) == pytest.approx(positive)


@settings(max_examples=60, deadline=None)
@given(
    kept=st.lists(st.booleans(), max_size=30),
    negatives=st.integers(1, 6),
    pool=st.integers(6, 12),
    seed=st.integers(0, 99),
)
def test_samplings(kept: list[bool], negatives: int, pool: int, seed: int) -> None:
    places = [i for i, yes in enumerate(kept) if yes]
    for how in ("top", "random", "top1_random"):
        rule = Rule(
            method="naive", negatives=negatives, depth=30, sampling=how, pool=0 if how == "top" else pool
        )
        found = sample(
            np.array(kept, dtype=bool), rule, np.random.default_rng(seed), count=negatives
        ).tolist()
        assert found == sorted(set(found))
        assert len(found) == min(negatives, len(places))
        assert set(found) <= set(places if how == "top" else places[:pool])
        if how != "random":
            assert found[:1] == places[:1]
        if how == "top":
            assert found == places[:negatives]


def test_random_sampling_reaches_the_whole_pool_and_nothing_else() -> None:
    rule = Rule(method="naive", negatives=2, depth=30, sampling="top1_random", pool=4)
    kept = np.ones(10, dtype=bool)
    seen = {
        place
        for seed in range(50)
        for place in sample(kept, rule, np.random.default_rng(seed), count=2).tolist()
    }
    assert seen == {0, 1, 2, 3}


def test_fill_ends_when_there_is_nothing_left() -> None:
    rng = np.random.default_rng(0)
    assert sorted(fill([3], 7, {0, 1}, 6, rng)) == [2, 4, 5]
    assert fill([], 3, {0, 1}, 2, rng) == []


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"method": "percentage", "threshold": 95.0}, "threshold of percentage: expected 0 to 1, got 95"),
        ({"method": "naive", "threshold": 1.0}, "threshold of naive: expected 0 to 0, got 1"),
        ({"method": "shifted", "threshold": 2.5}, "expected a whole number of ranks, got 2.5"),
        ({"method": "shifted", "threshold": 99.0}, "threshold of shifted: expected 1 to 49, got 99"),
        ({"method": "margin", "threshold": -1.0}, "threshold of margin: expected 0 to inf, got -1"),
        ({"negatives": 51}, "depth is 50: expected at least 51"),
        ({"pool": 10}, "pool is 10: expected 0, or with random sampling at least the 7 negatives"),
    ],
)
def test_rules_that_cannot_work(change: dict[str, object], said: str) -> None:
    rule = Rule(method="naive", negatives=7, depth=50).model_copy(update=change)
    with pytest.raises(InputError) as caught:
        check_rule(rule)
    assert said in str(caught.value)


# --- whole sets ---------------------------------------------------------------------------------------------

WORDS = [a + b for a in ("ant", "bee", "cat", "dog", "elk") for b in ("", "let", "hood", "kin")]


def make_set(num_queries: int, seed: int = 0) -> tuple[list[Example], list[str]]:
    """Queries with one to three positives; some of them are passages themselves."""
    rng = np.random.default_rng(seed)
    passages = list(dict.fromkeys(" ".join(rng.choice(WORDS, 4)) for _ in range(60)))
    examples = []
    for n in range(num_queries):
        chosen = rng.choice(len(passages), int(rng.integers(1, 4)), replace=False)
        query = " ".join(rng.choice(WORDS, 3)) if n % 5 else passages[int(rng.integers(60)) % len(passages)]
        examples.append(Example(query, tuple(passages[i] for i in chosen), "NQ"))
    return examples, passages


def bag_of_words(texts: Sequence[str], prompt: str) -> np.ndarray:
    """A teacher in three lines: unit vectors of word counts."""
    counts = np.array(
        [[(prompt + text).lower().split().count(word) for word in WORDS] for text in texts], np.float32
    )
    return counts / np.maximum(np.linalg.norm(counts, axis=1, keepdims=True), 1e-9)


BAG_OF_WORDS = VectorSettings("words", "", 512, "float32")


def dense(passages: Sequence[str], folder: Path, depth: int = 20) -> dense_teacher:
    blocks = VectorBlocks(folder, passages, bag_of_words, BAG_OF_WORDS, block=7)
    return dense_teacher(bag_of_words, "", blocks, depth=depth)


RULE = Rule(method="percentage", threshold=0.95, negatives=7, depth=20, top_up=True)


@settings(max_examples=25, deadline=None)
@given(
    seed=st.integers(0, 1000),
    method=st.sampled_from(METHODS),
    how=st.sampled_from(["top", "random", "top1_random"]),
    top_up=st.booleans(),
    lexical=st.booleans(),
)
def test_never_a_positive(
    tmp_path_factory: pytest.TempPathFactory,
    seed: int,
    method: tuple[Method, float],
    how: str,
    top_up: bool,
    lexical: bool,
) -> None:
    """Whatever the method, teacher and filling: no positive of any record of the query, nor the query."""
    folder = tmp_path_factory.mktemp("set")
    examples, passages = make_set(15, seed)
    own = Example(
        examples[0].query, examples[0].positives, "NQ", ("right elsewhere, of its query", "judged and wrong")
    )
    examples += [own, Example(examples[0].query, ("Right elsewhere, of its query",), "NQ")]
    passages += ["judged and wrong", "Right elsewhere, of its query"]
    rule = Rule(method=method[0], threshold=method[1], negatives=5, depth=20, sampling=how, top_up=top_up)
    teacher = bm25_teacher(Bm25(passages), depth=20) if lexical else dense(passages, folder / "vectors")
    mine_set(
        examples, Corpus(passages, examples), teacher, rule, out=folder / "a.jsonl", seed=1, teacher_name="t"
    )
    mined = list(open_examples(folder / "a.jsonl"))
    assert [(e.query, e.positives) for e in mined] == [(e.query, e.positives) for e in examples]
    known: dict[str, set[str]] = {}
    for e in examples:
        known.setdefault(e.query, {e.query}).update(text.lower() for text in e.positives)
    for e in mined:
        assert not {text.lower() for text in e.hard_negatives} & known[e.query]
        assert len(set(e.hard_negatives)) == len(e.hard_negatives) <= 5
        assert len(e.hard_negatives) == 5 or not top_up
    assert mined[-2].hard_negatives[0] == "judged and wrong"
    shutil.rmtree(folder)


def test_whole_run_against_the_oracle(tmp_path: Path) -> None:
    examples, passages = make_set(40)
    rule = RULE.model_copy(update={"top_up": False})
    corpus = Corpus(passages, examples)
    report = mine_set(
        examples,
        corpus,
        dense(passages, tmp_path / "v"),
        rule,
        out=tmp_path / "a.jsonl",
        seed=0,
        teacher_name="t",
    )
    vectors = bag_of_words(passages, "")
    lengths = []
    for before, after in zip(examples, open_examples(tmp_path / "a.jsonl"), strict=True):
        scores = (vectors @ bag_of_words([before.query], "")[0]).tolist()
        known = corpus.positives(before.query)
        hidden = [i for i, text in enumerate(passages) if text == before.query and i not in known]
        open_rule = rule.model_copy(update={"negatives": 20})
        found = [i for i in oracle(scores, known, open_rule) if i not in hidden][:7]
        assert list(after.hard_negatives) == [passages[i] for i in found]
        lengths.append(len(found))
    assert report["queries"] == 40
    assert (report["full"], report["without"]) == (sum(n >= 7 for n in lengths), sum(n == 0 for n in lengths))
    assert sum(report["negative_scores"]) == sum(lengths)
    assert json.loads((tmp_path / "a.report.json").read_text())["full"] == report["full"]
    assert f"{report['excluded']:,} candidates left out" in (tmp_path / "a.report.md").read_text()
    assert sorted(p.name for p in tmp_path.iterdir()) == [
        "a.digest",
        "a.jsonl",
        "a.report.json",
        "a.report.md",
        "v",
    ]


def test_a_stopped_run_goes_on_where_it_was(tmp_path: Path) -> None:
    examples, passages = make_set(CHUNK * 2 + 10)
    corpus = Corpus(passages, examples)
    rule = RULE.model_copy(update={"sampling": "random"})
    mine_set(
        examples,
        corpus,
        dense(passages, tmp_path / "v"),
        rule,
        out=tmp_path / "whole.jsonl",
        seed=5,
        teacher_name="t",
    )
    teach, calls = dense(passages, tmp_path / "v"), [0]

    def dies(queries: Sequence[str], known: Sequence[Sequence[int]]) -> Candidates:
        calls[0] += 1
        if calls[0] == 2:
            raise KeyboardInterrupt
        return teach(queries, known)

    out = tmp_path / "cut.jsonl"
    with pytest.raises(KeyboardInterrupt):
        mine_set(examples, corpus, dies, rule, out=out, seed=5, teacher_name="t")
    assert not out.exists()
    other = rule.model_copy(update={"negatives": 3})
    with pytest.raises(OutputError, match=r"cut\.work.mined.state\.json is of a run with another rule"):
        mine_set(examples, corpus, teach, other, out=out, seed=5, teacher_name="t")
    chunk = tmp_path / "cut.work" / "mined" / "chunk-00000.npz"
    whole = chunk.read_bytes()
    shutil.copyfile(chunk.with_suffix(".digest"), tmp_path / "kept.digest")
    mine_set(examples, corpus, dies, rule, out=out, seed=5, teacher_name="t")
    assert calls[0] == 4  # the first chunk was not done again
    assert not chunk.exists()
    out.unlink()
    chunk.parent.mkdir(parents=True)
    chunk.write_bytes(whole.replace(b"query", b"qeury", 1))
    chunk.with_suffix(".digest").write_bytes((tmp_path / "kept.digest").read_bytes())
    mine_set(examples, corpus, teach, rule, out=out, seed=5, teacher_name="t")
    assert out.read_bytes() == (tmp_path / "whole.jsonl").read_bytes()
    with pytest.raises(OutputError, match=r"cut\.jsonl exists already"):
        mine_set(examples, corpus, teach, rule, out=out, seed=5, teacher_name="t")


def test_vectors_are_made_once(tmp_path: Path) -> None:
    _, passages = make_set(1)
    texts: list[str] = []

    def counting(part: Sequence[str], prompt: str) -> np.ndarray:
        if len(texts) + len(part) > 30:
            raise KeyboardInterrupt
        texts.extend(part)
        return bag_of_words(part, prompt)

    with pytest.raises(KeyboardInterrupt):
        VectorBlocks(tmp_path / "v", passages, counting, BAG_OF_WORDS, block=7)
    assert texts == passages[:28]
    texts.clear()
    VectorBlocks(tmp_path / "v", passages[:50], counting, BAG_OF_WORDS, block=7)
    assert texts == passages[28:50]
    assert dense(passages, tmp_path / "v")([passages[3]], [[3]]).ids[0, 0] == 3


def test_damaged_blocks_are_embedded_again(tmp_path: Path) -> None:
    _, passages = make_set(1)
    first = list(VectorBlocks(tmp_path, passages, bag_of_words, BAG_OF_WORDS, block=7))
    for path in list(tmp_path.rglob("*.vectors"))[:2]:
        content = bytearray(path.read_bytes())
        content[-3] ^= 1
        path.write_bytes(content)
    with pytest.warns(UserWarning, match="damaged"):
        again = VectorBlocks(tmp_path, passages, bag_of_words, BAG_OF_WORDS, block=7)
    np.testing.assert_array_equal(np.concatenate(list(again)), np.concatenate(first))


def test_bm25_scores_every_positive(tmp_path: Path) -> None:
    _, passages = make_set(1)
    bm25 = Bm25(passages)
    scores, ids = bm25.top_k(["catlet dog"], len(passages))
    by_id = dict(zip(ids[0].tolist(), scores[0].tolist(), strict=True))
    assert bm25.scores(["catlet dog"], [[5, 9]])[0].tolist() == [by_id[5], by_id[9]]
    assert bm25_teacher(bm25, depth=5)(["zebra"], [[4, 2]]).ids.tolist() == [[4] * 5]


def test_a_positive_that_is_no_passage() -> None:
    with pytest.raises(DataError, match="a positive of 'q' is not among the passages: 'p'"):
        Corpus(["x"], [Example("q", ("p",), "NQ")])


def test_a_teacher_with_bad_scores_stops_the_run(tmp_path: Path) -> None:
    examples, passages = make_set(3)
    corpus = Corpus(passages, examples)
    for candidates, error, said in [
        (
            Candidates(np.full((3, 2), np.nan), np.zeros((3, 2), int), np.zeros(3)),
            NumericsError,
            "not finite",
        ),
        (Candidates(np.zeros((3, 2)), np.full((3, 2), 999), np.zeros(3)), InputError, "names passage 999"),
        (Candidates(np.zeros((2, 2)), np.zeros((2, 2), int), np.zeros(2)), InputError, r"expected \(3, K\)"),
    ]:
        with pytest.raises(error, match=said):
            mine_set(
                examples,
                corpus,
                lambda *_, c=candidates: c,
                RULE,
                out=tmp_path / "a.jsonl",
                seed=0,
                teacher_name="t",
            )
