"""Folders of sentence-transformers, against that library on the same folder."""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from sentence_transformers import SentenceTransformer
from sentence_transformers.base.modules import transformer as transformer_module
from sentence_transformers.sentence_transformer.modules import Dropout, Normalize, Pooling, Transformer
from tiny_sentence import EMBEDDING_GEMMA_2, MODELS, byte_level, sentence_folder, transformer_folder

from conftest import TINY_A
from nvembed.encoder import Encoder
from nvembed.errors import ConfigError, InputError, NvembedError, WeightsError

# an empty text and texts that are cut are part of what is compared
pytestmark = pytest.mark.filterwarnings("ignore:.*of . texts:")

TEXTS = [
    "The judge threw 12 people out of 345 courts.",
    "",
    "it's",
    "Étude naïve — déjà vu, 日本語のテキスト",
    "apples; we'll see! " * 12,
    "def f(x):\n    return x ** 2",
    "  spaces before and after  ",
]


def changed(path: Path, **values: Any) -> None:
    content = json.loads(path.read_text())
    path.write_text(json.dumps({**content, **values}))


@pytest.mark.parametrize("prompt", ["", "query: "])
@pytest.mark.parametrize("name", MODELS)
def test_every_architecture(tmp_path: Path, name: str, prompt: str) -> None:
    pooling = "lasttoken" if name in ("llama", "qwen2", "qwen3", "mistral", "ministral3") else "mean"
    theirs = sentence_folder(tmp_path / "model", name, pooling=pooling)
    ours = Encoder.from_pretrained(tmp_path / "model")
    vectors = ours.encode(TEXTS, prompt=prompt)
    expected = theirs.encode(TEXTS, prompt=prompt)
    np.testing.assert_allclose(vectors, expected, atol=1e-5)
    alone = np.concatenate([part.vectors for text in TEXTS for part in ours.stream([text], prompt=prompt)])
    np.testing.assert_allclose(vectors, alone, atol=1e-5)


@pytest.mark.parametrize("include_prompt", [True, False])
@pytest.mark.parametrize(
    "pooling", ["cls", "mean", "max", "mean_sqrt_len_tokens", "weightedmean", "lasttoken"]
)
def test_poolings_and_prompts(tmp_path: Path, pooling: str, include_prompt: bool) -> None:
    if pooling == "weightedmean" and not include_prompt:
        pytest.skip("refused: see test_refused")
    prompts = {"query": "query: ", "document": "passage: ", "STS": "sts: "}
    theirs = sentence_folder(
        tmp_path / "model", pooling=pooling, include_prompt=include_prompt, prompts=prompts,
        default_prompt_name="STS", max_length=64,
    )  # fmt: skip
    ours = Encoder.from_pretrained(tmp_path / "model")
    texts = [text for text in TEXTS if len(text) < 60]
    for got, expected in (
        (ours.encode(texts), theirs.encode(texts)),
        (ours.encode_query(texts), theirs.encode_query(texts)),
        (ours.encode_document(texts), theirs.encode_document(texts)),
        (ours.encode_query(texts, task="STS"), theirs.encode(texts, prompt_name="STS")),
    ):
        np.testing.assert_allclose(got, expected, atol=1e-5)


def test_dense_layers_truncated_dimensions_and_a_missing_normalize(tmp_path: Path) -> None:
    theirs = sentence_folder(tmp_path / "model", dense=(48, 20), normalize=False, truncate_dim=8)
    ours = Encoder.from_pretrained(tmp_path / "model")
    vectors = ours.encode(TEXTS[:1])
    expected = theirs.encode(TEXTS[:1])
    assert vectors.shape == (1, 8)
    np.testing.assert_allclose(vectors, expected / np.linalg.norm(expected, axis=1, keepdims=True), atol=1e-5)


def test_lower_case(tmp_path: Path) -> None:
    sentence_folder(tmp_path / "model", "xlm-roberta")
    changed(tmp_path / "model" / "sentence_bert_config.json", do_lower_case=True)
    ours = Encoder.from_pretrained(tmp_path / "model")
    np.testing.assert_allclose(ours.encode(["THE Judge"]), ours.encode(["the judge"]), atol=1e-6)


