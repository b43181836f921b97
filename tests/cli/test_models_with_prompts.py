"""Every command with a model in the layout of sentence-transformers that brings prompts of its own."""

import json
from pathlib import Path

import numpy as np
import pytest
from eval_folders import make_retrieval
from sentence_transformers import SentenceTransformer
from tiny_sentence import sentence_folder

from nvembed.cli.main import main
from nvembed.cli.models import Loading, model_content, open_model
from nvembed.cli.serve import loaded
from nvembed.embed.embedded import open_embedded, vectors_of
from nvembed.encoder import Encoder
from nvembed.errors import ConfigError
from nvembed.evaluate.run import evaluate
from nvembed.evaluate.tasks import load_task
from nvembed.search.index import open_index
from nvembed.serve.engine import EmbedRequest, Engine
from nvembed.serve.settings import ServerSettings
from nvembed.serve.watch import Watch

PROMPTS = {"query": "query: ", "document": "passage: ", "Clustering": "group: "}
TEXTS = ["The judge threw people out.", "it's the third time", "squares of numbers"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("models") / "model"
    sentence_folder(path, "bert", dense=(20,), prompts=PROMPTS)
    return path


@pytest.fixture(scope="module")
def oracle(folder: Path) -> SentenceTransformer:
    return SentenceTransformer(str(folder), device="cpu")


def run(*words: object) -> None:
    with pytest.raises(SystemExit) as left:
        main([str(word) for word in words])
    assert left.value.code == 0


def test_embed_index_search(
    folder: Path, oracle: SentenceTransformer, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    corpus = tmp_path / "corpus.jsonl"
    rows = ({"_id": f"d{i}", "text": text} for i, text in enumerate(TEXTS))
    corpus.write_text("".join(json.dumps(row) + "\n" for row in rows))
    out = tmp_path / "out"
    run("embed", corpus, out, "--model", folder, "--whole", "--storage", "float32", "--device", "cpu")
    embedded = open_embedded(out)
    settings = embedded.manifest["settings"]
    assert (embedded.dim, settings["prompt"]) == (20, "passage: ")
    assert settings["fingerprint"] == Encoder.from_pretrained(folder, device="cpu").fingerprint
    vectors = np.concatenate([vectors_of(batch) for batch in embedded.batches(["vector"])])
    expected = oracle.encode_document(TEXTS, normalize_embeddings=True)
    np.testing.assert_allclose(vectors, expected, atol=1e-5)
    query = oracle.encode_query(["the third time"], normalize_embeddings=True)[0]
    best = f"d{int(np.argmax(expected @ query))}"
    run("index", out)
    with open_index(out) as index:
        assert (index.record.passage_prompt, index.record.query_prompt) == ("passage: ", "query: ")
    capsys.readouterr()
    for place, mode in ((out, ("--mode", "vector")), (corpus, ())):  # the index, then every vector
        options = ("--model", folder, "--device", "cpu", "--json", "--top", 1, *mode)
        run("search", place, "the third time", *options)
        hit = json.loads(capsys.readouterr().out.splitlines()[0])
        assert hit.get("document", hit.get("id")) == best or hit["id"].startswith(best)


def test_encode(folder: Path, oracle: SentenceTransformer, tmp_path: Path) -> None:
    (tmp_path / "texts.txt").write_text("\n".join(TEXTS))
    expected = {
        (): oracle.encode(TEXTS, normalize_embeddings=True),
        ("--task", "query"): oracle.encode(TEXTS, prompt_name="query", normalize_embeddings=True),
        ("--prompt", "x: "): oracle.encode(TEXTS, prompt="x: ", normalize_embeddings=True),
    }
    for options, vectors in expected.items():
        run("encode", folder, tmp_path / "texts.txt", tmp_path / "out.npy", "--device", "cpu", *options)
        np.testing.assert_allclose(np.load(tmp_path / "out.npy"), vectors, atol=1e-5)


def test_titles_go_where_the_prompt_has_a_place_for_them(tmp_path: Path) -> None:
    """Records, web pages, texts cut into passages, and vectors that are used again after a change."""
    prompts = {"query": "q: ", "document": "title: none | text: "}
    theirs = sentence_folder(tmp_path / "model", "bert", prompts=prompts, max_length=None)
    corpus = tmp_path / "corpus"
    corpus.mkdir()
    rows = [
        {"_id": "a", "title": "The judge", "text": "The judge threw 12 people out"},
        {"_id": "b", "text": "no"},
    ]
    (corpus / "r.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    page = "<html><title>The judge</title><body><p>The judge threw it</p></body></html>"
    (corpus / "page.html").write_text(page)
    out = tmp_path / "out"
    options = ("--model", tmp_path / "model", "--storage", "float32", "--device", "cpu", "--chunk-tokens", 6)

    def check() -> None:
        embedded = open_embedded(out)
        [table] = list(embedded.batches(["id", "text", "vector"]))
        models_texts = []
        for id_, text in zip(table["id"].to_pylist(), table["text"].to_pylist(), strict=True):
            title = "none" if id_.startswith(("r.jsonl:b", "r.jsonl:c")) else "The judge"
            body = text.removeprefix("The judge ") if id_ == "r.jsonl:a#0" else text
            models_texts.append(f"title: {title} | text: {body}")
        assert "title: The judge | text: The judge threw it" in models_texts  # of the page
        assert any(text.startswith("title: The judge | text: The ") for text in models_texts)
        expected = theirs.encode(models_texts, prompt="", normalize_embeddings=True)
        np.testing.assert_allclose(vectors_of(table), expected, atol=1e-5)

    run("embed", corpus, out, *options)
    check()
    texts = tmp_path / "one.jsonl"
    texts.write_text(json.dumps(rows[0]) + "\n")
    run("encode", tmp_path / "model", texts, tmp_path / "out.npy", "--device", "cpu", "--task", "document")
    whole = ["title: The judge | text: The judge threw 12 people out"]
    np.testing.assert_allclose(np.load(tmp_path / "out.npy"), theirs.encode(whole, prompt=""), atol=1e-5)
    (corpus / "r.jsonl").write_text(
        "".join(json.dumps(row) + "\n" for row in [*rows, {"_id": "c", "text": "q"}])
    )
    run("embed", corpus, out, *options, "--update")
    assert open_embedded(out).manifest["counts"]["documents"] == 4
    check()


def test_evaluation_uses_this_engine(
    folder: Path, oracle: SentenceTransformer, capsys: pytest.CaptureFixture[str]
) -> None:
    subject = open_model(str(folder), Loading(512, device="cpu"))
    assert "sentence-transformers" not in capsys.readouterr().err
    assert (subject.dim, subject.instructions, dict(subject.prompts)) == (20, False, PROMPTS)
    assert subject.encode is not None
    vectors = subject.encode(TEXTS, "query: ").vectors
    expected = oracle.encode(TEXTS, prompt="query: ", normalize_embeddings=True)
    np.testing.assert_allclose(vectors, expected, atol=1e-5)
    assert model_content(str(folder)) == f"{folder}/{subject.content}"
    pooling = folder / "1_Pooling" / "config.json"
    content = pooling.read_text()
    try:
        pooling.write_text(content + " ")
        assert model_content(str(folder)) != f"{folder}/{subject.content}"
    finally:
        pooling.write_text(content)


def test_what_this_package_lacks_is_left_to_the_library(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = sentence_folder(tmp_path / "model", "bert", prompts=PROMPTS)
    config = tmp_path / "model" / "1_Pooling" / "config.json"
    modes = {"pooling_mode_mean_tokens": True, "pooling_mode_cls_token": True}
    config.write_text(json.dumps({"word_embedding_dimension": 32, **modes}))
    subject = open_model(str(tmp_path / "model"), Loading(512, device="cpu"))
    assert "computed by the library sentence-transformers" in capsys.readouterr().err
    assert subject.encode is not None
    assert subject.encode(TEXTS, "").vectors.shape == (3, 2 * (model.get_embedding_dimension() or 0))


def test_vectors_that_are_not_compared_by_the_cosine_are_refused(tmp_path: Path) -> None:
    sentence_folder(tmp_path / "model", "bert", normalize=False, similarity_fn_name="dot")
    with pytest.raises(ConfigError, match="'dot'"):
        open_model(str(tmp_path / "model"), Loading(512, device="cpu"))


def test_evaluate(folder: Path, tmp_path: Path) -> None:
    task = load_task(make_retrieval(tmp_path / "retrieval" / "news"))
    evaluate(open_model(str(folder), Loading(512, device="cpu")), [task], tmp_path / "results")
    record = next((tmp_path / "results").rglob("news.record.json"))
    prompt = json.loads(record.read_text())["conditions"]["prompt"]
    assert (prompt["query"], prompt["corpus"]) == ("query: ", "passage: ")


def test_serve_uses_the_prompts_of_the_input_types(folder: Path) -> None:
    settings = ServerSettings(model=str(folder), device="cpu")
    engine = Engine(loaded(settings), settings, Watch("json"))
    try:
        assert engine.model.dim == 20
        prompts = {
            name: engine.prompt(EmbedRequest(["a"], input_type=name))  # type: ignore[arg-type]
            for name in ("query", "passage", None)
        }
        assert prompts == {"query": "query: ", "passage": "passage: ", None: ""}
    finally:
        engine.close()
