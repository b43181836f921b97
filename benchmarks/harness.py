"""Is the harness right? One model, scored by our code and by mteb's own on the same folders.

    python benchmarks/harness.py --model all-MiniLM-L6-v2=FOLDER --data DATA \\
        --out benchmarks/results

Both score vectors from one embedding cache; ``--independent TASK`` also lets mteb embed by itself, with its
own wrapper of sentence-transformers, for that task. Published scores come from the recipe.
"""

import argparse
import json
import time
import warnings
from pathlib import Path
from typing import Any, cast

from nvembed.cli.models import Loading, open_model
from nvembed.evaluate import record
from nvembed.evaluate.cache import Embedder
from nvembed.evaluate.mteb import MtebEncoder
from nvembed.evaluate.run import Meter, evaluate, metered
from nvembed.evaluate.settings import protocol, published_scores
from nvembed.evaluate.tasks import (
    CATEGORY,
    Bitext,
    Labelled,
    Pairs,
    Retrieval,
    Sets,
    Task,
    find_tasks,
    load_task,
)

IDENTICAL = "stsb,sts12,sts14,sts15,sickr_mteb_all,banking77,scifact,arguana"


def as_mteb_task(task: Task) -> Any:
    """Make a loaded mteb task from a local one: the same texts and gold, scored by mteb's code."""
    from datasets import Dataset, DatasetDict
    from mteb.abstasks.retrieval_dataset_loaders import RetrievalSplitData

    data = task.data
    if isinstance(data, Retrieval):
        corpus = zip(data.passage_ids, data.passages(), strict=True)
        listed = {query: list(grades) for query, grades in data.qrels.items()}
        content: Any = RetrievalSplitData(
            corpus=Dataset.from_list([{"id": i, "title": "", "text": text} for i, text in corpus]),
            queries=Dataset.from_list([{"id": i, "text": text} for i, text in data.queries.items()]),
            relevant_docs=data.qrels,
            top_ranked=listed if task.kind == "reranking" else None,
        )
        dataset: Any = {"default": {task.split: content}}
    elif isinstance(data, Pairs):
        column = "labels" if task.kind == "pair_classification" else "score"
        gold = data.score.astype(int) if column == "labels" else data.score
        columns = {"sentence1": list(data.text1), "sentence2": list(data.text2), column: gold.tolist()}
        dataset = DatasetDict({task.split: Dataset.from_dict(columns)})
    elif isinstance(data, Bitext):
        columns = {"sentence1": list(data.text1), "sentence2": list(data.text2)}
        dataset = DatasetDict({task.split: Dataset.from_dict(columns)})
    elif isinstance(data, Labelled):
        test = Dataset.from_dict({"text": list(data.texts), "label": data.labels.tolist()})
        train = Dataset.from_dict({"text": list(data.train_texts), "label": data.train_labels.tolist()})
        dataset = DatasetDict({"train": train, task.split: test} if data.train_texts else {"train": test})
    elif isinstance(data, Sets):
        columns = {"sentences": [list(s) for s in data.texts], "labels": [y.tolist() for y in data.labels]}
        dataset = DatasetDict({task.split: Dataset.from_dict(columns)})
    else:
        columns = {
            "human_summaries": [list(s) for s in data.human],
            "machine_summaries": [list(s) for s in data.machine],
        }
        columns |= {"text": ["" for _ in data.human], "relevance": [r.tolist() for r in data.relevance]}
        dataset = DatasetDict({task.split: Dataset.from_dict(columns)})
    mteb_task = _mteb_class(task)()
    mteb_task.dataset, mteb_task.data_loaded = dataset, True
    return mteb_task


_MAIN = {
    "retrieval": "ndcg_at_10",
    "reranking": "map_at_1000",
    "sts": "cosine_spearman",
    "pair_classification": "max_ap",
    "bitext_mining": "f1",
    "classification": "accuracy",
    "clustering": "v_measure",
    "summarization": "cosine_spearman",
}


