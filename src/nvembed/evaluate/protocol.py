"""MTEB's protocol, kind by kind: a task and an encode function in, scores out.

Every function takes ``embed(texts, prompt)`` and the prompts of the two sides; symmetric tasks put the query
side's prompt on every text. Settings (seeds, sample counts, k-means, classifier) come from ``evaluation.toml``.
Scores are fractions, as in mteb's result files.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any

import numpy as np

from nvembed.errors import InputError, MissingExtraError
from nvembed.evaluate import scores
from nvembed.evaluate.settings import protocol
from nvembed.evaluate.subject import LexicalFn
from nvembed.evaluate.tasks import Labelled, Pairs, Retrieval, Sets, Summaries, Task
from nvembed.vectors.metric import paired_cosine, score_run, unit
from nvembed.vectors.search import top_k

Embed = Callable[[Sequence[str], str], np.ndarray]

PASSAGES_AT_ONCE = 16_384  # a block of 4,096 dimensions takes 256 MiB


@dataclass(frozen=True)
class Prompts:
    """The strings put before the texts of either side."""

    query: str = ""
    corpus: str = ""


@dataclass(frozen=True)
class Items:
    """What a comparison resamples: the main score is ``statistic`` of these rows.

    ``statistic``: ``mean`` of value, or ``spearman``, ``average_precision``, ``v_measure`` of gold and value.
    """

    statistic: str
    ids: list[str]
    value: np.ndarray
    gold: np.ndarray | None = None


@dataclass(frozen=True)
class Outcome:
    """A task's scores, the name of the main one, and the items behind it."""

    scores: dict[str, Any]
    main: str
    items: Items


def run_task(task: Task, embed: Embed, prompts: Prompts) -> Outcome:
    """Evaluate one task with an encode function, by its kind."""
    data = task.data
    if isinstance(data, Retrieval):
        rank = _rerank if task.kind == "reranking" else _retrieve
        return _score_ranking(task, data, rank(data, embed, prompts))
    if isinstance(data, Pairs):
        score = _pair_classification if task.kind == "pair_classification" else _sts
        return score(data, unit(embed(data.text1, prompts.query)), unit(embed(data.text2, prompts.query)))
    if isinstance(data, Labelled):
        return _classification(task, data, embed, prompts.query)
    if isinstance(data, Sets):
        return _clustering(data, embed, prompts.query)
    return _summarization(data, embed, prompts.query)


def run_lexical(task: Task, lexical: LexicalFn) -> Outcome:
    """Evaluate a retrieval or reranking task by a function that ranks texts without vectors.

    The corpus is held in memory whole.

    Raises:
        InputError: a task of another kind, for which a ranking is not enough.
    """
    data = task.data
    if not isinstance(data, Retrieval):
        raise InputError(f"{task.name} is a {task.kind} task; a lexical baseline can only retrieve and rerank")
    passages = list(data.passages())
    k = len(passages) if task.kind == "reranking" else protocol().retrieval.top_k
    hits, ids = lexical(passages, list(data.queries.values()), k)
    run = _run(data, hits, ids)
    if task.kind == "reranking":
        run = {q: {p: run[q][p] for p in data.qrels[q]} for q in run}
    return _score_ranking(task, data, run)


def blocks(texts: Iterator[str], size: int) -> Iterator[list[str]]:
    """Cut an iterator into lists of at most ``size``."""
    while block := list(islice(texts, size)):
        yield block


def _retrieve(data: Retrieval, embed: Embed, prompts: Prompts) -> dict[str, dict[str, float]]:
    """Exact search, a block of passages at a time: memory does not grow with the corpus."""
    queries = unit(embed(list(data.queries.values()), prompts.query))
    corpus = (unit(embed(block, prompts.corpus)) for block in blocks(data.passages(), PASSAGES_AT_ONCE))
    return _run(data, *top_k(queries, corpus, protocol().retrieval.top_k))


