"""Does hybrid search find more than vectors or words alone? nDCG@10 on retrieval tasks, through an index.

    python benchmarks/hybrid.py MODEL --data DATA --work FOLDER --out benchmarks/results
    python benchmarks/hybrid.py MODEL --data DATA/multilingual/retrieval --work FOLDER
        --out benchmarks/results --name hybrid-languages --queries 300

Each task's corpus goes into a LanceDB index as ``nvembed index`` makes it, with the language of its words
detected, and each of its queries through ``retrieve`` in the three modes. MODEL is a checkpoint of ours or a
folder of sentence-transformers; vectors are kept under FOLDER, where ``nvembed evaluate`` with the same
folder has left them too. Beside them: words whose endings are not removed, LanceDB's own reciprocal rank
fusion, and for English BM25 of ``nvembed evaluate bm25``. Run again, it continues with the tasks that lack.
"""

import argparse
import json
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from memory import hardware, heading
from nvembed.cli.models import Loading, open_model
from nvembed.evaluate.cache import Embedder
from nvembed.evaluate.run import prompts_of
from nvembed.evaluate.tasks import Retrieval, Task, find_tasks, load_task
from nvembed.search.index import SAMPLED_TEXTS
from nvembed.search.lance import LanceStore
from nvembed.search.retrieve import FUSED_DEPTH, RRF_K, retrieve
from nvembed.text.bm25 import Bm25
from nvembed.text.words import NO_LANGUAGE, Words, detect_language
from nvembed.vectors.metric import score_run

TOP = 10
MODES = ("vector", "text", "hybrid")
PLAIN, FUSION, BM25 = "text, no endings removed", "hybrid, LanceDB's", "BM25"
COLUMNS = (*MODES, PLAIN, FUSION, BM25)


def index_of(data: Retrieval, vectors: np.ndarray, folder: Path, words: Words) -> LanceStore:
    ids, texts = list(data.passage_ids), list(data.passages())
    zeros = pa.array([0] * len(ids))
    flat = pa.array(vectors.astype(np.float16).reshape(-1))
    columns = {
        "id": ids,
        "document": ids,
        "start": zeros,
        "end": pa.array([len(text) for text in texts]),
        "text": texts,
        "metadata": pa.array(["{}"] * len(ids)),
        "words": [" ".join(words(text)) for text in texts],
        "vector": pa.FixedSizeListArray.from_arrays(flat, vectors.shape[1]),
    }
    store = LanceStore(folder, "nvembed_00000000", "auto")
    store.fill(iter([pa.record_batch(columns)]), {})
    store.finish()
    return store


def lance_hybrid(store: LanceStore, words: Sequence[str], vector: np.ndarray, count: int) -> list[str]:
    from lancedb.query import MatchQuery
    from lancedb.rerankers import RRFReranker

    query = (
        store._table().search(query_type="hybrid").vector(vector).text(MatchQuery(" ".join(words), "words"))
    )
    query = query.distance_type("cosine").rerank(RRFReranker(K=RRF_K)).limit(FUSED_DEPTH)
    return query.to_arrow()["id"].to_pylist()[:count]


