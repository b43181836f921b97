"""Classification and clustering with simple learners on the vectors."""

import warnings
from collections.abc import Iterable, Iterator
from itertools import repeat
from typing import Any

import numpy as np

from nvembed.errors import InputError, needs_extra
from nvembed.evaluate import scores
from nvembed.evaluate.outcome import Embed, Items, TaskOutcome, numbered
from nvembed.evaluate.settings import protocol
from nvembed.evaluate.tasks import Labelled, Sets


def classification(data: Labelled, embed: Embed, prompt: str, *, samples_per_label: int) -> TaskOutcome:
    """Train logistic regression on a few texts of each class, several times, and classify all test texts.

    Main score: accuracy, averaged over the experiments. Without training texts it is cross-validated in five
    folds, with the same number of training texts per class.
    """
    rules = protocol().classification
    folds = [] if data.train_texts else _folds(data.labels, rules.folds)
    vectors = embed(data.texts, prompt)
    everything = np.arange(len(data.texts))
    if data.train_texts:
        samples = list(draw(repeat(data.train_labels, rules.experiments), samples_per_label))
        union = np.unique(np.concatenate(samples))  # the only training texts that are embedded
        known = embed([data.train_texts[i] for i in union], prompt)
        rounds = [
            (known[np.searchsorted(union, sample)], data.train_labels[sample], everything)
            for sample in samples
        ]
    else:
        training_sets = draw((data.labels[train] for train, _ in folds), samples_per_label)
        rounds = [
            (vectors[train[sample]], data.labels[train[sample]], test)
            for (train, test), sample in zip(folds, training_sets, strict=True)
        ]
    experiments: list[dict[str, float]] = []
    right, seen = np.zeros(len(data.texts)), np.zeros(len(data.texts))
    for train_vectors, train_labels, test in rounds:
        guess, gold = _logistic_regression(train_vectors, train_labels, vectors[test]), data.labels[test]
        experiments.append(scores.classification_scores(gold, guess))
        if len(np.unique(gold)) == 2:
            experiments[-1]["ap"] = scores.average_precision(gold == gold.max(), guess.astype(np.float64))
        right[test] += guess == gold
        seen[test] += 1
    means: dict[str, Any] = {
        name: float(np.mean([e[name] for e in experiments if name in e])) for name in experiments[0]
    }
    means["scores_per_experiment"] = experiments
    return TaskOutcome(means, "accuracy", Items("mean", numbered(right), right / np.maximum(seen, 1)))


def draw(labels_of_rounds: Iterable[np.ndarray], per_label: int) -> Iterator[np.ndarray]:
    """Yield, for each round, the positions of up to ``per_label`` texts of every class.

    As in mteb: the list of positions of the first round is shuffled again before every round, each time by a
    new generator with the same seed, and the first texts of each class are used.
    """
    order: list[int] = []
    for labels in labels_of_rounds:
        order = order or list(range(len(labels)))
        np.random.RandomState(protocol().seed).shuffle(order)
        counts: dict[int, int] = {}
        chosen = []
        for i in order:
            label = int(labels[i])
            counts[label] = counts.get(label, 0) + 1
            if counts[label] <= per_label:
                chosen.append(i)
        yield np.array(chosen)


def _folds(labels: np.ndarray, folds: int) -> list[tuple[np.ndarray, np.ndarray]]:
    """Return the (train, test) positions of shuffled folds."""
    if len(labels) >= folds:
        split = _sklearn().model_selection.KFold(folds, shuffle=True, random_state=protocol().seed).split
        parts = list(split(np.zeros(len(labels))))
        if all(len(np.unique(labels[train])) > 1 for train, _ in parts):
            return parts
    raise InputError(
        f"{len(labels)} texts cannot be cross-validated: expected at least one in each of {folds} folds, and "
        "two classes in the other folds. Add texts, or a train.jsonl."
    )


def _logistic_regression(train: np.ndarray, labels: np.ndarray, test: np.ndarray) -> np.ndarray:
    rules = protocol()
    model = _sklearn().linear_model.LogisticRegression(
        max_iter=rules.classification.max_iterations, random_state=rules.seed
    )
    with warnings.catch_warnings():  # the protocol stops after 100 iterations, whether converged or not
        warnings.simplefilter("ignore")
        model.fit(train, labels)
    return np.asarray(model.predict(test))


def clustering(data: Sets, embed: Embed, prompt: str) -> TaskOutcome:
    """Cluster each set by mini-batch k-means into as many clusters as it has classes (MTEB English v1).

    Main score: V-measure, averaged over the sets.
    """
    rules = protocol()
    values: list[float] = []
    clusters = np.zeros(len(data.labels[0]), dtype=np.int64)
    for texts, labels in zip(data.texts, data.labels, strict=True):
        if len(np.unique(labels)) < 2:
            values.append(1.0)  # as in mteb
            continue
        kmeans = _sklearn().cluster.MiniBatchKMeans(
            n_clusters=len(np.unique(labels)),
            batch_size=rules.clustering.batch_size,
            n_init="auto",
            random_state=rules.seed,
        )
        clusters = np.asarray(kmeans.fit(embed(texts, prompt)).labels_, dtype=np.int64)
        values.append(scores.v_measure(labels, clusters))
    means = {
        "v_measure": float(np.mean(values)),
        "v_measure_std": float(np.std(values)),
        "v_measures": values,
    }
    if len(values) > 1:
        return TaskOutcome(means, "v_measure", Items("mean", numbered(values), np.array(values)))
    return TaskOutcome(means, "v_measure", Items("v_measure", numbered(clusters), clusters, data.labels[0]))


def _sklearn() -> Any:
    with needs_extra("eval", "the evaluation"):
        import sklearn.cluster
        import sklearn.linear_model
        import sklearn.model_selection
    return sklearn