def test_an_instruction_takes_the_place_of_the_models_own(tmp_path: Path) -> None:
    own = "Instruct: Given a web search query, retrieve relevant passages\nQuery: "
    sentence_folder(tmp_path / "model", prompts={"query": own, "document": ""})
    ours = Encoder.from_pretrained(tmp_path / "model")
    assert ours.prompt() == own
    assert ours.prompt(instruction="Find the law") == "Instruct: Find the law\nQuery: "
    with pytest.raises(InputError, match=r"no prompt 'qury'.*query"):
        ours.prompt(task="qury")


def test_titles(tmp_path: Path) -> None:
    """As embeddinggemma's card: ``title: {title | "none"} | text: {content}``."""
    theirs = sentence_folder(
        tmp_path / "model", prompts={"query": "q: ", "document": "title: none | text: "}, max_length=None
    )
    ours = Encoder.from_pretrained(tmp_path / "model")
    texts, titles = ["The judge threw 12 people out.", "it's the third", "no title"], ["Judo", " it's ", ""]
    whole = ["title: Judo | text: The judge threw 12 people out.", "title: it's | text: it's the third",
             "title: none | text: no title"]  # fmt: skip
    expected = theirs.encode(whole, prompt="")
    np.testing.assert_allclose(ours.encode_document(texts, titles=titles), expected, atol=1e-5)
    np.testing.assert_allclose(ours.encode_document(texts), theirs.encode_document(texts), atol=1e-5)
    with pytest.raises(InputError, match="2 titles for 3 texts"):
        ours.encode_document(texts, titles=["a", "b"])


def test_titles_without_a_place_for_them_go_before_the_text(tmp_path: Path) -> None:
    sentence_folder(tmp_path / "model", prompts={"document": "passage: "})
    ours = Encoder.from_pretrained(tmp_path / "model")
    got = ours.encode_document(["threw", "x"], titles=["The judge", ""])
    np.testing.assert_allclose(got, ours.encode_document(["The judge threw", "x"]), atol=1e-6)


def test_a_title_that_would_not_be_pooled_is_refused(tmp_path: Path) -> None:
    prompts = {"document": "title: none | text: "}
    sentence_folder(tmp_path / "model", include_prompt=False, prompts=prompts)
    with pytest.raises(ConfigError, match="title"):
        Encoder.from_pretrained(tmp_path / "model")


def test_a_model_without_a_place_for_instructions_refuses_them(tmp_path: Path) -> None:
    sentence_folder(tmp_path / "model", prompts={"query": "query: "})
    ours = Encoder.from_pretrained(tmp_path / "model")
    with pytest.raises(InputError, match="no instruction to replace"):
        ours.encode_query(["a"], instruction="Find the law")


def test_eos_that_the_tokenizer_file_lacks_is_appended_and_said(tmp_path: Path) -> None:
    """As in e5-mistral: tokenizer_config.json asks for an EOS that tokenizer.json does not add."""
    with_eos = sentence_folder(tmp_path / "model", "mistral", pooling="lasttoken")
    folder = tmp_path / "model"
    byte_level("<|im_start|> $A").save(str(folder / "tokenizer.json"))
    changed(folder / "tokenizer_config.json", add_eos_token=True, eos_token="<|endoftext|>")
    with pytest.warns(UserWarning, match="add_eos_token"):
        ours = Encoder.from_pretrained(folder)
    [tokens] = ours.tokenizer(["it's"])
    assert tokens.input_ids[0] == 1
    assert tokens.input_ids[-1] == 0
    assert with_eos.tokenizer("it's")["input_ids"][-1] == 0


