"""What only a GPU can show: the varlen kernel, half precision, long texts, several devices.

The oracles are float64 attention and the same model on CPU. ``DEVICE`` is one line, so that the tests' own
logic can be tried without a GPU.
"""

import copy
import itertools
from inspect import signature

import numpy as np
import pytest
import torch
from torch.nn.attention.varlen import varlen_attn

from conftest import TINY_A, tiny_backbone, tiny_model
from helpers.attention_oracle import attention_oracle
from nvembed.encoder import Encoder
from nvembed.files import data_path
from nvembed.model.attention import DENSE_TOKENS, WHOLE, Segments, _attention_varlen, attention, is_dense
from nvembed.model.compiled import CAPACITIES, compile_layers, graph_short_texts
from nvembed.model.config import ModelConfig, PoolerConfig
from nvembed.model.nv_embed import NVEmbed, PackedBatch
from nvembed.model.quantised import quantise
from nvembed.recipe import read_recipe
from nvembed.train.optim import Optimizer
from nvembed.train.recipe import StageRecipe

DEVICE = "cuda"

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device; torch sees none here"),
]

LENGTHS = [(1,), (64, 64, 64), (1, 2, 3, 17, 64, 129, 700), (300, 1, 1, 5)]
# atol against float64, for values of order 1: inputs, weights and outputs are rounded
TOLERANCE = {torch.float32: 1e-5, torch.float16: 3e-3, torch.bfloat16: 2e-2}
# of unit vectors after two layers and pooling
VECTOR_TOLERANCE = {torch.float32: 1e-5, torch.float16: 2e-3, torch.bfloat16: 2e-2}
TEXTS = ["Judo throws are allowed.", "A technician works in Michigan.", "mask " * 300, "token", "a b " * 40]
PROMPT = "Instruct: Given a question, retrieve passages that answer the question\nQuery: "


def ids_by_dtype(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


@pytest.mark.parametrize("heads", [(8, 2), (4, 4)], ids=["grouped", "plain"])
@pytest.mark.parametrize("head_dim", [64, 128])
@pytest.mark.parametrize("dtype", TOLERANCE, ids=ids_by_dtype)
@pytest.mark.parametrize("lengths", LENGTHS, ids=str)
def test_attention_matches_float64_forward_and_backward(
    lengths: tuple[int, ...], dtype: torch.dtype, head_dim: int, heads: tuple[int, int]
) -> None:
    generator = torch.Generator().manual_seed(len(lengths))
    shapes = [(sum(lengths), count, head_dim) for count in (heads[0], heads[1], heads[1])]
    q, k, v = (torch.randn(s, generator=generator).to(DEVICE, dtype).requires_grad_() for s in shapes)
    segments = Segments.of(lengths, torch.device(DEVICE))
    out = attention(q, k, v, segments)
    assert out.dtype == dtype
    assert out.shape == q.shape
    weight = torch.randn(out.shape, generator=generator).to(DEVICE, dtype)
    gradients = torch.autograd.grad((out * weight).sum(), (q, k, v))

    exact = [x.detach().double().requires_grad_() for x in (q, k, v)]
    expected = attention_oracle(*exact, segments)
    expected_gradients = torch.autograd.grad((expected * weight.double()).sum(), exact)
    torch.testing.assert_close(out.double(), expected, atol=TOLERANCE[dtype], rtol=0)
    for got, want in zip(gradients, expected_gradients, strict=True):
        torch.testing.assert_close(got.double(), want, atol=8 * TOLERANCE[dtype], rtol=TOLERANCE[dtype])


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=ids_by_dtype)
@pytest.mark.parametrize("lengths", [(DENSE_TOKENS,), (2048, 2048)], ids=str)
def test_long_texts_of_equal_length_match_float64(lengths: tuple[int, ...], dtype: torch.dtype) -> None:
    generator = torch.Generator().manual_seed(len(lengths))
    shapes = [(sum(lengths), count, 64) for count in (4, 2, 2)]
    q, k, v = (torch.randn(s, generator=generator).to(DEVICE, dtype) for s in shapes)
    segments = Segments.of(lengths, torch.device(DEVICE))
    assert is_dense(segments, WHOLE)
    expected = attention_oracle(q.double(), k.double(), v.double(), segments)
    torch.testing.assert_close(attention(q, k, v, segments).double(), expected, atol=TOLERANCE[dtype], rtol=0)


