"""``nvembed embed``: a corpus of any size into sharded Parquet, exactly once."""

import os
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from time import perf_counter
from typing import Annotated, Any, Literal

from cyclopts import Parameter

from nvembed.cli.embedding import Model, describe, passage_sizes
from nvembed.cli.models import Tally, prompts
from nvembed.cli.options import Dtype
from nvembed.cli.screen import long_progress, say
from nvembed.errors import InputError, MissingExtraError
from nvembed.files import as_utf8


def embed(
    corpus: str,
    out: Path,
    /,
    *,
    model: str,
    field: str | None = None,
    task: str | None = None,
    prompt: str | None = None,
    chunk_tokens: int | None = None,
    overlap_tokens: int | None = None,
    whole: Annotated[bool, Parameter(negative=())] = False,
    max_length: int | None = None,
    storage: Literal["float16", "float32"] = "float16",
    on_error: Literal["stop", "skip"] = "stop",
    shard_passages: int = 512,
    config: str | None = None,
    split: str = "train",
    revision: str | None = None,
    engine: Literal["local", "ray"] = "local",
    workers: int | None = None,
    ray_address: str | None = None,
    device: str | None = None,
    dtype: Dtype | None = None,
    batch_tokens: int | None = None,
) -> None:
    """Embed a corpus into a folder of Parquet files; the same command goes on where it was stopped.

    Long documents are cut into passages at sentence ends. The corpus is read through before anything is
    embedded, so that what is wrong with it is said at the beginning. Killed anywhere and started again,
    the command ends with the same bytes, and no finished shard is computed twice; with another corpus,
    model or setting it refuses to go on. docs/reference/embedded-corpus.md says what is written.

    Examples:

        nvembed embed notes/ notes.embedded --model nvidia/NV-Embed-v2

        nvembed embed beir/scifact out --model MODEL --whole

        nvembed embed posts.csv out --model MODEL --field body --chunk-tokens 256 --overlap-tokens 32

        nvembed embed datasets:allenai/peS2o out --model MODEL --split train --on-error skip

        nvembed embed /shared/corpus /shared/out --model MODEL --engine ray --ray-address auto

    Parameters
    ----------
    corpus
        A folder of text, Markdown, HTML, PDF, JSONL, CSV and Parquet files, or one of them (a single .txt
        has one text per line); a folder with corpus.jsonl (BEIR); or datasets:owner/name of the hub.
    out
        The folder to write: a new one, or one that the same command left.
    model
        A checkpoint folder, or a hub id.
    field
        The field of records that holds the text; "text", with a "title" before it, unless given.
    task
        A task whose instruction is known and stands before passages too, such as Banking77Classification.
    prompt
        The whole string to put before each passage; none unless given.
    chunk_tokens
        The most tokens of a passage; 512 unless given.
    overlap_tokens
        The most tokens that a passage shares with the one before it; an eighth of a passage unless given.
    whole
        Leave documents whole: what the model cannot read of a long one is cut, and counted.
    max_length
        The most tokens to read of one passage, prompt included; the model's own limit unless given.
    storage
        What vectors are stored as; float16 keeps three decimal digits in half the space.
    on_error
        stop at the first file or record that cannot be read, or skip them and list them in manifest.json.
    shard_passages
        Passages of about 1,000 characters in one shard: what is lost at most when a job is killed. Choose
        fewer where a model is slow.
    config
        The configuration of a data set of the hub.
    split
        Its split.
    revision
        Its branch, tag or commit.
    engine
        local: this process. ray: a Ray cluster, one worker per device; corpus and OUT must be on a disk that
        every node sees (extra "ray").
    workers
        Ray only: how many models to load; one per GPU, or on CPUs as many as leave one to read, unless given.
    ray_address
        Ray only: the cluster, such as auto; one on this machine unless given.
    device
        cpu, cuda, cuda:1, or several: cuda:0,cuda:1.
    dtype
        What to compute in; bfloat16 on CUDA and float32 on CPU unless given.
    batch_tokens
        Tokens to compute at a time; 2,048 on CPU and 16,384 on CUDA unless given.
    """
    if engine == "local" and (workers is not None or ray_address is not None):
        raise InputError("--workers and --ray-address are for --engine ray: add it, or take them away")
    if engine == "ray" and device is not None:
        raise InputError("--device is for the engine local: a worker on Ray takes the GPU that it is given")
    if whole and (chunk_tokens is not None or overlap_tokens is not None):
        raise InputError("--whole leaves documents whole: take it away, or the sizes of passages")
    if shard_passages < 1:
        raise InputError(f"--shard-passages is {shard_passages}; expected at least 1")
    plan, jobs, sources = _modules()
    source = _source(sources, corpus, out, config=config, split=split, revision=revision)
    reading = plan.Reading(field, on_error, shard_passages)
    passage_prompt = prompts(task=task, prompt=prompt)[0 if task is None else 1]
    with ExitStack() as stack:
        cluster = _join(stack, ray_address) if engine == "ray" else None
        if cluster is not None:
            count = cluster.workers(workers)
            device = "cuda" if cluster.gpus else "cpu"
        facts = describe(model, device=device, dtype=dtype, prompt=passage_prompt, max_length=max_length)
        tokens, overlap = (None, None) if whole else passage_sizes(facts, chunk_tokens, overlap_tokens)
        with long_progress("reading the corpus") as update:
            job = stack.enter_context(jobs.open_job(out, source, reading, update))
        settings = jobs.Settings(
            fingerprint=facts.fingerprint,
            prompt=passage_prompt,
            dtype=facts.dtype,
            dim=facts.dim,
            max_length=facts.max_length,
            batch_tokens=batch_tokens or facts.batch_tokens,
            storage=storage,
            chunk_tokens=tokens,
            overlap_tokens=overlap,
        )
        where = str(Path(model).resolve()) if Path(model).exists() else model
        loading = Model(
            where, device, settings.dtype, passage_prompt, settings.max_length, settings.batch_tokens
        )
        if cluster is None:
            compute = jobs.local_engine(facts.build_offsets(), loading.encode())
        else:
            from nvembed.embed.ray_engine import ray_engine

            compute = ray_engine(cluster, count, facts.build_offsets, loading.encode)
        _run(job, settings, compute, {"corpus": as_utf8(corpus), "model": as_utf8(model)})


