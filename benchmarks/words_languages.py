"""Search by words in several languages: nDCG@10 of BM25 over the words that an index keeps.

    python benchmarks/words_languages.py --data DATA/multilingual/retrieval --out RESULTS

The words are those of ``text.words``: folded, endings of the detected language removed, pairs of characters
in scripts without spaces. Beside them: no endings removed, and words separated by white space as they are.
``hybrid.py`` measures vectors and hybrid search too, with a model.
"""

import argparse
from collections.abc import Callable, Sequence
from pathlib import Path

import bm25s
import numpy as np

from memory import hardware, heading
from nvembed.evaluate.tasks import Retrieval, find_tasks, load_task
from nvembed.search.index import SAMPLED_TEXTS
from nvembed.text.words import Words, detect_language
from nvembed.vectors.metric import score_run

TOP = 10
COLUMNS = ("words", "no endings removed", "split at white space", "queries without a known word")


def scores(
    data: Retrieval,
    texts: list[str],
    split: Callable[[str], Sequence[str]],
    query: Callable[[str], Sequence[str]],
) -> tuple[float, int]:
    """Return nDCG@10 times 100, and how many queries have no word of any passage."""
    index = bm25s.BM25(k1=1.2, b=0.75, method="lucene")
    index.index([list(split(text)) for text in texts], show_progress=False)
    run: dict[str, dict[str, float]] = {}
    unmatched = 0
    for name, text in data.queries.items():
        known = [word for word in query(text) if word in index.vocab_dict]
        unmatched += not known
        found = index.get_scores(known) if known else np.zeros(len(texts))
        best = [int(at) for at in np.argsort(-found, kind="stable")[:TOP] if found[at] > 0]
        run[name] = {data.passage_ids[at]: float(TOP - rank) for rank, at in enumerate(best)}
    return 100 * float(np.mean(list(score_run(run, data.qrels, [TOP])[f"ndcg@{TOP}"].values()))), unmatched


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--tasks", default="all", help="names separated by commas")
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args()
    command = "python benchmarks/words_languages.py --data DATA/multilingual/retrieval --out RESULTS"
    lines = [
        *heading("Search by words in several languages", command, hardware()),
        f"nDCG@{TOP} times 100 of BM25 (k1 1.2, b 0.75) over the words that an index keeps; endings: the "
        "language whose word endings are removed, as detected from the passages.",
        "",
        f"| task | passages | queries | endings | {' | '.join(COLUMNS)} |",
        f"|---|---:|---:|---|{'---:|' * len(COLUMNS)}",
    ]
    for folder in find_tasks(args.data, args.tasks.split(",")):
        task = load_task(folder, drop_unanswerable=True)
        data = task.data
        assert isinstance(data, Retrieval)
        texts = list(data.passages())
        language = detect_language(texts[:: max(1, len(texts) // SAMPLED_TEXTS)])
        own, plain = Words(language), Words()
        score, unmatched = scores(data, texts, own, own.query)
        bare, _ = scores(data, texts, plain, plain.query)
        spaces, _ = scores(data, texts, str.split, str.split)
        sizes = f"{len(texts):,} | {len(data.queries):,} | {language}"
        lines.append(f"| {task.name} | {sizes} | {score:.1f} | {bare:.1f} | {spaces:.1f} | {unmatched:,} |")
        print(lines[-1], flush=True)
    args.out.mkdir(parents=True, exist_ok=True)
    (args.out / "words-languages.md").write_text("\n".join([*lines, ""]))


if __name__ == "__main__":
    main()