def _run(data: Retrieval, hits: np.ndarray, ids: np.ndarray) -> dict[str, dict[str, float]]:
    return {
        query: {data.passage_ids[i]: float(s) for s, i in zip(hits[row], ids[row], strict=True)}
        for row, query in enumerate(data.queries)
    }


def _rerank(data: Retrieval, embed: Embed, prompts: Prompts) -> dict[str, dict[str, float]]:
    """Score each query with the passages its qrels list."""
    wanted = {passage for grades in data.qrels.values() for passage in grades}
    pairs = [(p, t) for p, t in zip(data.passage_ids, data.passages(), strict=True) if p in wanted]
    row_of = {passage: row for row, (passage, _) in enumerate(pairs)}
    passages = unit(embed([text for _, text in pairs], prompts.corpus))
    queries = unit(embed(list(data.queries.values()), prompts.query))
    run = {}
    for row, query in enumerate(data.queries):
        listed = list(data.qrels[query])
        similarity = passages[[row_of[p] for p in listed]] @ queries[row]
        run[query] = dict(zip(listed, map(float, similarity), strict=True))
    return run


def _score_ranking(task: Task, data: Retrieval, run: dict[str, dict[str, float]]) -> Outcome:
    if task.settings.skip_identical_ids:
        run = {q: {p: s for p, s in hits.items() if p != q} for q, hits in run.items()}
    table = score_run(run, data.qrels, protocol().retrieval.cutoffs)
    means = {name.replace("@", "_at_"): float(np.mean(list(per.values()))) for name, per in table.items()}
    metric = "map@1000" if task.kind == "reranking" else "ndcg@10"
    per_query = table[metric]
    items = Items("mean", list(per_query), np.array(list(per_query.values())))
    return Outcome(means, metric.replace("@", "_at_"), items)


def _similarities(a: np.ndarray, b: np.ndarray) -> dict[str, np.ndarray]:
    """Cosine and the two distances, negated: larger is closer. Rows are unit, so the dot product is the cosine."""
    return {
        "cosine": paired_cosine(a, b),
        "manhattan": -np.sum(np.abs(a - b), axis=1),
        "euclidean": -np.linalg.norm(a - b, axis=1),
    }


def _sts(data: Pairs, a: np.ndarray, b: np.ndarray) -> Outcome:
    found: dict[str, float] = {}
    similarities = _similarities(a, b)
    for name, value in similarities.items():
        found[f"{name}_pearson"] = scores.pearson(data.score, value.astype(np.float64))
        found[f"{name}_spearman"] = scores.spearman(data.score, value)
    found["pearson"], found["spearman"] = found["cosine_pearson"], found["cosine_spearman"]
    items = Items("spearman", _numbers(data.score), similarities["cosine"], data.score)
    return Outcome(found, "cosine_spearman", items)


def _pair_classification(data: Pairs, a: np.ndarray, b: np.ndarray) -> Outcome:
    """Threshold the similarity; the main score is the best average precision of any similarity (max_ap)."""
    found: dict[str, float] = {}
    similarities = _similarities(a, b)
    for name, value in similarities.items():
        f1, precision, recall = scores.best_f1(data.score, value)
        found[f"{name}_accuracy"] = scores.best_accuracy(data.score, value)
        found |= {f"{name}_f1": f1, f"{name}_precision": precision, f"{name}_recall": recall}
        found[f"{name}_ap"] = scores.average_precision(data.score, value)
    for metric in ("accuracy", "f1", "precision", "recall", "ap"):
        found[f"similarity_{metric}"] = found[f"dot_{metric}"] = found[f"cosine_{metric}"]
        found[f"max_{metric}"] = max(found[f"{name}_{metric}"] for name in similarities)
    best = max(similarities, key=lambda name: found[f"{name}_ap"])
    items = Items("average_precision", _numbers(data.score), similarities[best], data.score)
    return Outcome(found, "max_ap", items)


