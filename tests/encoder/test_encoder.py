import re
import threading
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch

import nvembed.encoder as encoder_module
from conftest import TINY_A, tiny_model
from nvembed.encoder import Encoder
from nvembed.errors import InputError, NumericsError, OutputError

PROMPT = "Instruct: Given a question, retrieve passages that answer the question\nQuery: "
PASSAGES = ["Judo throws are allowed.", "A technician works in Michigan.", "mask " * 60, "token"]


def test_vectors_are_unit_float32(tiny_encoder: Encoder) -> None:
    vectors = tiny_encoder.encode(PASSAGES)
    assert vectors.dtype == np.float32
    assert vectors.shape == (4, tiny_encoder.dim)
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-6)


def test_query_and_document_sides(tiny_encoder: Encoder) -> None:
    question = ["who?"]
    prompted = tiny_encoder.encode(question, prompt=PROMPT)
    instruction = "Given a question, retrieve passages that answer the question"
    np.testing.assert_array_equal(tiny_encoder.encode_query(question, instruction=instruction), prompted)
    np.testing.assert_array_equal(tiny_encoder.encode_query(question, task="NQ"), prompted)
    bare = tiny_encoder.encode(question)
    assert np.abs(bare - prompted).max() > 1e-3
    np.testing.assert_array_equal(tiny_encoder.encode_query(question), bare)
    np.testing.assert_array_equal(tiny_encoder.encode_document(question, task="NQ"), bare)
    both_sides = tiny_encoder.encode_document(question, task="STSBenchmark")
    np.testing.assert_array_equal(both_sides, tiny_encoder.encode_query(question, task="STSBenchmark"))


def test_similarity_is_cosine(tiny_encoder: Encoder) -> None:
    vectors = tiny_encoder.encode(PASSAGES)
    scores = tiny_encoder.similarity(vectors[:1], vectors)
    assert scores.shape == (1, 4)
    assert scores[0, 0] == pytest.approx(1, abs=1e-6)


def test_truncate_dim(tiny_encoder: Encoder) -> None:
    whole, short = tiny_encoder.encode(PASSAGES), tiny_encoder.encode(PASSAGES, truncate_dim=10)
    expected = whole[:, :10] / np.linalg.norm(whole[:, :10], axis=1, keepdims=True)
    np.testing.assert_allclose(short, expected, atol=1e-6)


def test_windows_and_generators_change_nothing(
    tiny_encoder: Encoder, monkeypatch: pytest.MonkeyPatch
) -> None:
    texts = [f"{word} number {i}" for i in range(40) for word in ("judo", "mask " * (i % 7))]
    whole = tiny_encoder.encode(texts)
    monkeypatch.setattr(encoder_module, "WINDOW_TEXTS", 7)
    np.testing.assert_allclose(tiny_encoder.encode(text for text in texts), whole, atol=1e-6)
    sizes = [len(part.vectors) for part in tiny_encoder.stream(iter(texts))]
    assert sizes == [7] * 11 + [3]
    monkeypatch.setattr(encoder_module, "WINDOW_CHARACTERS", 20)
    np.testing.assert_allclose(tiny_encoder.encode(texts, batch_tokens=16), whole, atol=1e-6)


