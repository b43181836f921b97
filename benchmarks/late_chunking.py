"""Does late chunking retrieve better than plain chunks?

For each set of long documents: the same passages, embedded one by one and pooled from passes over the whole
document; a document's score is that of its best passage. nDCG@10 and recall@10 with paired tests.

    python benchmarks/late_chunking.py MODEL [MODEL ...] --data DATA/long --sets qmsum_summary_to_meeting

Results of earlier calls are kept.
"""

import argparse
import gzip
import json
import os
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch

from encode_cpu import cpu_name
from nvembed.encoder import Encoder
from nvembed.evaluate.choose import Material, Measurement, best_passages, first_rows, judged
from nvembed.read.beir import read_qrels
from nvembed.read.chunk import cut_texts
from nvembed.text.late import LateDocument
from real_models import NAMES

COLUMNS = ("model", "set", "documents", "questions", "chunk_tokens", "window_tokens")
RESULTS = Path(__file__).parent / "results"


def records(folder: Path, name: str) -> dict[str, dict[str, str]]:
    path = next(folder.glob(f"{name}.jsonl*"))
    with (gzip.open if path.suffix == ".gz" else open)(path, "rt", encoding="utf-8") as lines:
        return {row["_id"]: row for row in map(json.loads, lines)}


def measure(encoder: Encoder, folder: Path, options: argparse.Namespace) -> dict[str, Any]:
    queries = {id_: row["text"] for id_, row in records(folder, "queries").items()}
    corpus = {id_: row["text"] for id_, row in records(folder, "corpus").items()}
    path = max((folder / "qrels").glob("*.tsv"), key=lambda path: path.name == "test.tsv")
    qrels = read_qrels(path, queries=queries, passages=corpus)
    kept = {document for grades in qrels.values() for document in grades}
    corpus = {id_: corpus[id_] for id_ in [*kept, *(id_ for id_ in corpus if id_ not in kept)]}
    corpus = dict(list(corpus.items())[: options.documents])
    qrels = {query: grades for query, grades in qrels.items() if set(grades) <= set(corpus)}
    questions = {query: queries[query] for query in list(qrels)[: options.questions]}
    texts = list(corpus.values())
    sizes = {"max_tokens": options.chunk_tokens, "overlap": options.chunk_tokens // 8}
    cuts = list(cut_texts(texts, encoder.tokenizer.offsets, **sizes))
    passages = [[text[a:b] for a, b in each] for text, each in zip(texts, cuts, strict=True)]
    flat = [passage for each in passages for passage in each]
    material = Material(list(corpus), flat, first_rows(passages), questions)
    prompt = encoder.document_prompt()
    documents = [LateDocument.of(text, each, prompt) for text, each in zip(texts, cuts, strict=True)]
    asked = encoder.encode_query(list(questions.values()))
    limit = min(options.max_length or encoder.max_length, encoder.max_length)
    result: dict[str, Any] = {}
    qualities = {}
    for name in ("plain", "late"):
        start = time.perf_counter()
        parts = (
            encoder.stream(flat, prompt=prompt)
            if name == "plain"
            else encoder.stream_late(documents, max_length=limit)
        )
        vectors = np.concatenate([part.vectors for part in parts])
        seconds = time.perf_counter() - start
        own = judged(Measurement(best_passages(asked @ vectors.T, material)), material, qrels)
        qualities[name] = own
        result[name] = {key: round(float(values.mean()), 4) for key, values in own.values.items()}
        result[name]["seconds"] = round(seconds, 1)
    return {
        "documents": len(corpus),
        "passages": len(flat),
        "questions": len(questions),
        "chunk_tokens": options.chunk_tokens,
        "window_tokens": limit,
        **result,
        "p": round(qualities["plain"].p_value(qualities["late"]), 4),
    }


def report(results: dict[str, Any]) -> str:
    lines = [
        "# Late chunking against plain chunks",
        "",
        f"{results['hardware']}, torch {results['torch']}. "
        "`python benchmarks/late_chunking.py MODEL --data DATA/long`. The same passages either way; a "
        "document's score is that of its best passage; p by a paired permutation test.",
        "",
        "| model | set | documents | questions | chunk | window | nDCG@10 plain | nDCG@10 late | p "
        "| recall@10 plain | recall@10 late |",
        "|---|---|" + "---:|" * 9,
    ]
    for row in results["runs"].values():
        cells = [row[name] for name in COLUMNS]
        for score in ("nDCG@10", "recall@10"):
            cells += [f"{row[name][score]:.3f}" for name in ("plain", "late")]
            cells += [f"{row['p']:.3f}"] if score == "nDCG@10" else []
        lines.append("| " + " | ".join(map(str, cells)) + " |")
    return "\n".join([*lines, ""])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("models", nargs="+", type=Path)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument(
        "--sets", nargs="+", default=["qmsum_summary_to_meeting", "squality_summary_to_story"]
    )
    parser.add_argument("--documents", type=int, help="so many at most, those with judgements first")
    parser.add_argument("--questions", type=int, help="so many at most")
    parser.add_argument("--chunk-tokens", type=int, default=128)
    parser.add_argument("--max-length", type=int, help="of a pass; default: the model's limit")
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--out", type=Path, default=RESULTS)
    options = parser.parse_args()
    stored = options.out / "late_chunking.json"
    results: dict[str, Any] = json.loads(stored.read_text()) if stored.is_file() else {"runs": {}}
    results |= {"hardware": f"{cpu_name()}, {os.cpu_count()} cores", "torch": torch.__version__}
    for folder in options.models:
        encoder = Encoder.from_pretrained(folder, device="cpu", dtype=options.dtype)
        model = NAMES.get(folder.resolve().name, folder.resolve().name)
        for name in options.sets:
            row = {"model": model, "set": name, "dtype": options.dtype}
            row |= measure(encoder, options.data / name, options)
            key = f"{model} {name} {row['chunk_tokens']} {row['window_tokens']}"
            results["runs"][key] = row
            print(json.dumps(row), flush=True)
            stored.write_text(json.dumps(results, indent=1) + "\n")
            (options.out / "late_chunking.md").write_text(report(results))


if __name__ == "__main__":
    main()
