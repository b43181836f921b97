"""Tiny random models in sentence-transformers' layout, written by that library itself."""

from pathlib import Path
from typing import Any

import tiny_lm
import torch
import transformers
from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer.modules import Dense, Normalize, Pooling, Transformer
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors, trainers

SIZES: dict[str, Any] = {
    "vocab_size": 320, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2,
    "num_attention_heads": 4,
}  # fmt: skip
DECODER: dict[str, Any] = {**SIZES, "num_key_value_heads": 2, "head_dim": 16, "max_position_embeddings": 96}
EMBEDDING_GEMMA_2: dict[str, Any] = {
    **DECODER, "global_head_dim": 24, "num_global_key_value_heads": 1, "sliding_window": 8,
    "sliding_window_pattern": 2, "hidden_size_per_layer_input": 12, "embedding_dim": 40,
}  # fmt: skip


def wordpiece() -> Tokenizer:
    made = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    made.normalizer = normalizers.BertNormalizer()
    made.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]"]
    trainer = trainers.WordPieceTrainer(vocab_size=320, special_tokens=special, show_progress=False)
    made.train_from_iterator(tiny_lm.CORPUS, trainer)
    made.post_processor = processors.TemplateProcessing("[CLS] $A [SEP]", None, [("[CLS]", 2), ("[SEP]", 3)])
    return made


def unigram() -> Tokenizer:
    made = Tokenizer(models.Unigram())
    made.normalizer = normalizers.NFKC()
    made.pre_tokenizer = pre_tokenizers.Metaspace()
    special = ["<s>", "<pad>", "</s>", "<unk>"]
    trainer = trainers.UnigramTrainer(
        vocab_size=300, special_tokens=special, unk_token="<unk>", show_progress=False
    )
    made.train_from_iterator(tiny_lm.CORPUS, trainer)
    made.post_processor = processors.TemplateProcessing("<s> $A </s>", None, [("<s>", 0), ("</s>", 2)])
    return made


def byte_level(template: str = "$A <|endoftext|>") -> Tokenizer:
    made = tiny_lm.tokenizer(320)
    tokens = [("<|endoftext|>", 0), ("<|im_start|>", 1)]
    made.post_processor = processors.TemplateProcessing(template, None, tokens)
    return made


# name -> config, its tokenizer, the token that pads
MODELS: dict[str, tuple[transformers.PretrainedConfig, Any, str]] = {
    "bert": (transformers.BertConfig(**SIZES, max_position_embeddings=96), wordpiece, "[PAD]"),
    "xlm-roberta": (
        transformers.XLMRobertaConfig(**SIZES, max_position_embeddings=98, type_vocab_size=1),
        unigram,
        "<pad>",
    ),
    "mpnet": (transformers.MPNetConfig(**SIZES, max_position_embeddings=98), unigram, "<pad>"),
    "distilbert": (
        transformers.DistilBertConfig(
            vocab_size=320, dim=32, hidden_dim=48, n_layers=2, n_heads=4, max_position_embeddings=96
        ),
        wordpiece,
        "[PAD]",
    ),
    "modernbert": (
        transformers.ModernBertConfig(
            **SIZES, local_attention=8, global_attn_every_n_layers=2, max_position_embeddings=96,
            pad_token_id=1, bos_token_id=0, eos_token_id=2, cls_token_id=0, sep_token_id=2,
        ),
        unigram,
        "<pad>",
    ),
    "gemma3": (
        transformers.Gemma3TextConfig(
            **DECODER, sliding_window=8, query_pre_attn_scalar=16, use_bidirectional_attention=True,
            sliding_window_pattern=2,
        ),
        byte_level,
        "<|im_end|>",
    ),
    "embedding_gemma2_text": (
        transformers.EmbeddingGemma2TextConfig(**EMBEDDING_GEMMA_2), byte_level, "<|im_end|>"
    ),
    "mistral": (transformers.MistralConfig(**DECODER, sliding_window=12), byte_level, "<|im_end|>"),
    "ministral3": (transformers.Ministral3Config(**DECODER), byte_level, "<|im_end|>"),
    "llama": (transformers.LlamaConfig(**DECODER), byte_level, "<|im_end|>"),
    "qwen2": (transformers.Qwen2Config(**SIZES, num_key_value_heads=2), byte_level, "<|im_end|>"),
    "qwen3": (transformers.Qwen3Config(**DECODER), byte_level, "<|im_end|>"),
}  # fmt: skip


def transformer_folder(path: Path, name: str) -> Path:
    """Write a transformers folder with random weights, norms and biases included."""
    config, tokenizer, pad = MODELS[name]
    torch.manual_seed(0)
    model = transformers.AutoModel.from_config(config)
    with torch.no_grad():
        for key, value in model.named_parameters():
            value.normal_(0.2 if value.ndim == 1 else 0.0, 0.2 if "embed" not in key else 1.0)
    model.save_pretrained(path)
    made = tokenizer()
    last = {"[PAD]": "[SEP]", "<pad>": "</s>"}.get(pad, "<|endoftext|>")  # known as special
    fast = transformers.PreTrainedTokenizerFast(tokenizer_object=made, pad_token=pad, eos_token=last)
    fast.save_pretrained(path)
    return path


def sentence_folder(
    path: Path,
    name: str = "bert",
    *,
    pooling: str = "mean",
    dense: tuple[int, ...] = (),
    normalize: bool = True,
    max_length: int | None = 24,
    **settings: Any,
) -> SentenceTransformer:
    """Write ``path`` and return the library's own model of it."""
    transformer = Transformer(
        str(transformer_folder(path.with_name("backbone"), name)), max_seq_length=max_length
    )
    size = transformer.get_embedding_dimension()
    include_prompt = settings.pop("include_prompt", True)
    modules: list[Any] = [transformer, Pooling(size, pooling, include_prompt=include_prompt)]
    for out in dense:
        modules.append(Dense(size, out, activation_function=torch.nn.Tanh()))
        size = out
    modules += [Normalize()] if normalize else []
    SentenceTransformer(modules=modules, device="cpu", **settings).save(str(path), create_model_card=False)
    return SentenceTransformer(str(path), device="cpu")
