"""How good are the clusters and classes that a corpus is put into, and which map is worth its seconds?

    python benchmarks/cluster.py --model all-MiniLM-L6-v2=FOLDER --data DATA \\
        --rows 2000 --out benchmarks/results/cluster.md

Texts, seeds and settings are the same for every model: give ``--model`` once for each. Models that take
instructions get the set's own. ``--maps`` compares ways to draw a map, on the first model's vectors. Texts
are drawn at random (seed 0); labels only score what was found without them.
"""

import argparse
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from sklearn.cluster import HDBSCAN
from sklearn.decomposition import PCA
from sklearn.manifold import TSNE, SpectralEmbedding, trustworthiness
from sklearn.model_selection import cross_val_score
from sklearn.neighbors import KNeighborsClassifier

from nvembed.cli.classify import label_pairs
from nvembed.cli.models import Loading, open_model
from nvembed.evaluate import record
from nvembed.evaluate.learn import classification, clustering
from nvembed.evaluate.scores import v_measure
from nvembed.evaluate.subject import Subject
from nvembed.evaluate.tasks import Labelled, Sets
from nvembed.learn import cluster
from nvembed.learn.classify import fit, softmax
from nvembed.learn.judge import calibration_error, judge, wilson
from nvembed.learn.map import project
from nvembed.read.lines import read_rows
from nvembed.text.prompt import format_prompt, instruction_for

CLUSTERED = ("stackoverflow_titles", "ag_news_titles")
CLASSIFIED = ("banking77", "emotion")
PROTOCOL_SAMPLES = {"banking77": 8, "emotion": 16}  # texts per class, as recipes/nv_embed_v2/evaluation.toml

Row = list[str]

CLUSTER_HEAD = ["model", "set", "method", "clusters", "noise", "V-measure", "in clusters", "CPU s"]
CLASS_HEAD = ["model", "set", "train / test", "C", "cross-validated", "test", "calibration error"]
CLASS_HEAD += ["evaluate's protocol", "zero-shot"]
MAP_HEAD = ["map", "texts", "trustworthiness", "10-NN accuracy", "CPU s"]


def read(folder: Path, part: str, rows: int) -> tuple[list[str], np.ndarray]:
    """Return ``rows`` random texts of a set and their labels."""
    path = next((p for p in (folder / f"{part}.jsonl", folder / f"{part}.jsonl.gz") if p.exists()), None)
    if path is None:
        sys.exit(f"{folder} has no {part}.jsonl: --data must name the shared data folder")
    records = [row for _, row in read_rows(path)]
    chosen = np.random.default_rng(0).permutation(len(records))[:rows]
    return [records[i]["text"] for i in chosen], np.array([str(records[i]["label"]) for i in chosen])


def embedder(subject: Subject, name: str) -> Callable[[Sequence[str], str], np.ndarray]:
    """Return an encode function with the set's own prompt, which remembers the texts it has seen."""
    prompt = format_prompt(instruction_for(name)) if subject.instructions else ""
    seen: dict[tuple[str, str], np.ndarray] = {}

    def embed(texts: Sequence[str], own_prompt: str = prompt) -> np.ndarray:
        new = list(dict.fromkeys(text for text in texts if (own_prompt, text) not in seen))
        if new:
            vectors = subject.encode(new, own_prompt).vectors
            seen.update({(own_prompt, text): vector for text, vector in zip(new, vectors, strict=True)})
        return np.stack([seen[own_prompt, text] for text in texts])

    return embed


