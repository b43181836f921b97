"""What only a GPU can show: the varlen kernel, half precision, long texts, several devices.

The oracles are float64 attention and the same model on CPU. ``DEVICE`` is one line, so that the tests' own
logic can be tried without a GPU.
"""

import copy
import itertools

import numpy as np
import pytest
import torch

from conftest import TINY_A, tiny_backbone, tiny_model
from helpers.attention_oracle import attention_oracle
from nvembed.encoder import Encoder
from nvembed.files import data_path
from nvembed.model.attention import Segments, attention
from nvembed.model.config import ModelConfig, PoolerConfig
from nvembed.model.nv_embed import NVEmbed, PackedBatch
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
