"""Is the harness right? One model, scored by our code and by mteb's own on the same folders.

    python benchmarks/harness.py --model all-MiniLM-L6-v2=FOLDER --data ../shared/data \\
        --out benchmarks/results

Both score vectors from one embedding cache; ``--independent TASK`` also lets mteb embed by itself, with its
own wrapper of sentence-transformers, for that task. Published scores come from the recipe.
"""

import argparse
import json
import time
import warnings
from pathlib import Path
from typing import Any

from nvembed.cli.models import Loading, open_model
from nvembed.evaluate import record
from nvembed.evaluate.cache import Embedder
from nvembed.evaluate.mteb import MtebEncoder, as_mteb_task
from nvembed.evaluate.run import Meter, evaluate, metered
from nvembed.evaluate.settings import published_scores
from nvembed.evaluate.tasks import find_tasks, load_task

IDENTICAL = "stsb,sts12,sts14,sts15,sickr_mteb_all,banking77,scifact,arguana"


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
    given = parser.parse_args()
    published = {t: v for tasks in published_scores(given.published).values() for t, v in tasks.items()}
    subject = open_model(given.model, Loading(max_tokens=512))
    rows = []
    for folder in find_tasks(given.data, given.tasks.split(",")):
        task = load_task(folder)
        evaluate(subject, [task], given.work, cache=given.work / ".embeddings")
        ours = record.read_results(record.folder_of(given.work, subject))[task.name].main_score
        meter = Meter()
        embedder = Embedder(
            subject, metered(subject, meter), folder=given.work / ".embeddings", on_texts=lambda _: None
        )
        theirs = mteb_score(
            task, MtebEncoder(subject, meter.embed_with(embedder), lambda _metadata, _side: "")
        )
        row = {"task": task.name, "ours": round(ours, 4), "mteb": round(theirs, 4)}
        row["published"] = published.get(task.mteb_name)
        row["test_set"] = task.test_set
        if task.name in given.independent.split(","):
            from sentence_transformers import SentenceTransformer

            model = SentenceTransformer(given.model.partition("=")[2])
            row["mteb_embedding_itself"] = round(mteb_score(task, model), 4)
        rows.append(row)
        print(row, flush=True)
    given.out.mkdir(parents=True, exist_ok=True)
    content = {
        "command": "python benchmarks/harness.py --model all-MiniLM-L6-v2=FOLDER --data ../shared/data "
        f"--tasks {given.tasks} --independent {given.independent} --out benchmarks/results",
        "date": time.strftime("%Y-%m-%d"),
        "environment": record.environment(subject),
        "rows": rows,
    }
    (given.out / "harness.json").write_text(json.dumps(content, indent=1) + "\n")
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
    (given.out / "harness.md").write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