def _numbers(values: Sequence[Any] | np.ndarray) -> list[str]:
    return [str(i) for i in range(len(values))]


def _classification(task: Task, data: Labelled, embed: Embed, prompt: str) -> Outcome:
    """Logistic regression on a few texts per class, several times, scored on all test texts.

    Sampling as in mteb: one list of indices is shuffled again before every experiment, each time by a fresh
    generator of the same seed. Without a train part: five-fold cross-validation, sampled in the same way.
    """
    rules = protocol().classification
    per_label = task.settings.samples_per_label or rules.samples_per_label
    vectors = embed(data.texts, prompt)
    right = np.zeros(len(data.texts))
    seen = np.zeros(len(data.texts))
    runs: list[dict[str, float]] = []

    def experiment(train: np.ndarray, train_labels: np.ndarray, test: np.ndarray) -> None:
        guess = _logistic_regression(train, train_labels, vectors[test])
        gold = data.labels[test]
        runs.append(scores.classification_scores(gold, guess))
        if len(np.unique(gold)) == 2:
            runs[-1]["ap"] = scores.average_precision(gold == gold.max(), guess.astype(np.float64))
        right[test] += guess == gold
        seen[test] += 1

    if data.train_texts:
        samples = list(islice(_samples(data.train_labels, per_label), rules.experiments))
        union = np.unique(np.concatenate(samples))
        known = embed([data.train_texts[i] for i in union], prompt)
        for sample in samples:
            rows = np.searchsorted(union, sample)
            experiment(known[rows], data.train_labels[sample], np.arange(len(data.texts)))
    else:
        for train, test in _folds(len(data.texts), rules.folds):
            sample = train[_fold_sample(data.labels, train, per_label, number=len(runs))]
            experiment(vectors[sample], data.labels[sample], test)
    found: dict[str, Any] = {name: float(np.mean([run[name] for run in runs])) for name in runs[0]}
    found["scores_per_experiment"] = runs
    return Outcome(found, "accuracy", Items("mean", _numbers(right), right / np.maximum(seen, 1)))


def _samples(labels: np.ndarray, per_label: int) -> Iterator[np.ndarray]:
    """Yield, endlessly, the indices of ``per_label`` texts of each class, in the order drawn."""
    order = list(range(len(labels)))
    while True:
        np.random.RandomState(protocol().seed).shuffle(order)
        counts: dict[int, int] = {}
        chosen = []
        for i in order:
            counts[labels[i]] = counts.get(labels[i], 0) + 1
            if counts[labels[i]] <= per_label:
                chosen.append(i)
        yield np.array(chosen)


