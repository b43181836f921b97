"""``nvembed cluster``: named groups of a corpus, and a map."""

from pathlib import Path
from time import perf_counter
from typing import Literal

from rich.text import Text

from nvembed.cli.learners import Seed, open_source
from nvembed.cli.options import Compute, Count, Prompt, Reading
from nvembed.cli.screen import printable, results, say, table, waiting
from nvembed.errors import InputError, OutputError
from nvembed.files import as_utf8


def cluster(
    corpus: Path,
    /,
    *,
    out: Path,
    model: str | None = None,
    k: Count | None = None,
    method: Literal["kmeans", "hdbscan"] | None = None,
    min_size: Count | None = None,
    representatives: Count = 3,
    stop_words: Literal["english", "none"] = "english",
    sample: Count | None = None,
    map_points: Count = 10_000,
    format: Literal["jsonl", "parquet"] = "jsonl",
    seed: Seed = 0,
    prompt: Prompt = Prompt(),
    reading: Reading = Reading(),
    compute: Compute = Compute(),
) -> None:
    """Group a corpus by meaning, name the groups, and draw a map.

    Writes a folder with report.md, clusters.json, assignments.jsonl, map.png and map.json. k-means makes
    --k clusters, or the number with the highest mean silhouette. HDBSCAN finds the number itself and leaves
    out passages that belong to no group. Names are the words that are frequent in one cluster and rare in the
    others (class-based TF-IDF).

    Examples:

        nvembed cluster OUT_OF_EMBED --out topics

        nvembed cluster notes/ --model nvidia/NV-Embed-v2 --out topics --k 20

        nvembed cluster titles.txt --model MODEL --method hdbscan \\
            --task StackExchangeClustering --out topics

    Parameters
    ----------
    corpus
        A folder that "nvembed embed" wrote; or, with --model, a folder of documents or a file of texts.
    out
        New folder for the results.
    model
        Model: a folder or a hub id. The vectors are kept beside the corpus.
    k
        Number of clusters of k-means. Default: the best of 2 to 100 by silhouette.
    method
        Clustering method. Default: kmeans.
    min_size
        Fewest passages of a cluster, for hdbscan. Default: 1% of the passages, at least 5.
    representatives
        Passages that the report quotes per cluster, nearest to its centre.
    stop_words
        english: no English function words in names; none: every word may occur.
    sample
        Most passages to fit on; the others join the nearest cluster. Default: 100,000 for kmeans, 20,000 for
        hdbscan, and at most 1 GiB.
    map_points
        Most passages on the map.
    format
        Format of the assignments.
    seed
        Random seed. Equal seeds give equal clusters, names and maps.
    """
    if k is not None and method == "hdbscan":
        raise InputError("--k and --method hdbscan exclude each other: HDBSCAN finds the number of clusters")
    if min_size is not None and method != "hdbscan":
        raise InputError("--min-size needs --method hdbscan")
    if out.exists():
        raise OutputError(f"{out} exists already: remove it, or write to another path")
    from nvembed.learn.cluster_report import ClusterOptions, cluster_corpus

    source = open_source(corpus, model, prompt, reading, compute, whole=False)
    options = ClusterOptions(
        method=method or "kmeans",
        k=k,
        min_size=min_size,
        representatives=representatives,
        stop_words=None if stop_words == "none" else stop_words,
        sample_rows=sample,
        map_rows=map_points,
        format=format,
        seed=seed,
    )
    start = perf_counter()
    with waiting(f"clustering {source.rows:,} passages"):
        result = cluster_corpus(source, out, as_utf8(corpus.name or str(corpus)), options)
    sizes = table("cluster", "passages", "name", numbers=("cluster", "passages"))
    for item in result.clusters:
        sizes.add_row(str(item.number), f"{item.size:,}", Text(printable(item.name)))
    if result.noise:
        sizes.add_row("", f"{result.noise:,}", "in no cluster")
    results().print(sizes)
    say(f"{result.how}; {perf_counter() - start:.1f} s -> {out / 'report.md'}")