@pytest.mark.skipif(
    "num_splits" not in signature(varlen_attn).parameters, reason="torch promises it from 2.12 on"
)
@pytest.mark.parametrize("length", [1, 17, 700, 3000])
def test_varlen_attention_of_a_text_does_not_depend_on_its_batch(length: int) -> None:
    """To the last bit, whatever the lengths beside it."""
    generator = torch.Generator().manual_seed(length)

    def heads(tokens: int) -> list[torch.Tensor]:
        return [
            torch.randn(tokens, count, 128, generator=generator).to(DEVICE, torch.bfloat16)
            for count in (8, 2, 2)
        ]

    text = heads(length)
    expected = None
    for before, after in ((), ()), ((5,), ()), ((1, 300), (4096,)), ((8192,), (2,)):
        others = heads(sum(before)), heads(sum(after))
        q, k, v = (torch.cat(parts) for parts in zip(others[0], text, others[1], strict=True))
        segments = Segments.of((*before, length, *after), torch.device(DEVICE))
        out = _attention_varlen(q, k, v, segments, WHOLE)[sum(before) :][:length]
        expected = out if expected is None else expected
        assert torch.equal(out, expected)


def packed(lengths: tuple[int, ...], seed: int, device: str) -> tuple[PackedBatch, list[PackedBatch]]:
    """One batch of random texts, and each of them alone; every other text has tokens that are not pooled."""
    ids = torch.from_numpy(np.random.default_rng(seed).integers(0, 32000, sum(lengths))).to(device)
    starts = [length // 3 if row % 2 else 0 for row, length in enumerate(lengths)]
    offsets = [0, *itertools.accumulate(lengths)]

    def batch(rows: list[int]) -> PackedBatch:
        base = offsets[rows[0]]
        index = [torch.arange(offsets[r] + starts[r], offsets[r + 1]) - base for r in rows]
        sizes = tuple(lengths[r] for r in rows)
        return PackedBatch(
            ids[base : offsets[rows[-1] + 1]],
            Segments.of(sizes, torch.device(device)),
            torch.cat(index).to(device),
            tuple(len(part) for part in index),
        )

    rows = list(range(len(lengths)))
    return batch(rows), [batch([row]) for row in rows]


@pytest.fixture(scope="module", params=["folded", "plain"])
def model(request: pytest.FixtureRequest) -> NVEmbed:
    """Random and small, with heads as wide as the varlen kernel wants them."""
    made = tiny_model(hidden_size=256, intermediate_size=384, num_heads=4, num_kv_heads=2, head_dim=64)
    made = made.requires_grad_(False).eval()
    if request.param == "folded":
        made.fold_pooler()
    return made


@pytest.mark.parametrize("dtype", VECTOR_TOLERANCE, ids=ids_by_dtype)
def test_a_packed_batch_is_each_text_alone(model: NVEmbed, dtype: torch.dtype) -> None:
    there = copy.deepcopy(model).to(DEVICE, dtype)
    batch, alone = packed((5, 1, 130, 64, 64, 17, 400), 1, DEVICE)
    together = there(batch)
    assert together.dtype == torch.float32
    apart = torch.cat([there(one) for one in alone])
    torch.testing.assert_close(together, apart, atol=VECTOR_TOLERANCE[dtype], rtol=0)


@pytest.mark.parametrize("dtype", VECTOR_TOLERANCE, ids=ids_by_dtype)
def test_the_model_is_the_same_as_on_cpu(model: NVEmbed, dtype: torch.dtype) -> None:
    lengths = (5, 1, 130, 64, 64, 17, 400)
    expected = model(packed(lengths, 2, "cpu")[0])
    got = copy.deepcopy(model).to(DEVICE, dtype)(packed(lengths, 2, DEVICE)[0]).cpu()
    torch.testing.assert_close(got, expected, atol=VECTOR_TOLERANCE[dtype], rtol=0)


@pytest.fixture(scope="module")
def on_cpu() -> Encoder:
    return Encoder.from_pretrained(TINY_A, device="cpu", dtype="float32")


@pytest.mark.parametrize(
    ("dtype", "lowest"), [("float32", 1 - 1e-5), ("float16", 0.9999), ("bfloat16", 0.995)]
)
def test_encode_is_the_same_as_on_cpu(on_cpu: Encoder, dtype: str, lowest: float) -> None:
    """tiny-a's heads are narrow: this is also the kernels' narrowest case."""
    there = Encoder.from_pretrained(TINY_A, device=DEVICE, dtype=dtype)
    for prompt in ("", PROMPT):
        expected, got = on_cpu.encode(TEXTS, prompt=prompt), there.encode(TEXTS, prompt=prompt)
        assert got.dtype == np.float32
        assert np.isfinite(got).all()
        np.testing.assert_allclose(np.linalg.norm(got, axis=1), 1, atol=1e-5)
        assert (expected * got).sum(1).min() > lowest
    alone = np.concatenate([there.encode([text]) for text in TEXTS])
    assert (there.encode(TEXTS) * alone).sum(1).min() > lowest


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32], ids=ids_by_dtype)
def test_memory_grows_linearly_up_to_32k_tokens(dtype: torch.dtype) -> None:
    """Twice the tokens, at most 2.3 times the memory. A 32k x 32k matrix of one head alone is 2 GiB."""
    sizes = {"hidden_size": 512, "intermediate_size": 1024, "num_heads": 8, "num_kv_heads": 2, "head_dim": 64}
    backbone = tiny_backbone(max_position=32768, **sizes)
    with torch.device(DEVICE):
        made = NVEmbed(ModelConfig(backbone, PoolerConfig(num_latents=64, num_heads=2, head_dim=512)))
    made = made.to(dtype).requires_grad_(False).eval()
    made.fold_pooler()
    used = {}
    for length in (8192, 16384, 32768):
        batch, _ = packed((length,), 3, DEVICE)
        before = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        vector = made(batch)
        used[length] = torch.cuda.max_memory_allocated() - before
        assert torch.isfinite(vector).all()
        assert vector.norm().item() == pytest.approx(1, abs=1e-3)
    assert used[32768] < 2.3 * used[16384] < 2.3 * 2.3 * used[8192]
    assert used[32768] < 2 * 2**30


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two CUDA devices")
def test_two_devices_give_what_one_gives(on_cpu: Encoder) -> None:
    both = Encoder.from_pretrained(TINY_A, device=["cuda:0", "cuda:1"], dtype="float32")
    texts = [f"{text} {number}" for number in range(50) for text in TEXTS]
    got = both.encode(texts, batch_tokens=512)
    np.testing.assert_allclose(got, on_cpu.encode(texts, batch_tokens=512), atol=2e-5)


