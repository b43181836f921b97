"""Classification and clustering: can a simple learner read the classes off the vectors?"""

import random
import warnings
from collections.abc import Iterable, Iterator
from itertools import repeat
from typing import Any

import numpy as np

from nvembed.errors import InputError, MissingExtraError
from nvembed.evaluate import scores
from nvembed.evaluate.outcome import Embed, Items, Outcome, numbered
from nvembed.evaluate.settings import protocol
from nvembed.evaluate.tasks import Labelled, Sets


def classification(data: Labelled, embed: Embed, prompt: str, *, samples_per_label: int) -> Outcome:
    """Train logistic regression on a few texts per class, several times, and classify all test texts.

    Main score: accuracy, averaged over the experiments. Without a train part: five-fold cross-validation,
    each fold trained on as few texts.
    """
    rules = protocol().classification
    folds = [] if data.train_texts else _folds(data.labels, rules.folds)
    vectors = embed(data.texts, prompt)
    everything = np.arange(len(data.texts))
    if data.train_texts:
        samples = list(draw(repeat(data.train_labels, rules.experiments), samples_per_label))
        union = np.unique(np.concatenate(samples))  # only these are ever embedded
        known = embed([data.train_texts[i] for i in union], prompt)
        rounds = [
            (known[np.searchsorted(union, sample)], data.train_labels[sample], everything)
            for sample in samples
        ]
    else:
        drawn = draw((data.labels[train] for train, _ in folds), samples_per_label)
        rounds = [
            (vectors[train[sample]], data.labels[train[sample]], test)
            for (train, test), sample in zip(folds, drawn, strict=True)
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
    found: dict[str, Any] = {
        name: float(np.mean([e[name] for e in experiments if name in e])) for name in experiments[0]
    }
    found["scores_per_experiment"] = experiments
    return Outcome(found, "accuracy", Items("mean", numbered(right), right / np.maximum(seen, 1)))


def draw(labels_of_rounds: Iterable[np.ndarray], per_label: int) -> Iterator[np.ndarray]:
    """For each round, draw the positions of up to ``per_label`` texts of every class.

    As mteb draws: one list of positions, made for the first round, is shuffled again before every round, each
    time by a fresh generator of the same seed; then the first texts of each class are taken.
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
    """(train, test) positions: a shuffle cut into ``folds`` parts, as scikit-learn's KFold cuts it.

    Raises:
        InputError: a part has no text, or the others have a single class.
    """
    order = np.arange(len(labels))
    np.random.RandomState(protocol().seed).shuffle(order)
    found = []
    for part in np.array_split(order, folds):
        held_out = np.zeros(len(labels), dtype=bool)
        held_out[part] = True
        if not len(part) or len(np.unique(labels[~held_out])) < 2:
            raise InputError(
                f"{len(labels)} texts cannot be cross-validated: expected one at least in each of {folds} "
                "parts, and two classes in the other parts; add texts, or a train.jsonl"
            )
        found.append((np.flatnonzero(~held_out), np.flatnonzero(held_out)))
    return found


def _logistic_regression(train: np.ndarray, labels: np.ndarray, test: np.ndarray) -> np.ndarray:
    rules = protocol()
    model = _sklearn().linear_model.LogisticRegression(
        max_iter=rules.classification.max_iterations, random_state=rules.seed
    )
    with warnings.catch_warnings():  # the protocol stops after 100 iterations, converged or not
        warnings.simplefilter("ignore")
        model.fit(train, labels)
    return np.asarray(model.predict(test))


def clustering(data: Sets, embed: Embed, prompt: str) -> Outcome:
    """Cluster each set by mini-batch k-means into as many clusters as it has classes (MTEB English v1).

    Main score: V-measure, averaged over the sets.
    """
    rules = protocol()
    values: list[float] = []
    clusters = np.zeros(len(data.labels[0]), dtype=np.int64)
    for texts, labels in zip(data.texts, data.labels, strict=True):
        if len(np.unique(labels)) < 2:
            values.append(1.0)  # mteb counts a set of one class as right
            continue
        kmeans = _sklearn().cluster.MiniBatchKMeans(
            n_clusters=len(np.unique(labels)),
            batch_size=rules.clustering.batch_size,
            n_init="auto",
            random_state=rules.seed,
        )
        clusters = np.asarray(kmeans.fit(embed(texts, prompt)).labels_, dtype=np.int64)
        values.append(scores.v_measure(labels, clusters))
    found = {
        "v_measure": float(np.mean(values)),
        "v_measure_std": float(np.std(values)),
        "v_measures": values,
    }
    if len(values) > 1:
        return Outcome(found, "v_measure", Items("mean", numbered(values), np.array(values)))
    return Outcome(found, "v_measure", Items("v_measure", numbered(clusters), clusters, data.labels[0]))


def clustering_v2(data: Sets, embed: Embed, prompt: str) -> Outcome:
    """Cluster bootstrapped draws of a sample of the texts (MTEB English v2); all sets are pooled.

    Main score: V-measure, averaged over the draws.
    """
    rules = protocol()
    setting = rules.clustering_v2
    texts = [text for part in data.texts for text in part]
    labels = np.concatenate(data.labels)
    rng = random.Random(rules.seed)  # noqa: S311  the protocol's generator
    sample = rng.sample(range(len(texts)), k=int(setting.fraction * len(texts)))
    vectors, labels = embed([texts[i] for i in sample], prompt), labels[sample]
    kmeans = _sklearn().cluster.MiniBatchKMeans(
        n_clusters=len(np.unique(labels)), batch_size=setting.batch_size, init="k-means++", n_init=1,
        random_state=rules.seed,
    )  # fmt: skip
    values = []
    for _ in range(setting.experiments):
        drawn = rng.choices(range(len(labels)), k=setting.documents)
        values.append(
            scores.v_measure(labels[drawn], np.asarray(kmeans.fit_predict(vectors[drawn]), np.int64))
        )
    found = {
        "v_measure": float(np.mean(values)),
        "v_measure_std": float(np.std(values)),
        "v_measures": values,
    }
    return Outcome(found, "v_measure", Items("mean", numbered(values), np.array(values)))


def _sklearn() -> Any:
    try:
        import sklearn.cluster
        import sklearn.linear_model
    except ImportError as error:
        raise MissingExtraError("evaluation needs scikit-learn: pip install 'nvembed[eval]'") from error
    return sklearn
