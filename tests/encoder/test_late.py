"""Late chunking: the vector of a passage is the mean of its tokens' states in a pass over the document."""

from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from sentence_transformers import SentenceTransformer
from tiny_sentence import sentence_folder

from nvembed.cli.main import main
from nvembed.embed.embedded import open_embedded, vectors_of
from nvembed.encoder import Encoder
from nvembed.errors import InputError
from nvembed.text.late import LateDocument, group_passages, late_windows

TEXT = "The judge threw people out. it's the third time that squares of numbers came up. The end of it."
CUTS = [(0, 27), (28, 80), (81, 95)]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("late") / "model"
    sentence_folder(path, "bert", prompts={"document": "passage: "}, max_length=60)
    return path


def late(encoder: Encoder, documents: Sequence[LateDocument], **options: int) -> np.ndarray:
    return np.concatenate([part.vectors for part in encoder.stream_late(documents, **options)])


def slices(folder: Path, text: str, cuts: Sequence[tuple[int, int]], prompt: str = "") -> np.ndarray:
    """The means of slices of transformers' hidden states of one pass, in float64."""
    library = SentenceTransformer(str(folder), device="cpu")
    model, tokenizer = library[0].auto_model.double(), library.tokenizer
    encoded = tokenizer(prompt + text, return_tensors="pt", return_offsets_mapping=True)
    with torch.no_grad():
        states = model(encoded["input_ids"], encoded["attention_mask"]).last_hidden_state[0].numpy()
    begins, ends = encoded["offset_mapping"][0].numpy().T - len(prompt)
    vectors = [states[(begins < end) & (ends > start) & (ends > begins)].mean(0) for start, end in cuts]
    return np.stack([vector / np.linalg.norm(vector) for vector in vectors])


@pytest.mark.parametrize("prompt", ["", "passage: "])
def test_spans_are_slices_of_the_hidden_states(folder: Path, prompt: str) -> None:
    encoder = Encoder.from_pretrained(folder, device="cpu")
    overlapping = [(0, 27), (10, 60), (28, 95)]
    documents = [LateDocument(TEXT, CUTS, prompt), LateDocument(TEXT[28:], [(0, 52)], prompt)]
    documents += [LateDocument(TEXT, overlapping, prompt)]
    expected = [slices(folder, d.text, d.passages, prompt) for d in documents]
    np.testing.assert_allclose(late(encoder, documents), np.concatenate(expected), atol=1e-5)
    alone = np.concatenate([late(encoder, [document], batch_tokens=1) for document in documents])
    np.testing.assert_allclose(late(encoder, documents), alone, atol=1e-5)


def test_a_long_document_is_read_in_windows(folder: Path) -> None:
    encoder = Encoder.from_pretrained(folder, device="cpu")
    text = " ".join(["The judge threw people out."] * 12)
    cuts = [(28 * i, 28 * i + 27) for i in range(12)]
    windows = list(late_windows(encoder.tokenizer, [LateDocument(text, cuts)], max_length=40))
    assert len(windows) > 2
    assert all(len(window.tokens.input_ids) <= 40 for window in windows)
    assert [window.first_row for window in windows] == list(
        np.cumsum([0, *(len(window.passages) for window in windows[:-1])])
    )
    assert late(encoder, [LateDocument(text, cuts)], max_length=40).shape == (12, encoder.dim)


@given(
    st.lists(st.integers(1, 30), min_size=1, max_size=40),
    st.integers(0, 5),
    st.integers(30, 90),
)
def test_windows_hold_their_passages(sizes: list[int], overlap: int, room: int) -> None:
    ends = np.cumsum(sizes).tolist()
    passages = [(max(0, a - overlap), b) for a, b in pairwise([0, *ends]) if b - max(0, a - overlap) <= room]
    windows = list(group_passages(passages, ends[-1], room))
    assert [one for _, members in windows for one in members] == passages
    for (start, stop), members in windows:
        assert 0 <= start < stop <= ends[-1]
        assert stop - start <= room
        assert all(start <= a and b <= stop for a, b in members)
    assert len(windows) <= len(passages)