def test_a_device_that_is_not_here_is_said() -> None:
    from nvembed.errors import InputError

    count = torch.cuda.device_count()
    with pytest.raises(InputError, match=rf"device is 'cuda:{count}', but torch sees {count} CUDA"):
        Encoder.from_pretrained(TINY_A, device=f"cuda:{count}")


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_what_a_pause_computes_changes_nothing(dtype: str) -> None:
    """A server computes queries within a batch at work."""
    encoder = Encoder.from_pretrained(TINY_A, device=DEVICE, dtype=dtype)
    tokens, others = encoder.tokenizer(TEXTS * 20), encoder.tokenizer(["a query"])
    alone, expected = encoder.embed_tokens(tokens), encoder.embed_tokens(others)
    found: list[np.ndarray] = []
    around = encoder.embed_tokens(tokens, pause=lambda: found.append(encoder.embed_tokens(others)))
    np.testing.assert_array_equal(around, alone)
    assert found
    for vectors in found:
        np.testing.assert_array_equal(vectors, expected)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=ids_by_dtype)
def test_masters_in_the_hosts_memory_change_nothing(dtype: torch.dtype) -> None:
    told = read_recipe(data_path("recipes") / "nv_embed_v2" / "stage1.toml", StageRecipe).optimizer
    changes = {"steps": 10, "warmup_steps": 2, "learning_rate": 1e-2, "pooler_learning_rate": 1e-3}
    settings = told.model_copy(update=changes)
    found = {}
    for offload in (False, True):
        torch.manual_seed(1)
        weight = torch.nn.Parameter(torch.randn(64, 32, device=DEVICE, dtype=dtype))
        optimizer = Optimizer({"pooler.weight": weight}, settings.model_copy(update={"offload": offload}))
        for number in range(3):
            for _ in range(2):
                (weight * torch.randn_like(weight)).sum().backward()
                optimizer.collect()
            optimizer.step(number)
        state = optimizer.state()
        assert all(value.device.type == "cpu" for value in state.values()) or not offload
        assert weight.is_cuda
        again = Optimizer({"pooler.weight": weight}, settings.model_copy(update={"offload": offload}))
        again.load_state(state)
        found[offload] = weight.detach().clone()
    torch.testing.assert_close(
        found[True], found[False], atol=1e-6 if dtype == torch.float32 else 8e-3, rtol=0
    )