def _mteb_class(task: Task) -> Any:
    from mteb.abstasks.classification import AbsTaskClassification
    from mteb.abstasks.clustering_legacy import AbsTaskClusteringLegacy
    from mteb.abstasks.pair_classification import AbsTaskPairClassification
    from mteb.abstasks.retrieval import AbsTaskRetrieval
    from mteb.abstasks.sts import AbsTaskSTS
    from mteb.abstasks.task_metadata import TaskMetadata
    from mteb.abstasks.text.bitext_mining import AbsTaskBitextMining
    from mteb.abstasks.text.summarization import AbsTaskSummarization

    base = {
        "retrieval": AbsTaskRetrieval,
        "reranking": AbsTaskRetrieval,
        "sts": AbsTaskSTS,
        "pair_classification": AbsTaskPairClassification,
        "bitext_mining": AbsTaskBitextMining,
        "classification": AbsTaskClassification,
        "clustering": AbsTaskClusteringLegacy,
        "summarization": AbsTaskSummarization,
    }[task.kind]
    cross = isinstance(task.data, Labelled) and not task.data.train_texts
    metadata = TaskMetadata(
        name=task.name,
        description="a local folder",
        reference=None,
        dataset={"path": "local", "revision": task.revision},
        type=cast("Any", CATEGORY[task.kind]),
        category="t2t",
        modalities=["text"],
        eval_splits=["train" if cross else task.split],
        eval_langs=["eng-Latn"],
        main_score=_MAIN[task.kind],
    )
    body: dict[str, Any] = {"metadata": metadata}
    if task.kind == "classification":
        rules = protocol().classification
        body["samples_per_label"] = task.settings.samples_per_label or rules.samples_per_label
        body["is_cross_validation"] = cross
    elif task.kind in ("retrieval", "reranking"):
        body["ignore_identical_ids"] = task.settings.skip_identical_ids
    elif task.kind == "summarization":
        body |= {"min_score": 0, "max_score": 1}
    return type(f"Local{task.name}", (base,), body)


def mteb_score(task: Any, encoder: Any) -> float:
    import mteb

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        result = mteb.evaluate(
            encoder, as_mteb_task(task), cache=None, co2_tracker=False, show_progress_bar=False
        )
    return 100 * float(next(iter(result.task_results[0].scores.values()))[0]["main_score"])


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", required=True, help="NAME=FOLDER of a sentence-transformers model")
    parser.add_argument("--published", default="all-minilm-l6-v2")
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--tasks", default=IDENTICAL)
    parser.add_argument("--independent", default="stsb")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument(
        "--work", type=Path, default=Path("harness-work"), help="results and cache of the run"
    )
    args = parser.parse_args()
    published = {t: v for tasks in published_scores(args.published).values() for t, v in tasks.items()}
    subject = open_model(args.model, Loading(max_tokens=512))
    rows = []
    for folder in find_tasks(args.data, args.tasks.split(",")):
        task = load_task(folder)
        evaluate(subject, [task], args.work, cache=args.work / ".embeddings")
        ours = record.read_results(record.folder_of(args.work, subject))[task.name].main_score
        meter = Meter()
        embedder = Embedder(
            subject, metered(subject, meter), folder=args.work / ".embeddings", on_texts=lambda _: None
        )
        theirs = mteb_score(
            task, MtebEncoder(subject, meter.embed_with(embedder), lambda _metadata, _side: "")
        )
        row = {"task": task.name, "ours": round(ours, 4), "mteb": round(theirs, 4)}
        row["published"] = published.get(task.mteb_name)
        row["test_set"] = task.test_set
        if task.name in args.independent.split(","):
            from sentence_transformers import SentenceTransformer

            model = SentenceTransformer(args.model.partition("=")[2])
            row["mteb_embedding_itself"] = round(mteb_score(task, model), 4)
        rows.append(row)
        print(row, flush=True)
    args.out.mkdir(parents=True, exist_ok=True)
    content = {
        "command": "python benchmarks/harness.py --model all-MiniLM-L6-v2=FOLDER --data DATA "
        f"--tasks {args.tasks} --independent {args.independent} --out benchmarks/results",
        "date": time.strftime("%Y-%m-%d"),
        "environment": record.environment(subject),
        "rows": rows,
    }
    (args.out / "harness.json").write_text(json.dumps(content, indent=1) + "\n")
    lines = [
        "# Our evaluation code against mteb's own, and against published scores",
        "",
        f"`{content['command']}`",
        "",
        f"{content['environment']['processor']}, {content['environment']['cores']} cores; "
        + ", ".join(f"{k} {v}" for k, v in content["environment"]["packages"].items()),
        "",
        "| task | ours | mteb's code | ours - mteb | published | ours - published | test set |",
        "|---|---:|---:|---:|---:|---:|---|",
    ]
    for row in rows:
        known = row["published"]
        beside = "" if known is None else f"{row['ours'] - known:+.2f}"
        lines.append(
            f"| {row['task']} | {row['ours']:.4f} | {row['mteb']:.4f} | {row['ours'] - row['mteb']:+.4f} | "
            f"{known or ''} | {beside} | {row['test_set']} |"
        )
    for row in rows:
        if "mteb_embedding_itself" in row:
            lines += [
                "",
                f"{row['task']}, embedded by mteb's own wrapper: {row['mteb_embedding_itself']:.4f}.",
            ]
    (args.out / "harness.md").write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