def run_task(task: Task, embed: Embedder, prompts: Any, limit: int | None) -> dict[str, Any]:
    data = task.data
    assert isinstance(data, Retrieval)
    texts = list(data.passages())
    passages = embed(texts, prompts.corpus).vectors
    names = list(data.queries)[:: max(1, -(-len(data.queries) // limit)) if limit else 1]
    queries = embed([data.queries[name] for name in names], prompts.query).vectors
    language = detect_language(texts[:: max(1, len(texts) // SAMPLED_TEXTS)])
    # a query that is a passage itself may not find itself
    count = TOP + task.settings.skip_identical_ids
    runs: dict[str, dict[str, dict[str, float]]] = {name: {} for name in COLUMNS}

    def keep(column: str, name: str, ids: Sequence[str]) -> None:
        kept = [id_ for id_ in ids if not task.settings.skip_identical_ids or id_ != name][:TOP]
        runs[column][name] = {id_: float(TOP - rank) for rank, id_ in enumerate(kept)}

    unmatched = 0
    for words in (Words(language), Words(NO_LANGUAGE)):
        own = words.languages == (language,)
        with tempfile.TemporaryDirectory() as folder:
            store = index_of(data, passages, Path(folder), words)
            for row, name in enumerate(names):
                query, vector = words.query(data.queries[name]), queries[row]
                for mode in MODES if own else ("text",):
                    result = retrieve(store, query, vector, mode=mode, top=count)  # type: ignore[arg-type]
                    unmatched += mode == "hybrid" and not result.words_matched
                    keep(mode if own else PLAIN, name, [hit.id for hit in result.hits])
                if own:
                    keep(FUSION, name, lance_hybrid(store, query, vector, count) if query else [])
        if language == NO_LANGUAGE:
            runs[PLAIN] = runs["text"]
            break
    if language == "english":
        best = Bm25(texts).top_k([data.queries[name] for name in names], count)[1]
        for name, ids in zip(names, best, strict=True):
            keep(BM25, name, [data.passage_ids[i] for i in ids])
    qrels = {name: data.qrels[name] for name in names if name in data.qrels}
    return {
        "passages": len(texts),
        "queries": len(names),
        "language": language,
        "unmatched": unmatched,
        "scores": {column: mean_score(run, qrels) for column, run in runs.items() if run},
    }


def mean_score(run: dict[str, dict[str, float]], qrels: Any) -> float:
    return 100 * float(np.mean(list(score_run(run, qrels, [TOP])[f"ndcg@{TOP}"].values())))


def markdown(results: dict[str, Any], options: str) -> str:
    command = f"python benchmarks/hybrid.py {results['model']}=FOLDER --data DATA --work FOLDER --out RESULTS"
    columns = [name for name in COLUMNS if any(name in row["scores"] for row in results["tasks"].values())]
    lines = [
        *heading("Hybrid search against vectors and words alone", f"{command} {options}", results["machine"]),
        f"nDCG@{TOP} times 100, through an index of LanceDB (exact vectors, its full-text search), "
        f"model {results['model']} (dtype {results['dtype']}, {results['max_tokens']} tokens). Hybrid: "
        f"reciprocal rank fusion (k = {RRF_K}) of the first {FUSED_DEPTH} of both. Endings: the language "
        "whose endings are removed, as detected from the passages. Unmatched: queries of which no passage "
        "has a word.",
        "",
        f"| task | passages | queries | endings | {' | '.join(columns)} | unmatched |",
        f"|---|---:|---:|---|{'---:|' * (len(columns) + 1)}",
    ]
    for name, row in results["tasks"].items():
        scores = " | ".join(f"{row['scores'][c]:.1f}" if c in row["scores"] else "" for c in columns)
        sizes = f"{row['passages']:,} | {row['queries']:,} | {row['language']}"
        lines.append(f"| {name} | {sizes} | {scores} | {row['unmatched']:,} |")
    rows = [row["scores"] for row in results["tasks"].values()]
    means = (
        f"{np.mean([row[c] for row in rows]):.1f}" if all(c in row for row in rows) else "" for c in columns
    )
    lines.append(f"| mean | | | | {' | '.join(means)} | |")
    return "\n".join([*lines, ""])


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("model", help="a folder, or NAME=FOLDER")
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--tasks", default="all", help="names separated by commas")
    parser.add_argument("--queries", type=int, help="at most, of each task, evenly spread")
    parser.add_argument("--max-tokens", type=int, default=512)
    parser.add_argument("--dtype", choices=("float32", "bfloat16", "float16"))
    parser.add_argument("--work", type=Path, required=True, help="where vectors and results are kept")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--name", default="hybrid", help="of the results' files")
    args = parser.parse_args()
    subject = open_model(args.model, Loading(args.max_tokens, dtype=args.dtype))
    results: dict[str, Any] = {
        "model": subject.name,
        "max_tokens": args.max_tokens,
        "dtype": subject.precision,
        "machine": hardware(),
        "tasks": {},
    }
    path = args.work / f"{args.name}-{subject.name}-{subject.fingerprint[:8]}.json"
    if path.exists():
        results["tasks"] = json.loads(path.read_text())["tasks"]
    for folder in find_tasks(args.data, args.tasks.split(",")):
        task = load_task(folder, drop_unanswerable=True)
        if task.kind != "retrieval" or task.name in results["tasks"]:
            continue
        start = time.perf_counter()
        assert subject.encode is not None
        embed = Embedder(subject, subject.encode, folder=args.work / ".embeddings", on_texts=lambda _: None)
        row = run_task(task, embed, prompts_of(subject, task, {}), args.queries)
        results["tasks"][task.name] = row
        args.work.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(results, indent=1) + "\n")
        print(f"{task.name}: {time.perf_counter() - start:.0f} s  {row}", flush=True)
    args.out.mkdir(parents=True, exist_ok=True)
    options = f"--dtype {results['dtype']} --max-tokens {args.max_tokens}"
    options += f" --queries {args.queries}" if args.queries else ""
    (args.out / f"{args.name}.json").write_text(json.dumps(results, indent=1) + "\n")
    (args.out / f"{args.name}.md").write_text(markdown(results, options))


if __name__ == "__main__":
    main()