def test_a_stream_reads_at_most_two_windows_ahead(
    tiny_encoder: Encoder, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(encoder_module, "WINDOW_TEXTS", 5)
    read = 0

    def endless() -> Iterator[str]:
        nonlocal read
        while True:
            read += 1
            yield f"text {read}"

    stream = tiny_encoder.stream(endless())
    for window in range(1, 4):
        assert len(next(stream).vectors) == 5
        assert read <= 5 * (window + 1)
    stream.close()


def test_counts_and_cuts(tiny_encoder: Encoder) -> None:
    part = next(tiny_encoder.stream(["short", "word " * 50], max_length=16))
    assert part.num_tokens.tolist() == [3, 16]
    assert part.truncated.tolist() == [False, True]
    with pytest.warns(UserWarning, match=r"1 of 2 texts: cut to 16 tokens \(the first is text 1\)"):
        tiny_encoder.encode(["short", "word " * 50], max_length=16)


def test_empty_texts_are_said(tiny_encoder: Encoder) -> None:
    with pytest.warns(UserWarning, match=r"2 of 3 texts: empty; .* \(the first is text 1\)"):
        vectors = tiny_encoder.encode(["full", "", " \n"])
    assert np.isfinite(vectors).all()


def test_two_replicas_share_the_work() -> None:
    one = Encoder.from_pretrained(TINY_A, device="cpu", dtype="float32")
    two = Encoder.from_pretrained(TINY_A, device=["cpu", "cpu"], dtype="float32")
    assert len(two.replicas) == 2
    texts = [f"text number {i} " * (i % 9 + 1) for i in range(60)]
    used: set[int] = set()
    for number, replica in enumerate(two.replicas):
        replica.register_forward_hook(lambda *_, n=number: used.add(n))
    barrier = threading.Barrier(2, timeout=120)  # both must be at work at once
    first = [True, True]

    def meet(module: torch.nn.Module, *_: object) -> None:
        index = two.replicas.index(module)  # type: ignore[arg-type]
        if first[index]:
            first[index] = False
            barrier.wait()

    for replica in two.replicas:
        replica.register_forward_pre_hook(meet)
    got = two.encode(texts, batch_tokens=64)
    assert used == {0, 1}
    np.testing.assert_allclose(got, one.encode(texts, batch_tokens=64), atol=1e-6)


@pytest.mark.parametrize(("dtype", "atol"), [("bfloat16", 2e-2), ("float16", 2e-3)])
def test_half_precision(tiny_encoder: Encoder, dtype: str, atol: float) -> None:
    half = Encoder.from_pretrained(TINY_A, device="cpu", dtype=dtype)
    assert half.dtype == dtype
    vectors = half.encode(PASSAGES, prompt=PROMPT)
    assert vectors.dtype == np.float32
    np.testing.assert_allclose(vectors, tiny_encoder.encode(PASSAGES, prompt=PROMPT), atol=atol)


def test_long_text_alone_in_a_small_budget(tiny_encoder: Encoder) -> None:
    text = "delta token vector wrestling " * 700
    expected = tiny_encoder.encode([text])
    np.testing.assert_allclose(tiny_encoder.encode([text, "a"], batch_tokens=8)[:1], expected, atol=1e-6)


def test_progress_goes_to_standard_error(tiny_encoder: Encoder, capfd: pytest.CaptureFixture[str]) -> None:
    tiny_encoder.encode(PASSAGES, show_progress=True)
    out, err = capfd.readouterr()
    assert out == ""
    assert "4/4" in err


def test_no_texts(tiny_encoder: Encoder) -> None:
    """An empty list is a list: pipelines pass one, and go on with (0, d)."""
    for texts in ([], iter(())):
        vectors = tiny_encoder.encode(texts)
        assert (vectors.shape, vectors.dtype) == ((0, tiny_encoder.dim), np.float32)
    assert tiny_encoder.encode([], truncate_dim=8).shape == (0, 8)
    assert tiny_encoder.similarity(tiny_encoder.encode([]), tiny_encoder.encode(["a"])).shape == (0, 1)


class TestBadInput:
    def test_one_string(self, tiny_encoder: Encoder) -> None:
        with pytest.raises(InputError, match=r"texts is one string: .*pass \[text\]"):
            tiny_encoder.encode("hello")

    def test_the_row_is_counted_across_windows(
        self, tiny_encoder: Encoder, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(encoder_module, "WINDOW_TEXTS", 2)
        with pytest.raises(InputError, match="text 4 is a NoneType"):
            tiny_encoder.encode(["a", "b", "c", "d", None])  # type: ignore[list-item]

    def test_unknown_task_offers_the_nearest(self, tiny_encoder: Encoder) -> None:
        with pytest.raises(InputError, match=r"no instruction for task 'SciFacts': did you mean 'SciFact'"):
            tiny_encoder.encode_query(["a"], task="SciFacts")

    def test_task_and_instruction(self, tiny_encoder: Encoder) -> None:
        with pytest.raises(InputError, match="instruction or task"):
            tiny_encoder.encode_query(["a"], task="NQ", instruction="Find it")

    @pytest.mark.parametrize(
        ("options", "message"),
        [
            ({"truncate_dim": 0}, "truncate_dim is 0: expected 1 to 64"),
            ({"truncate_dim": 65}, "truncate_dim is 65: expected 1 to 64"),
            ({"batch_tokens": 0}, "batch_tokens is 0: expected 1 or more"),
        ],
    )
    def test_options(self, tiny_encoder: Encoder, options: dict[str, int], message: str) -> None:
        with pytest.raises(InputError, match=message):
            tiny_encoder.encode(["a"], **options)  # type: ignore[arg-type]

    @pytest.mark.parametrize(
        ("options", "message"),
        [
            ({"dtype": "int7"}, "dtype is 'int7': expected one of float32, bfloat16, float16"),
            ({"device": "gpu"}, "device is 'gpu': expected 'cpu', 'cuda', 'cuda:1' or several"),
            ({"device": []}, r"device is \[\]: expected 'cpu', 'cuda', 'cuda:1' or several"),
            ({"device": "mps"}, "device is 'mps': expected 'cpu', 'cuda', 'cuda:1' or several"),
            ({"device": "meta"}, "device is 'meta': expected 'cpu', 'cuda', 'cuda:1' or several"),
            ({"device": torch.device("cpu")}, "device is device.type='cpu'.: expected 'cpu', 'cuda'"),
            ({"device": "cuda:99"}, r"device is 'cuda:99', but torch sees \d+ CUDA devices on this machine"),
        ],
    )
    def test_loading_options(self, options: dict[str, object], message: str) -> None:
        with pytest.raises(InputError, match=message):
            Encoder.from_pretrained(TINY_A, **options)  # type: ignore[arg-type]

    def test_a_vector_that_is_not_finite(self, tiny_encoder: Encoder) -> None:
        broken = tiny_model()
        with torch.no_grad():
            broken.embedding_model.norm.weight[0] = float("nan")
        encoder = Encoder([broken.eval()], tiny_encoder.tokenizer)
        message = r"the vector of text 0 .* is not finite in float32: load with .*`nvembed check`"
        with pytest.raises(NumericsError, match=message):
            encoder.encode(["a"])

    def test_an_encoder_from_memory(self, tiny_encoder: Encoder, tmp_path: Path) -> None:
        encoder = Encoder([tiny_model().eval()], tiny_encoder.tokenizer)
        with pytest.raises(OutputError, match="checkpoint"):
            encoder.save_pretrained(tmp_path / "x")
        with pytest.raises(InputError, match="fingerprint"):
            _ = encoder.fingerprint
        assert "memory" in repr(encoder)


def test_fingerprint_names_the_weights(tiny_encoder: Encoder, tmp_path: Path) -> None:
    tiny_encoder.save_pretrained(tmp_path / "copy")
    copy = Encoder.from_pretrained(tmp_path / "copy", device="cpu", dtype="bfloat16")
    assert re.fullmatch("[0-9a-f]{32}", tiny_encoder.fingerprint)
    assert copy.fingerprint == tiny_encoder.fingerprint


class TestEmbedTokens:
    def test_one_batch_in_the_callers_order(self, tiny_encoder: Encoder) -> None:
        tokens = tiny_encoder.tokenizer(PASSAGES)
        vectors = tiny_encoder.embed_tokens(tokens)
        np.testing.assert_array_equal(vectors, tiny_encoder.encode(PASSAGES))

    def test_what_a_pause_computes_changes_nothing(self, tiny_encoder: Encoder) -> None:
        tokens = tiny_encoder.tokenizer(PASSAGES)
        others = tiny_encoder.tokenizer(["something else", "and longer " * 20])
        alone, expected = tiny_encoder.embed_tokens(tokens), tiny_encoder.embed_tokens(others)
        found = []
        around = tiny_encoder.embed_tokens(
            tokens, pause=lambda: found.append(tiny_encoder.embed_tokens(others))
        )
        np.testing.assert_array_equal(around, alone)
        assert len(found) == 2 * tiny_encoder.replicas[0].config.backbone.num_layers
        for vectors in found:
            np.testing.assert_array_equal(vectors, expected)

    def test_what_a_pause_raises_ends_the_batch(self, tiny_encoder: Encoder) -> None:
        def give_up() -> None:
            raise KeyError("nobody waits")

        with pytest.raises(KeyError, match="nobody waits"):
            tiny_encoder.embed_tokens(tiny_encoder.tokenizer(PASSAGES), pause=give_up)

    @pytest.mark.parametrize(
        "error",
        [
            torch.OutOfMemoryError("CUDA out of memory"),
            RuntimeError("[enforce fail at alloc_cpu.cpp] DefaultCPUAllocator: can't allocate memory"),
        ],
    )
    def test_out_of_memory(
        self, tiny_encoder: Encoder, monkeypatch: pytest.MonkeyPatch, error: RuntimeError
    ) -> None:
        def full(*_: object) -> None:
            raise error

        monkeypatch.setattr(encoder_module, "_forward", full)
        with pytest.raises(MemoryError, match=r"a batch of 3 tokens does not fit on cpu"):
            tiny_encoder.embed_tokens(tiny_encoder.tokenizer(["token"]))
        monkeypatch.setattr(encoder_module, "_forward", lambda *_: torch.zeros(2)[5])
        with pytest.raises(IndexError):
            tiny_encoder.embed_tokens(tiny_encoder.tokenizer(["token"]))