def score_clusters(subject: Subject, data: Path, rows: int) -> list[Row]:
    table = []
    for name in CLUSTERED:
        texts, labels = read(data / "clustering" / name, "test", rows)
        vectors = embedder(subject, name)(texts)
        gold = np.unique(labels, return_inverse=True)[1]
        classes = len(np.unique(gold))
        sets = Sets([texts], [gold])
        protocol = clustering(sets, lambda _texts, _prompt, own=vectors: own, "").scores["v_measure"]
        table.append(
            [
                subject.name,
                name,
                "evaluate's protocol (mini-batch k-means)",
                str(classes),
                "",
                f"{protocol:.3f}",
                "",
                "",
            ]
        )
        runs: dict[str, Callable[[], np.ndarray]] = {
            "k-means, k = classes": lambda v=vectors, k=classes: cluster.kmeans(v, k=k).labels,
            "k-means, k by silhouette": lambda v=vectors: cluster.kmeans(v).labels,
            "HDBSCAN on 5 dimensions": lambda v=vectors: cluster.hdbscan(v).labels,
            "HDBSCAN on the vectors": lambda v=vectors: HDBSCAN(max(5, len(v) // 100), copy=True).fit_predict(
                v
            ),
        }
        for what, run in runs.items():
            start = time.process_time()
            labels_found = run()
            seconds = time.process_time() - start
            inside = labels_found >= 0
            within = f"{v_measure(gold[inside], labels_found[inside]):.3f}" if inside.any() else ""
            table.append(
                [
                    subject.name,
                    name,
                    what,
                    f"{labels_found.max() + 1}",
                    f"{1 - inside.mean():.1%}",
                    f"{v_measure(gold, labels_found + 1):.3f}",
                    within,
                    f"{seconds:.1f}",
                ]
            )
            print(table[-1], flush=True)
    return table


def score_classes(subject: Subject, data: Path, rows: int) -> list[Row]:
    table = []
    for name in CLASSIFIED:
        train, train_labels = read(data / "classification" / name, "train", rows)
        test, test_labels = read(data / "classification" / name, "test", rows // 2)
        embed = embedder(subject, name)
        classifier, validation = fit(embed(train), train_labels.tolist())
        vectors = embed(test)
        truth = np.searchsorted(classifier.classes, test_labels)
        raw = softmax(vectors @ classifier.weights.T + classifier.bias)
        after = classifier.probabilities(vectors)
        judgement = judge(truth, after.argmax(axis=1), len(classifier.classes))
        crossed = judge(validation.truth, validation.calibrated.argmax(axis=1), len(classifier.classes))
        labelled = Labelled(test, truth, train, np.searchsorted(classifier.classes, train_labels))
        samples = PROTOCOL_SAMPLES[name]
        outcome = classification(
            labelled, lambda texts, _prompt, e=embed: e(texts), "", samples_per_label=samples
        )
        _, label_texts = label_pairs(classifier.classes)
        label_vectors = embed(label_texts, "")
        zero = int(((vectors @ label_vectors.T).argmax(axis=1) == truth).sum())
        table.append(
            [
                subject.name, name, f"{len(train):,} / {len(test):,}", f"{validation.c:g}",
                shown(crossed.accuracy, crossed.accuracy_interval),
                shown(judgement.accuracy, judgement.accuracy_interval),
                f"{calibration_error(raw, truth):.3f} -> {calibration_error(after, truth):.3f}",
                f"{outcome.scores['accuracy']:.1%} ({samples} per class)",
                shown(zero / len(test), wilson(zero, len(test))),
            ]
        )  # fmt: skip
        print(table[-1], flush=True)
    return table


def shown(value: float, interval: tuple[float, float]) -> str:
    return f"{value:.1%} ({interval[0]:.1%} to {interval[1]:.1%})"


def score_maps(subject: Subject, data: Path, rows: int) -> list[Row]:
    texts, labels = read(data / "clustering" / CLUSTERED[0], "test", rows)
    vectors = embedder(subject, CLUSTERED[0])(texts)
    few = PCA(50, random_state=0).fit_transform(vectors)
    project(vectors[:500])  # compiles UMAP's code, which every process pays once
    ways: dict[str, Callable[[], Any]] = {
        "PCA": lambda: PCA(2, random_state=0).fit_transform(vectors),
        "spectral embedding": lambda: SpectralEmbedding(2, random_state=0, n_neighbors=15).fit_transform(few),
        "t-SNE of 50 principal components": lambda: TSNE(metric="cosine", random_state=0).fit_transform(few),
        "UMAP of 50 principal components": lambda: project(vectors),
    }
    table = []
    for what, way in ways.items():
        start = time.process_time()
        places = way()
        seconds = time.process_time() - start
        near = cross_val_score(KNeighborsClassifier(10), places, labels, cv=5).mean()
        kept = trustworthiness(vectors, places, n_neighbors=10, metric="cosine")
        table.append([what, f"{len(texts):,}", f"{kept:.3f}", f"{near:.1%}", f"{seconds:.1f}"])
        print(table[-1], flush=True)
    return table


def as_table(head: Row, rows: list[Row]) -> list[str]:
    return ["| " + " | ".join(cells) + " |" for cells in [head, ["---"] * len(head), *rows]]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", action="append", required=True, help="NAME=FOLDER, or a folder")
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--rows", type=int, default=2000)
    parser.add_argument("--maps", action="store_true")
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args()
    clusters: list[Row] = []
    classes: list[Row] = []
    maps: list[Row] = []
    for spec in args.model:
        subject = open_model(spec, Loading(max_tokens=512))
        environment = record.environment(subject)
        clusters += score_clusters(subject, args.data, args.rows)
        classes += score_classes(subject, args.data, args.rows)
        if args.maps and not maps:
            maps = score_maps(subject, args.data, args.rows)
    names = [spec.partition("=")[0] + "=FOLDER" if "=" in spec else Path(spec).name for spec in args.model]
    command = ["python", "benchmarks/cluster.py", *(f"--model {name}" for name in names)]
    command += ["--data DATA", f"--rows {args.rows}", *(["--maps"] if args.maps else [])]
    packages = ", ".join(f"{name} {version}" for name, version in environment["packages"].items())
    machine = f"{environment['processor']}, {environment['cores']} cores; {packages}"
    lines = [
        "# Clusters, classes and maps",
        "",
        f"`{' '.join(command)} --out benchmarks/results/cluster.md`",
        "",
        f"{machine}; {time.strftime('%Y-%m-%d')}. One run.",
        "",
        "## Clusters",
        "",
        f"{args.rows:,} random titles of each set. V-measure against the set's classes, which the methods",
        "do not see: over all titles (noise counted as one more cluster), and over those in a cluster.",
        "",
        *as_table(CLUSTER_HEAD, clusters),
        "",
        "## Classes",
        "",
        "`nvembed classify fit` on random training texts, judged on random test texts. Calibration: expected",
        "calibration error on the test texts. evaluate's protocol learns from a few texts of each class, ten",
        "times. Zero-shot: the nearest label name.",
        "",
        *as_table(CLASS_HEAD, classes),
    ]
    if maps:
        lines += [
            "",
            "## Maps",
            "",
            f"{CLUSTERED[0]}, vectors of {names[0].removesuffix('=FOLDER')}. Trustworthiness of the 10",
            "nearest neighbours; accuracy of a 10-nearest-neighbour classifier on the map; seconds without",
            "the ten or so in which UMAP compiles itself, once per process.",
            "",
            *as_table(MAP_HEAD, maps),
        ]
    args.out.parent.mkdir(parents=True, exist_ok=True)
    args.out.write_text("\n".join(lines) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
