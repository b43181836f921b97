"""``nvembed cluster``: what a corpus is about, as named groups and a map."""

from pathlib import Path
from time import perf_counter
from typing import Literal

from rich.table import Table
from rich.text import Text

from nvembed.cli.learners import check_seed, open_source
from nvembed.cli.options import Dtype
from nvembed.cli.screen import printable, results, say, waiting
from nvembed.errors import InputError, OutputError
from nvembed.files import as_utf8


def cluster(
    corpus: Path,
    /,
    *,
    out: Path,
    model: str | None = None,
    k: int | None = None,
    method: Literal["kmeans", "hdbscan"] | None = None,
    min_size: int | None = None,
    representatives: int = 3,
    stop_words: Literal["english", "none"] = "english",
    sample: int | None = None,
    map_points: int = 10_000,
    format: Literal["jsonl", "parquet"] = "jsonl",
    seed: int = 0,
    task: str | None = None,
    instruction: str | None = None,
    field: str | None = None,
    cache: Path | None = None,
    max_length: int | None = None,
    device: str | None = None,
    dtype: Dtype | None = None,
) -> None:
    """Group a corpus by meaning; name the groups and draw a map of it.

    Writes a folder with report.md, clusters.json, assignments.jsonl, map.png and map.json. k-means makes
    --k clusters, or as many as give the highest mean silhouette; HDBSCAN finds the number itself and leaves
    out passages that belong nowhere. Names are the words that stand out in a cluster (class-based TF-IDF).

    Examples:

        nvembed cluster OUT_OF_EMBED --out topics

        nvembed cluster notes/ --model nvidia/NV-Embed-v2 --out topics --k 20

        nvembed cluster titles.txt --model MODEL --task StackExchangeClustering --method hdbscan --out topics

    Parameters
    ----------
    corpus
        What nvembed embed wrote; or, with --model, a folder of text, or a .jsonl, .csv, .tsv, .parquet or
        .txt file.
    out
        The folder to write; it must not exist yet.
    model
        A checkpoint folder, or a hub id, to embed the texts with; the vectors are kept beside the corpus.
    k
        How many clusters k-means makes; chosen by the silhouette, from 2 to 100, unless given.
    method
        kmeans (unless given) or hdbscan.
    min_size
        The fewest passages that are a cluster, for hdbscan; 1% of those it sees, at least 5, unless given.
    representatives
        How many passages of each cluster the report quotes: those nearest to its centre.
    stop_words
        english keeps English function words out of the names; none does not.
    sample
        Fit on so many passages at most; the others are put into the nearest cluster. 100,000 passages for
        kmeans and 20,000 for hdbscan unless given, and never more than fill 1 GiB.
    map_points
        Passages on the map at most.
    format
        Of the assignments.
    seed
        The same seed gives the same clusters, names and map.
    task
        A task whose instruction is known, such as StackExchangeClustering; with --model.
    instruction
        The sentence that describes the task; with --model.
    field
        The field of the corpus that holds the text; "text", with a "title" before it, unless given.
    cache
        The folder to keep the vectors in, in place of .nvembed beside the corpus.
    max_length
        The most tokens to read of one text; the model's own limit unless given.
    device
        cpu, cuda, cuda:1, or several: cuda:0,cuda:1.
    dtype
        What to compute in; bfloat16 on CUDA and float32 on CPU unless given.
    """
    if k is not None and method == "hdbscan":
        raise InputError(
            "--k and --method hdbscan are both given: HDBSCAN finds the number of clusters itself"
        )
    if min_size is not None and method != "hdbscan":
        raise InputError("--min-size is for --method hdbscan; expected it only there")
    for name, value in {
        "--representatives": representatives,
        "--map-points": map_points,
        "--sample": sample,
    }.items():
        if value is not None and value < 1:
            raise InputError(f"{name} is {value}; expected at least 1")
    check_seed(seed)
    if out.exists():
        raise OutputError(f"{out} exists already: remove it, or write to another path")
    from nvembed.learn.cluster_files import Options, cluster_corpus

    source = open_source(
        corpus, model=model, task=task, instruction=instruction, field=field, cache=cache,
        max_length=max_length, device=device, dtype=dtype,
    )  # fmt: skip
    options = Options(
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
    table = Table(expand=False)
    table.add_column("cluster", justify="right")
    table.add_column("passages", justify="right")
    table.add_column("name")
    for item in result.clusters:
        table.add_row(str(item.number), f"{item.size:,}", Text(printable(item.name)))
    if result.noise:
        table.add_row("", f"{result.noise:,}", "in no cluster")
    results().print(table)
    say(f"{result.how}; {perf_counter() - start:.1f} s -> {out / 'report.md'}")