def test_embedding_gemma2_with_a_vision_tower(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of the whole model the text tower is read, as the library reads texts with it."""
    text = transformers.EmbeddingGemma2TextConfig(**EMBEDDING_GEMMA_2)
    sizes = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    vision = {"model_type": "gemma4_vision", **sizes, "num_key_value_heads": 2, "head_dim": 8}
    config = transformers.EmbeddingGemma2Config(text_config=text.to_dict(), vision_config=vision)
    model = transformers.AutoModel.from_config(config)
    assert {name.partition(".")[0] for name in model.state_dict()} == {
        "language_model", "vision_tower", "embed_vision",
    }  # fmt: skip
    torch.manual_seed(0)
    with torch.no_grad():
        for name, value in model.named_parameters():
            value.normal_(0.2 if value.ndim == 1 else 0.0, 0.2 if "embed" not in name else 1.0)
    backbone = tmp_path / "backbone"
    model.save_pretrained(backbone)
    tokenizer = transformers.PreTrainedTokenizerFast(
        tokenizer_object=byte_level(), pad_token="<|im_end|>", eos_token="<|endoftext|>"
    )
    tokenizer.save_pretrained(backbone)
    # the processor of images needs torchvision; texts are read by the tokenizer alone
    monkeypatch.setattr(transformer_module, "AutoProcessor", transformers.AutoTokenizer)
    transformer = Transformer(str(backbone))
    prompts = {"query": "task: search result | query: ", "document": "title: none | text: "}
    theirs = SentenceTransformer(
        modules=[transformer, Pooling(40, "mean"), Normalize()], device="cpu", prompts=prompts
    )
    theirs.save(str(tmp_path / "model"), create_model_card=False)
    ours = Encoder.from_pretrained(tmp_path / "model")
    assert ours.dim == 40
    texts = [text for text in TEXTS if len(text) < 60]
    np.testing.assert_allclose(ours.encode(texts), theirs.encode(texts), atol=1e-5)
    np.testing.assert_allclose(ours.encode_query(texts), theirs.encode_query(texts), atol=1e-5)
    with pytest.raises(InputError, match="bfloat16"):
        Encoder.from_pretrained(tmp_path / "model", dtype="float16")


@pytest.mark.parametrize(
    ("settings", "normalizer"),
    [
        ({"tokenizer_class": "BertTokenizer", "do_lower_case": True}, {"lowercase": False}),
        ({"tokenizer_class": "BertTokenizerFast", "do_lower_case": False}, {"lowercase": True}),
        ({"tokenizer_class": None, "do_lower_case": True}, {"lowercase": False}),  # a BERT model
        ({"tokenizer_class": "BertTokenizer", "strip_accents": False}, {"strip_accents": None}),
        ({"tokenizer_class": "BertTokenizer", "tokenize_chinese_chars": False}, {}),
        ({"tokenizer_class": "PreTrainedTokenizerFast", "do_lower_case": True}, {"lowercase": False}),
    ],
    ids=lambda value: "-".join(map(str, value.values())),
)
def test_a_normalizer_that_the_tokenizers_two_files_contradict(
    tmp_path: Path, settings: dict[str, Any], normalizer: dict[str, Any]
) -> None:
    """The classes of WordPiece tokenizers follow tokenizer_config.json; others follow tokenizer.json."""
    sentence_folder(tmp_path / "model")
    folder = tmp_path / "model"
    form = json.loads((folder / "tokenizer.json").read_text())
    form["normalizer"] |= normalizer
    (folder / "tokenizer.json").write_text(json.dumps(form))
    unchanged = Encoder.from_pretrained(folder).fingerprint if not normalizer else None
    changed(folder / "tokenizer_config.json", **settings)
    theirs = SentenceTransformer(str(folder), device="cpu")
    if settings["tokenizer_class"] == "PreTrainedTokenizerFast":
        ours = Encoder.from_pretrained(folder)
    else:
        with pytest.warns(UserWarning, match="tokenizer_config.json is followed"):
            ours = Encoder.from_pretrained(folder)
    assert ours.fingerprint != unchanged
    np.testing.assert_allclose(ours.encode(TEXTS), theirs.encode(TEXTS), atol=1e-5)


def test_bos_that_the_tokenizer_file_lacks_is_prepended_and_reported(tmp_path: Path) -> None:
    """Where tokenizer_config.json asks for both tokens, a text has both."""
    both = sentence_folder(tmp_path / "model", "mistral", pooling="lasttoken")
    folder = tmp_path / "model"
    byte_level("<|im_start|> $A <|endoftext|>").save(str(folder / "tokenizer.json"))
    tokens = {"bos_token": "<|im_start|>", "eos_token": "<|endoftext|>"}
    both = SentenceTransformer(str(folder), device="cpu")
    content = json.loads((folder / "tokenizer.json").read_text())
    (folder / "tokenizer.json").write_text(json.dumps({**content, "post_processor": None}))
    changed(folder / "tokenizer_config.json", add_bos_token=True, add_eos_token=True, **tokens)
    with pytest.warns(UserWarning, match="add_bos_token"), pytest.warns(UserWarning, match="add_eos_token"):
        ours = Encoder.from_pretrained(folder)
    np.testing.assert_allclose(ours.encode(TEXTS), both.encode(TEXTS), atol=1e-5)


@pytest.mark.parametrize(
    ("name", "values"),
    [
        ("mistral", {"is_causal": False, "sliding_window": 6}),
        ("mistral", {"is_causal": True, "sliding_window": 6}),
        ("mistral", {"is_causal": False, "sliding_window": None}),
        ("qwen3", {"is_causal": False}),
        ("gemma3", {"is_causal": False, "use_bidirectional_attention": None, "sliding_window": 6}),
        ("gemma3", {"use_bidirectional_attention": None, "sliding_window": 6}),
    ],
    ids=lambda value: value if isinstance(value, str) else "-".join(map(str, value.values())),
)
def test_windows_and_directions_of_attention(tmp_path: Path, name: str, values: dict[str, Any]) -> None:
    """In both directions, a window is a radius that includes its last token; in one, it is one shorter."""
    sentence_folder(tmp_path / "model", name, max_length=None)
    changed(tmp_path / "model" / "config.json", **values)
    theirs = SentenceTransformer(str(tmp_path / "model"), device="cpu")
    ours = Encoder.from_pretrained(tmp_path / "model")
    np.testing.assert_allclose(ours.encode(TEXTS), theirs.encode(TEXTS), atol=1e-5)


@pytest.mark.parametrize(
    "values",
    [
        {"max_seq_length": 24, "tokenizer_args": {"model_max_length": 6}},
        {"max_seq_length": 24, "processing_kwargs": {"text": {"max_length": 6, "truncation": True}}},
        {"max_seq_length": 24, "model_args": {"attn_implementation": "eager"}, "unpad_inputs": None},
    ],
    ids=lambda value: list(value)[1],
)
def test_other_places_of_the_transformers_settings(tmp_path: Path, values: dict[str, Any]) -> None:
    sentence_folder(tmp_path / "model")
    changed(tmp_path / "model" / "sentence_bert_config.json", **values)
    theirs = SentenceTransformer(str(tmp_path / "model"), device="cpu")
    ours = Encoder.from_pretrained(tmp_path / "model")
    np.testing.assert_allclose(ours.encode(TEXTS), theirs.encode(TEXTS), atol=1e-5)


def test_modules_without_an_effect(tmp_path: Path) -> None:
    """Dropout is for training; normalising twice is normalising once."""
    backbone = Transformer(str(transformer_folder(tmp_path / "backbone", "bert")))
    modules = [backbone, Pooling(32, "mean"), Dropout(0.5), Normalize(), Normalize()]
    theirs = SentenceTransformer(modules=modules, device="cpu")
    theirs.save(str(tmp_path / "model"), create_model_card=False)
    ours = Encoder.from_pretrained(tmp_path / "model")
    np.testing.assert_allclose(ours.encode(TEXTS), theirs.encode(TEXTS), atol=1e-5)


def test_a_similarity_that_orders_unit_vectors_otherwise_is_reported(tmp_path: Path) -> None:
    sentence_folder(tmp_path / "model", similarity_fn_name="manhattan")
    with pytest.warns(UserWarning, match="manhattan"):
        Encoder.from_pretrained(tmp_path / "model")


def test_the_template_wins_over_the_name_of_the_eos_token(tmp_path: Path) -> None:
    """As in Qwen3-Embedding: the tokenizer appends another token than the one that is called EOS."""
    sentence_folder(tmp_path / "model", "qwen3", pooling="lasttoken")
    folder = tmp_path / "model"
    changed(folder / "tokenizer_config.json", eos_token="<|im_end|>")
    changed(folder / "config.json", eos_token_id=2)
    theirs, ours = SentenceTransformer(str(folder), device="cpu"), Encoder.from_pretrained(folder)
    [tokens] = ours.tokenizer(["it's"])
    assert tokens.input_ids[-1] == theirs.tokenizer("it's")["input_ids"][-1] == 0
    np.testing.assert_allclose(ours.encode(TEXTS), theirs.encode(TEXTS), atol=1e-5)


@pytest.mark.parametrize("pooling", ["lasttoken", "mean"])
def test_padding_on_the_left_makes_no_difference(tmp_path: Path, pooling: str) -> None:
    """Packed texts have no padding; a model whose tokenizer pads on the left gives the same vectors."""
    sentence_folder(tmp_path / "model", "qwen3", pooling=pooling, max_length=None)
    folder = tmp_path / "model"
    right = Encoder.from_pretrained(folder).encode(TEXTS)
    changed(folder / "tokenizer_config.json", padding_side="left")
    theirs = SentenceTransformer(str(folder), device="cpu")
    assert theirs.tokenizer.padding_side == "left"
    ours = Encoder.from_pretrained(folder).encode(TEXTS)
    np.testing.assert_array_equal(ours, right)
    np.testing.assert_allclose(ours, theirs.encode(TEXTS), atol=1e-5)


@pytest.mark.parametrize(
    ("own", "tokenizer", "expected"),
    [
        ({"max_seq_length": 24}, {"model_max_length": 30}, 24),
        ({}, {"model_max_length": 30}, 30),
        ({}, {}, 96),
    ],
)
def test_places_of_the_longest_text(
    tmp_path: Path, own: dict[str, int], tokenizer: dict[str, int], expected: int
) -> None:
    sentence_folder(tmp_path / "model", max_length=None)
    folder = tmp_path / "model"
    for name, values in (("sentence_bert_config.json", own), ("tokenizer_config.json", tokenizer)):
        content = json.loads((folder / name).read_text())
        content = {key: value for key, value in content.items() if "max" not in key}
        (folder / name).write_text(json.dumps({**content, **values}))
    theirs, ours = SentenceTransformer(str(folder), device="cpu"), Encoder.from_pretrained(folder)
    assert ours.max_length == expected
    assert theirs.max_seq_length in (expected, None)
    short = [text for text in TEXTS if len(text) < 60] if expected == 96 else TEXTS
    np.testing.assert_allclose(ours.encode(short), theirs.encode(short), atol=1e-5)


def test_the_layout_of_version_2(tmp_path: Path) -> None:
    """The model in 0_Transformer, its settings in a file of the model's kind, booleans for the pooling."""
    sentence_folder(tmp_path / "model", "xlm-roberta", pooling="cls", max_length=20)
    folder, inner = tmp_path / "model", tmp_path / "model" / "0_Transformer"
    inner.mkdir()
    for path in list(folder.iterdir()):
        if path.is_file() and path.name not in ("modules.json", "config_sentence_transformers.json"):
            path.rename(inner / path.name)
    (inner / "sentence_bert_config.json").unlink()
    settings = {"max_seq_length": 20, "do_lower_case": True}
    (inner / "sentence_xlm-roberta_config.json").write_text(json.dumps(settings))
    modules = json.loads((folder / "modules.json").read_text())
    modules[0]["path"] = "0_Transformer"
    for module, kind in zip(modules, ("Transformer", "Pooling", "Normalize"), strict=True):
        module["type"] = f"sentence_transformers.models.{kind}"
    (folder / "modules.json").write_text(json.dumps(modules))
    (folder / "config_sentence_transformers.json").unlink()
    pooling = {
        "word_embedding_dimension": 32,
        "pooling_mode_cls_token": True,
        "pooling_mode_mean_tokens": False,
    }
    (folder / "1_Pooling" / "config.json").write_text(json.dumps(pooling))
    theirs, ours = SentenceTransformer(str(folder), device="cpu"), Encoder.from_pretrained(folder)
    assert ours.max_length == theirs.max_seq_length == 20
    np.testing.assert_allclose(ours.encode(TEXTS), theirs.encode(TEXTS), atol=1e-5)


def test_a_tokenizer_without_the_token_that_is_pooled(tmp_path: Path) -> None:
    folder = transformer_folder(tmp_path / "plain", "bert")
    tokenizer = json.loads((folder / "tokenizer.json").read_text())
    (folder / "tokenizer.json").write_text(json.dumps({**tokenizer, "post_processor": None}))
    with pytest.raises(ConfigError, match="no special token before a text"):
        Encoder.from_pretrained(folder, pooling="cls")
    with pytest.warns(UserWarning, match="no special token after a text"):
        Encoder.from_pretrained(folder, pooling="last")
    changed(folder / "tokenizer_config.json", add_eos_token=True, eos_token="</never>")
    with pytest.raises(ConfigError, match="</never>"):
        Encoder.from_pretrained(folder, pooling="last")


def test_plain_folder(tmp_path: Path) -> None:
    """A folder without modules.json opens where its pooling is known, and is asked about where not."""
    folder = transformer_folder(tmp_path / "plain", "bert")
    with pytest.raises(ConfigError, match="pooling"):
        Encoder.from_pretrained(folder)
    named = Encoder.from_pretrained(folder, pooling="mean").encode(TEXTS[:1])
    changed(folder / "config.json", pooling="avg")
    np.testing.assert_array_equal(Encoder.from_pretrained(folder).encode(TEXTS[:1]), named)


def test_a_snapshot_of_the_hub_without_its_modules(tmp_path: Path) -> None:
    """What another library left in the cache: weights and tokenizer, no pooling and no prompts."""
    commit = "0" * 40
    folder = transformer_folder(tmp_path / "models--owner--name" / "snapshots" / commit, "bert")
    with pytest.raises(ConfigError, match=r"modules\.json.*hf download owner/name"):
        Encoder.from_pretrained(folder)
    with pytest.warns(UserWarning, match=r"no modules\.json.*hf download owner/name"):
        Encoder.from_pretrained(folder, pooling="mean")
    marks = tmp_path / "models--owner--name" / ".no_exist" / commit
    marks.mkdir(parents=True)
    for name in ("modules.json", "config_sentence_transformers.json"):
        (marks / name).touch()  # as the hub's client marks what a commit does not have
    Encoder.from_pretrained(folder, pooling="mean")


def test_a_causal_model_that_its_config_calls_bidirectional(tmp_path: Path) -> None:
    folder = transformer_folder(tmp_path / "plain", "llama")
    causal = Encoder.from_pretrained(folder, pooling="mean").encode(TEXTS[:1])
    changed(folder / "config.json", is_causal=False)
    both = Encoder.from_pretrained(folder, pooling="mean").encode(TEXTS[:1])
    assert np.abs(causal - both).max() > 1e-3


def test_saved_again(tmp_path: Path) -> None:
    sentence_folder(tmp_path / "model", dense=(16,))
    (tmp_path / "model" / "modeling_x.py").write_text("import os")
    ours = Encoder.from_pretrained(tmp_path / "model")
    ours.save_pretrained(tmp_path / "copy")
    again = Encoder.from_pretrained(tmp_path / "copy")
    np.testing.assert_array_equal(ours.encode(TEXTS[:1]), again.encode(TEXTS[:1]))
    assert again.fingerprint == ours.fingerprint
    assert not list((tmp_path / "copy").rglob("*.py"))


def test_a_folder_of_nv_embed_with_a_modules_file(tmp_path: Path) -> None:
    """The released folder is in both layouts: its config.json says which model it is."""
    folder = tmp_path / "released"
    shutil.copytree(TINY_A, folder)
    modules = [{"idx": 0, "name": "0", "path": "", "type": "sentence_transformers.models.Transformer"}]
    (folder / "modules.json").write_text(json.dumps(modules))
    got = Encoder.from_pretrained(folder).encode(TEXTS[:1])
    np.testing.assert_array_equal(got, Encoder.from_pretrained(TINY_A).encode(TEXTS[:1]))


def _unknown_module(folder: Path) -> None:
    modules = json.loads((folder / "modules.json").read_text())
    modules[1]["type"] = "my_code.Pooling"
    (folder / "modules.json").write_text(json.dumps(modules))


def _outside(folder: Path) -> None:
    modules = json.loads((folder / "modules.json").read_text())
    modules[1]["path"] = "../elsewhere"
    (folder / "modules.json").write_text(json.dumps(modules))


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (_unknown_module, "my_code.Pooling"),
        (_outside, "inside the model"),
        (lambda folder: (folder / "1_Pooling" / "config.json").unlink(), "names the pooling"),
        (lambda folder: (folder / "tokenizer.json").unlink(), "tokenizer.json"),
        (lambda folder: (folder / "model.safetensors").unlink(), "no weights"),
        (lambda folder: changed(folder / "config.json", auto_map={"AutoModel": "x.Y"}), "code of its own"),
        (lambda folder: changed(folder / "config.json", model_type="t5"), "t5"),
        (lambda folder: changed(folder / "config.json", hidden_size=16), "pools vectors of 32"),
        (lambda folder: changed(folder / "2_Dense" / "config.json", in_features=7), "in_features 7"),
        (lambda folder: changed(folder / "2_Dense" / "config.json", out_features=9), "do not fit"),
        (lambda folder: changed(folder / "2_Dense" / "config.json", activation_function="x.Wave"), "Wave"),
        (
            lambda folder: changed(
                folder / "1_Pooling" / "config.json", pooling_mode="weightedmean", include_prompt=False
            ),
            "weightedmean",
        ),
        (lambda folder: changed(folder / "2_Dense" / "config.json", use_residual=True), "use_residual True"),
        (
            lambda folder: changed(folder / "2_Dense" / "config.json", module_output_name="other"),
            "writes other",
        ),
        (
            lambda folder: changed(
                folder / "sentence_bert_config.json", config_args={"num_hidden_layers": 1}
            ),
            "config_args with num_hidden_layers",
        ),
        (
            lambda folder: changed(folder / "sentence_bert_config.json", transformer_task="fill-mask"),
            "fill-mask",
        ),
        (
            lambda folder: changed(
                folder / "sentence_bert_config.json",
                modality_config={"text": {"method": "get_text_features", "method_output_name": None}},
            ),
            "get_text_features",
        ),
        (lambda folder: (folder / "modules.json").write_text("[" * 100_000), "modules.json"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_refused(tmp_path: Path, damage: Any, message: str) -> None:
    sentence_folder(tmp_path / "model", dense=(16,))
    damage(tmp_path / "model")
    with pytest.raises((ConfigError, WeightsError), match=message):
        Encoder.from_pretrained(tmp_path / "model")


def test_vectors_compared_by_dot_product_are_refused(tmp_path: Path) -> None:
    sentence_folder(tmp_path / "model", normalize=False, similarity_fn_name="dot")
    with pytest.raises(ConfigError, match="dot"):
        Encoder.from_pretrained(tmp_path / "model")


def test_gemma_in_float16_is_refused(tmp_path: Path) -> None:
    sentence_folder(tmp_path / "model", "gemma3")
    with pytest.raises(InputError, match="bfloat16"):
        Encoder.from_pretrained(tmp_path / "model", dtype="float16")


def test_a_text_with_a_token_beyond_the_models_rows(tmp_path: Path) -> None:
    """As in embeddinggemma-300m, whose tokenizer knows a token of images that the model does not embed."""
    sentence_folder(tmp_path / "model", "bert")
    path = tmp_path / "model" / "tokenizer.json"
    content = json.loads(path.read_text())
    token = {"id": 320, "content": "<image>", "special": True}
    flags = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)
    content["added_tokens"].append({**token, **flags})
    size = max(content["model"]["vocab"].values()) + 1
    content["added_tokens"][-1]["id"] = size
    changed(tmp_path / "model" / "config.json", vocab_size=320)
    path.write_text(json.dumps(content))
    ours = Encoder.from_pretrained(tmp_path / "model")
    if size >= 320:
        with pytest.raises(NvembedError, match="<image>"):
            ours.encode(["an <image> here"])
    assert np.isfinite(ours.encode(["none here"])).all()