def _modules() -> tuple[Any, Any, Any]:
    """Import what needs pyarrow, saying so where it is missing."""
    try:
        from nvembed.embed import job, plan
        from nvembed.read import corpus as sources
    except ImportError as error:
        if error.name != "pyarrow":
            raise
        raise MissingExtraError("nvembed embed needs: pip install 'nvembed[corpus]'") from error
    return plan, job, sources


def _source(
    sources: Any, corpus: str, out: Path, *, config: str | None, split: str, revision: str | None
) -> Any:
    if corpus.startswith(sources.HUB):
        name = corpus.removeprefix(sources.HUB)
        return sources.hub(name, config=config, split=split, revision=revision)
    if (config, split, revision) != (None, "train", None):
        raise InputError(f"--config, --split and --revision are for data sets: {sources.HUB}owner/name")
    if Path(corpus).is_dir() and out.resolve().is_relative_to(Path(corpus).resolve()):
        raise InputError(f"{out} lies in the corpus {corpus}: choose a folder outside of it")
    return sources.list_files(corpus)


def _join(stack: ExitStack, address: str | None) -> Any:
    from nvembed.embed.ray_engine import ray_cluster

    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"  # Ray would report its use to its makers
    return stack.enter_context(ray_cluster(address))


def _run(job: Any, settings: Any, compute: Any, names: dict[str, str]) -> None:
    was_finished = job.finished
    tally = Tally()
    begun = False
    start = perf_counter()

    def counted(work: Any, shards: list[Any]) -> Iterator[dict[str, Any]]:
        nonlocal begun
        begun = True
        for entry in compute(work, shards):
            tally.texts += entry["rows"]
            tally.tokens += entry["tokens"]
            yield entry

    try:
        with long_progress("embedding") as update:
            manifest = job.run(settings, counted, update, names=names)
    except BaseException:
        if begun and (done := job.shards_done()):
            say(f"shards finished and kept: {done:,}; the same command goes on from there")
        raise
    counts = manifest["counts"]
    if was_finished:
        say("finished before: nothing was computed")
    else:
        say(tally.message(perf_counter() - start))
    passages = f"{counts['passages']:,} passages ({counts['tokens']:,} tokens)"
    say(f"{counts['documents']:,} documents, {passages}, {len(manifest['shards']):,} shards -> {job.out}")
    _warn(manifest)


def _warn(manifest: dict[str, Any]) -> None:
    counts, settings = manifest["counts"], manifest["settings"]
    warnings = []
    if counts["truncated"]:
        warnings.append(f"{counts['truncated']:,} passages were cut to {settings['max_length']:,} tokens")
    if counts["empty"]:
        warnings.append(f"{counts['empty']:,} passages are empty: their vectors say nothing")
    if skipped := manifest["skipped"]:
        warnings.append(
            f"files or records skipped: {len(skipped):,} (manifest.json lists them); "
            f"the first: {skipped[0]['reason']}"
        )
    if ignored := manifest["ignored"]:
        kinds = ", ".join(f"{suffix or 'no suffix'}: {count:,}" for suffix, count in ignored.items())
        warnings.append(f"files of other kinds were not read ({kinds})")
    for warning in warnings:
        say(warning, label="warning: ", style="bold yellow")
