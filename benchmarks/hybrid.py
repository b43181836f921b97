"""Does hybrid search find more than vectors or words alone? nDCG@10 on retrieval tasks, through an index.

    python benchmarks/hybrid.py MODEL --data DATA --work FOLDER --out benchmarks/results

Each task's corpus goes into a LanceDB index as ``nvembed index`` makes it, and each of its queries through
``retrieve`` in the three modes. MODEL is a checkpoint of ours or a folder of sentence-transformers; vectors
are kept under FOLDER, where ``nvembed evaluate`` with the same folder has left them too. Beside them: BM25 of
``nvembed evaluate bm25``, and LanceDB's own reciprocal rank fusion.
"""

import argparse
import json
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from memory import hardware, heading
from nvembed.cli.models import Loading, open_model
from nvembed.evaluate.cache import Embedder
from nvembed.evaluate.run import prompts_of
from nvembed.evaluate.tasks import Retrieval, Task, find_tasks, load_task
from nvembed.search.lance import LanceStore
from nvembed.search.retrieve import FUSED_DEPTH, RRF_K, retrieve
from nvembed.text.bm25 import Bm25
from nvembed.text.words import Words
from nvembed.vectors.metric import score_run

TOP = 10
WORDS = Words("english")
COLUMNS = ("vector", "text", "hybrid", "BM25", "hybrid, LanceDB's")


def index_of(data: Retrieval, vectors: np.ndarray, folder: Path, words: Words = WORDS) -> LanceStore:
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


def lance_hybrid(store: LanceStore, text: str, vector: np.ndarray, count: int) -> list[str]:
    from lancedb.query import MatchQuery
    from lancedb.rerankers import RRFReranker

    query = (
        store._table()
        .search(query_type="hybrid")
        .vector(vector)
        .text(MatchQuery(" ".join(WORDS.query(text)), "words"))
    )
    query = query.distance_type("cosine").rerank(RRFReranker(K=RRF_K)).limit(FUSED_DEPTH)
    return query.to_arrow()["id"].to_pylist()[:count]


def run_task(task: Task, embed: Embedder, prompts: Any) -> dict[str, float]:
    data = task.data
    assert isinstance(data, Retrieval)
    passages = embed(list(data.passages()), prompts.corpus).vectors
    queries = embed(list(data.queries.values()), prompts.query).vectors
    # a query that is a passage itself may not find itself
    count = TOP + task.settings.skip_identical_ids
    runs: dict[str, dict[str, dict[str, float]]] = {name: {} for name in COLUMNS}
    with tempfile.TemporaryDirectory() as folder:
        store = index_of(data, passages, Path(folder))
        bm25 = Bm25(list(data.passages())).top_k(list(data.queries.values()), count)[1]
        for row, (name, text) in enumerate(data.queries.items()):
            rankings: dict[str, list[str]] = {}
            for mode in ("vector", "text", "hybrid"):
                words = WORDS.query(text)
                result = retrieve(store, words, queries[row], mode=mode, top=count)  # type: ignore[arg-type]
                rankings[mode] = [hit.id for hit in result.hits]
            rankings["BM25"] = [data.passage_ids[i] for i in bm25[row]]
            rankings["hybrid, LanceDB's"] = lance_hybrid(store, text, queries[row], count)
            for column, ids in rankings.items():
                kept = [id_ for id_ in ids if not task.settings.skip_identical_ids or id_ != name][:TOP]
                runs[column][name] = {id_: float(TOP - rank) for rank, id_ in enumerate(kept)}
    key = f"ndcg@{TOP}"
    return {
        column: 100 * float(np.mean(list(score_run(run, data.qrels, [TOP])[key].values())))
        for column, run in runs.items()
    }


def markdown(results: dict[str, Any]) -> str:
    tasks = results["tasks"]
    command = (
        f"python benchmarks/hybrid.py {results['model']}=FOLDER --data DATA --work FOLDER "
        f"--out RESULTS --dtype {results['dtype']} --max-tokens {results['max_tokens']}"
    )
    lines = [
        *heading("Hybrid search against vectors and words alone", command, results["machine"]),
        f"nDCG@{TOP} times 100, through an index of LanceDB (exact vectors, its full-text search), "
        f"model {results['model']} (dtype {results['dtype']}, {results['max_tokens']} tokens). Hybrid: "
        f"reciprocal rank fusion (k = {RRF_K}) of the first {FUSED_DEPTH} of both.",
        "",
        f"| task | passages | queries | {' | '.join(COLUMNS)} |",
        f"|---|---:|---:|{'---:|' * len(COLUMNS)}",
    ]
    for name, row in tasks.items():
        scores = " | ".join(f"{row['scores'][column]:.1f}" for column in COLUMNS)
        lines.append(f"| {name} | {row['passages']:,} | {row['queries']:,} | {scores} |")
    means = (np.mean([row["scores"][column] for row in tasks.values()]) for column in COLUMNS)
    lines.append(f"| mean | | | {' | '.join(f'{mean:.1f}' for mean in means)} |")
    return "\n".join([*lines, ""])


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("model", help="a folder, or NAME=FOLDER")
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--tasks", default="all", help="names parted by commas")
    parser.add_argument("--max-tokens", type=int, default=512)
    parser.add_argument("--dtype", choices=("float32", "bfloat16", "float16"))
    parser.add_argument("--work", type=Path, required=True, help="where vectors and results are kept")
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args()
    subject = open_model(args.model, Loading(args.max_tokens, dtype=args.dtype))
    results: dict[str, Any] = {
        "model": subject.name,
        "max_tokens": args.max_tokens,
        "dtype": subject.precision,
        "machine": hardware(),
        "tasks": {},
    }
    path = args.work / f"hybrid-{subject.name}-{subject.fingerprint[:8]}.json"
    if path.exists():
        results["tasks"] = json.loads(path.read_text())["tasks"]
    for folder in find_tasks(args.data, args.tasks.split(",")):
        task = load_task(folder, drop_unanswerable=True)
        if task.kind != "retrieval" or task.name in results["tasks"]:
            continue
        start = time.perf_counter()
        assert subject.encode is not None
        embed = Embedder(subject, subject.encode, folder=args.work / ".embeddings", on_texts=lambda _: None)
        scores = run_task(task, embed, prompts_of(subject, task, {}))
        assert isinstance(task.data, Retrieval)
        sizes = {"passages": len(task.data.passage_ids), "queries": len(task.data.queries)}
        results["tasks"][task.name] = {**sizes, "scores": scores}
        args.work.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(results, indent=1) + "\n")
        print(f"{task.name}: {time.perf_counter() - start:.0f} s  {scores}", flush=True)
    args.out.mkdir(parents=True, exist_ok=True)
    (args.out / "hybrid.json").write_text(json.dumps(results, indent=1) + "\n")
    (args.out / "hybrid.md").write_text(markdown(results))


if __name__ == "__main__":
    main()