@pytest.fixture
def wide() -> NVEmbed:
    """Heads and layers of sizes that every kernel takes."""
    sizes = {"hidden_size": 256, "intermediate_size": 512, "num_heads": 4, "num_kv_heads": 2, "head_dim": 64}
    made = tiny_model(**sizes).requires_grad_(False).eval()
    made.fold_pooler()
    return made.to(DEVICE, torch.bfloat16)


@torch.inference_mode()
def test_graphs_repeat_the_padded_batch_to_the_last_bit(wide: NVEmbed) -> None:
    graph_short_texts(wide)
    assert wide.graphs is not None
    for length in (1, 16, 17, 60, 60, 200, 1024, 3):
        batch, _ = packed((length,), length, DEVICE)
        capacity = next(size for size in CAPACITIES if size >= length)
        vector = wide(batch)
        states = wide.graphs(batch)
        assert states is not None
        for filler in (0, 7):  # what the padding holds changes nothing
            ids = torch.full((capacity,), filler, device=DEVICE)
            ids[:length] = batch.input_ids
            offsets = torch.tensor([0, length, capacity], dtype=torch.int32, device=DEVICE)
            eager = wide.embedding_model(ids, Segments((capacity, 0), offsets))[:length]
            assert torch.equal(states, eager)
        assert torch.equal(wide.pool(eager, batch), vector)
        graphs, wide.graphs = wide.graphs, None
        torch.testing.assert_close(vector, wide(batch), atol=VECTOR_TOLERANCE[torch.bfloat16], rtol=0)
        wide.graphs = graphs


@pytest.mark.filterwarnings("ignore")  # of the compiler
@torch.inference_mode()
def test_compiled_layers_and_graphs_of_them(wide: NVEmbed) -> None:
    plain = copy.deepcopy(wide)
    compile_layers(wide)
    graph_short_texts(wide)
    for lengths in ((5, 130, 64, 64), (300, 1), (12,), (200,)):
        batch, _ = packed(lengths, 4, DEVICE)
        tolerance = VECTOR_TOLERANCE[torch.bfloat16]
        torch.testing.assert_close(wide(batch), plain(batch), atol=tolerance, rtol=0)


@pytest.mark.skipif(
    torch.cuda.is_available() and torch.cuda.get_device_capability() < (8, 9), reason="needs FP8 products"
)
@torch.inference_mode()
def test_fp8_is_near_bfloat16_and_independent_of_the_batch(wide: NVEmbed) -> None:
    plain = copy.deepcopy(wide)
    quantise(wide, "fp8")
    batch, alone = packed((5, 1, 130, 64, 400), 5, DEVICE)
    vectors = wide(batch)
    assert 0.97 < (vectors * plain(batch)).sum(1).min() < 1 - 1e-6
    apart = torch.cat([wide(one) for one in alone])
    torch.testing.assert_close(vectors, apart, atol=VECTOR_TOLERANCE[torch.bfloat16], rtol=0)


def test_a_stream_of_many_windows_is_each_text_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """Copies run while the device computes: no result may be read before it is there."""
    monkeypatch.setattr("nvembed.encoder.WINDOW_TEXTS", 7)
    encoder = Encoder.from_pretrained(TINY_A, device=DEVICE, dtype="float32")
    texts = [f"{text} {number}" for number in range(20) for text in TEXTS]
    parts = list(encoder.stream(texts, batch_tokens=300))
    assert [len(part.vectors) for part in parts] == [7] * 14 + [2]
    together = np.concatenate([part.vectors for part in parts])
    np.testing.assert_allclose(together, encoder.encode(texts, batch_tokens=100_000), atol=2e-5)