def _folds(size: int, folds: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """(train, test) indices: a shuffle cut into ``folds`` parts, as scikit-learn's KFold cuts it."""
    order = np.arange(size)
    np.random.RandomState(protocol().seed).shuffle(order)
    for part in np.array_split(order, folds):
        held_out = np.zeros(size, dtype=bool)
        held_out[part] = True
        yield np.flatnonzero(~held_out), np.flatnonzero(held_out)


def _fold_sample(labels: np.ndarray, train: np.ndarray, per_label: int, *, number: int) -> np.ndarray:
    """Positions in ``train`` of fold ``number``: mteb carries one shuffled list from fold to fold.

    The first folds may be one text smaller than the last, so the list never reaches past the end.
    """
    draws = _samples(labels[train], per_label)
    return next(islice(draws, number, None))


def _logistic_regression(train: np.ndarray, labels: np.ndarray, test: np.ndarray) -> np.ndarray:
    import warnings

    linear_model = _sklearn("linear_model")
    rules = protocol()
    model = linear_model.LogisticRegression(max_iter=rules.classification.max_iterations, random_state=rules.seed)
    with warnings.catch_warnings():  # the protocol stops at 100 iterations, converged or not
        warnings.simplefilter("ignore")
        model.fit(train, labels)
    return np.asarray(model.predict(test))


def _clustering(data: Sets, embed: Embed, prompt: str) -> Outcome:
    """Mini-batch k-means with as many clusters as classes; V-measure per set (MTEB English v1)."""
    rules = protocol()
    values: list[float] = []
    clusters = np.empty(0, dtype=np.int64)
    for texts, labels in zip(data.texts, data.labels, strict=True):
        k = len(np.unique(labels))
        if k < 2:
            values.append(1.0)  # mteb counts a set of one class as right
            continue
        kmeans = _sklearn("cluster").MiniBatchKMeans(
            n_clusters=k, batch_size=rules.clustering.batch_size, n_init="auto", random_state=rules.seed
        )
        clusters = np.asarray(kmeans.fit(embed(texts, prompt)).labels_, dtype=np.int64)
        values.append(scores.v_measure(labels, clusters))
    found = {"v_measure": float(np.mean(values)), "v_measure_std": float(np.std(values)), "v_measures": values}
    if len(values) > 1:
        return Outcome(found, "v_measure", Items("mean", _numbers(values), np.array(values)))
    return Outcome(found, "v_measure", Items("v_measure", _numbers(clusters), clusters, data.labels[0]))


def _summarization(data: Summaries, embed: Embed, prompt: str) -> Outcome:
    """Rank correlation of human judgement with the largest cosine to any human summary, averaged over texts.

    Texts whose summaries all get one score, or all one judgement, have no correlation and are left out, as in
    mteb. ``cosine_spearman_with_p`` is what MTEB English v1 published as SummEval: its evaluator averaged the
    coefficient and the p-value of scipy's result together (mteb issue 1156).
    """
    human = np.split(unit(embed([s for row in data.human for s in row], prompt)), _ends(data.human))
    machine = np.split(unit(embed([s for row in data.machine for s in row], prompt)), _ends(data.machine))
    rows: list[tuple[int, float, float, float]] = []
    for i, gold in enumerate(data.relevance):
        best = (machine[i] @ human[i].T).max(axis=1).astype(np.float64)
        if len(np.unique(gold)) > 1 and len(np.unique(best)) > 1:
            rho = scores.spearman(gold, best)
            rows.append((i, rho, scores.pearson(gold, best), _p_value(rho, len(gold))))
    if not rows:
        raise InputError("no text has summaries of different judgement; nothing can be correlated")
    ids, rho, r, p = (np.array(column) for column in zip(*rows, strict=True))
    found = {"cosine_spearman": float(rho.mean()), "cosine_pearson": float(r.mean())}
    found |= {"spearman": found["cosine_spearman"], "pearson": found["cosine_pearson"]}
    found["cosine_spearman_with_p"] = float((rho.mean() + p.mean()) / 2)
    return Outcome(found, "cosine_spearman", Items("mean", [str(i) for i in ids], rho))


def _ends(rows: Sequence[Sequence[str]]) -> np.ndarray:
    return np.cumsum([len(row) for row in rows])[:-1]


def _p_value(rho: float, n: int) -> float:
    """Two-sided p-value of Spearman's rho by Student's t with n - 2 degrees of freedom, as scipy has it."""
    special = _scipy_special()
    if n < 3 or abs(rho) >= 1:
        return 0.0
    t = rho * np.sqrt((n - 2) / (1 - rho * rho))
    return float(2 * special.stdtr(n - 2, -abs(t)))


def _scipy_special() -> Any:
    try:
        from scipy import special
    except ImportError as error:
        raise _missing(error) from error
    return special


def _sklearn(part: str) -> Any:
    try:
        from sklearn import cluster, linear_model
    except ImportError as error:
        raise _missing(error) from error
    return {"cluster": cluster, "linear_model": linear_model}[part]


def _missing(error: ImportError) -> MissingExtraError:
    return MissingExtraError(f"evaluation needs the package {error.name}: pip install 'nvembed[eval]'")