def test_a_passage_longer_than_the_model_reads_is_cut(folder: Path) -> None:
    encoder = Encoder.from_pretrained(folder, device="cpu")
    [part] = encoder.stream_late([LateDocument(TEXT, [(0, 95)])], max_length=8)
    assert part.truncated.tolist() == [True]
    assert part.num_tokens.tolist() == [6]


def test_an_empty_document_has_a_vector(folder: Path) -> None:
    encoder = Encoder.from_pretrained(folder, device="cpu")
    [part] = encoder.stream_late([LateDocument("", [(0, 0)]), LateDocument(TEXT, CUTS)])
    assert part.empty.tolist() == [True, False, False, False]
    np.testing.assert_allclose(np.linalg.norm(part.vectors, axis=1), 1, atol=1e-5)


def test_titles_are_placed_in_the_prompt() -> None:
    prompt = "title: none | text: "
    placed = LateDocument.of("Cats\nThey sleep.", [(0, 4), (5, 16)], prompt, title="Cats", body_start=5)
    assert (placed.prompt, placed.text) == ("title: Cats | text: ", "They sleep.")
    assert placed.passages == [(0, 0), (0, 11)]


def test_other_poolings_are_refused(tmp_path: Path) -> None:
    sentence_folder(tmp_path / "model", "bert", pooling="cls")
    encoder = Encoder.from_pretrained(tmp_path / "model", device="cpu")
    with pytest.raises(InputError, match="pools by 'cls'"):
        late(encoder, [LateDocument(TEXT, CUTS)])


def run(*words: object) -> int:
    with pytest.raises(SystemExit) as left:
        main([str(word) for word in words])
    assert isinstance(left.value.code, int)
    return left.value.code


def test_embed(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    corpus = tmp_path / "corpus"
    corpus.mkdir()
    (corpus / "a.md").write_text(TEXT)
    (corpus / "b.md").write_text("squares of numbers. " * 3)
    sizes = ("--chunk-tokens", 12, "--overlap-tokens", 2)
    common = ("--model", folder, *sizes, "--storage", "float32", "--device", "cpu")
    assert run("embed", corpus, tmp_path / "late", *common, "--late-chunking") == 0
    assert run("embed", corpus, tmp_path / "plain", *common) == 0
    late_corpus, plain = open_embedded(tmp_path / "late"), open_embedded(tmp_path / "plain")
    columns = ["id", "document", "start", "end", "text"]
    rows = [batch.to_pylist() for batch in late_corpus.batches(columns)]
    assert rows == [batch.to_pylist() for batch in plain.batches(columns)]
    assert late_corpus.manifest["settings"]["late_chunking"] is True
    assert "late_chunking" not in plain.manifest["settings"]
    vectors = np.concatenate([vectors_of(batch) for batch in late_corpus.batches(["vector"])])
    cuts = [(row["start"], row["end"]) for part in rows for row in part if row["document"] == "a.md"]
    expected = slices(folder, TEXT, cuts, "passage: ")
    np.testing.assert_allclose(vectors[: len(cuts)], expected, atol=1e-5)
    capsys.readouterr()
    assert run("embed", corpus, tmp_path / "late", *common) == 1
    assert "late_chunking" in capsys.readouterr().err
    assert run("embed", corpus, tmp_path / "late", *common, "--late-chunking") == 0
    assert run("embed", corpus, tmp_path / "x", "--model", folder, "--late-chunking", "--whole") == 1
    (corpus / "a.md").write_text(TEXT + " And more.")
    assert run("embed", corpus, tmp_path / "late", *common, "--late-chunking", "--update") == 0
    updated = open_embedded(tmp_path / "late")
    assert updated.rows > late_corpus.rows or updated.manifest != late_corpus.manifest
