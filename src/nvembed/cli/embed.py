"""``nvembed embed``: a corpus of any size into sharded Parquet, exactly once."""

import os
from collections.abc import Generator, Mapping
from contextlib import ExitStack, closing
from dataclasses import replace
from pathlib import Path
from time import perf_counter
from typing import TYPE_CHECKING, Annotated, Literal

from cyclopts import Parameter

from nvembed.cli.embedding import ModelRecipe, counting, warn_of
from nvembed.cli.models import Tally
from nvembed.cli.options import CompiledCompute, CorpusOptions, Count, Flag
from nvembed.cli.screen import long_progress, say, warn
from nvembed.errors import InputError
from nvembed.files import as_utf8
from nvembed.indexing.models import Facts, describe, embed_settings, own_prompts, prompts
from nvembed.search.record import is_index
from nvembed.text.model_prompts import place_titles

if TYPE_CHECKING:
    from nvembed.embed.job import Advance, CorpusJob, EmbedSettings, Engine, Work
    from nvembed.embed.plan import Shard
    from nvembed.embed.ray_engine import RayCluster
    from nvembed.embed.records import ShardEntry
    from nvembed.read.corpus import CorpusFiles

Storage = Literal["float16", "float32"]


def embed(
    corpus: str,
    out: Path,
    /,
    *,
    model: str,
    update: Flag = False,
    task: str | None = None,
    prompt: str | None = None,
    chunk_tokens: Count | None = None,
    overlap_tokens: int | None = None,
    whole: Flag = False,
    late_chunking: Flag = False,
    cut: Literal["sentences", "structure"] | None = None,
    context: Literal["none", "title", "headings"] = "none",
    max_length: Count | None = None,
    storage: Storage = "float16",
    shard_passages: Count = 512,
    reading: CorpusOptions = CorpusOptions(),
    engine: Literal["local", "ray"] = "local",
    workers: int | None = None,
    ray_address: str | None = None,
    batch_tokens: Annotated[Count | None, Parameter(group="Computation")] = None,
    compute: CompiledCompute = CompiledCompute(),
) -> None:
    """Embed a corpus into a folder of Parquet files. Run the same command again to resume.

    Long documents are cut into passages at headings, paragraphs, list items, table rows and sentence
    ends. The command first reads the whole corpus and reports every fault in it, then embeds. If it is
    interrupted, run it again: it keeps finished shards and writes the same bytes. It refuses to resume
    with another model or other settings. If the corpus has changed, --update embeds only the changes.

    Examples:

        nvembed embed notes/ notes.embedded --model nvidia/NV-Embed-v2

        nvembed embed notes/ notes.embedded --model nvidia/NV-Embed-v2 --update

        nvembed embed beir/scifact out --model MODEL --whole

        nvembed embed posts.csv out --model MODEL --field body --delimiter ";"

        nvembed embed datasets:allenai/peS2o out --model MODEL --on-error skip

        nvembed embed /shared/corpus /shared/out --model MODEL --engine ray

    Parameters
    ----------
    corpus
        A folder of documents (text, Markdown, HTML, PDF, Word, PowerPoint, Excel, OpenDocument, EPUB, e-mail,
        JSON, source code) and of records (JSONL, CSV, Parquet), or one such file (a single .txt has one text
        per line); a folder with corpus.jsonl (BEIR); or datasets:owner/name of the hub.
    out
        Folder to write: a new one, or that of the same command, interrupted.
    model
        Model: a folder or a hub id.
    update
        After a change of the corpus: embed new and changed passages, and reuse the vectors of the others.
    task
        Task with a known instruction for passages too, such as Banking77Classification.
    prompt
        Exact string to prepend to each passage. Default: the model's document prompt, if it has one.
    chunk_tokens
        Most tokens of a passage. Default: 512.
    overlap_tokens
        Most tokens that a passage shares with the one before it. Default: an eighth of a passage.
    whole
        Do not cut documents. The model reads only the beginning of a long one; their number is reported.
    late_chunking
        Read each document whole, or in overlapping windows of --max-length, and pool each passage from its
        tokens: a passage then knows what stands around it. For models that pool by the mean.
    cut
        Where documents are cut: structure (headings, blocks, rows, sentences), or sentences. Default:
        structure, or the setting of the folder OUT.
    context
        Text to put before each passage for the model: none, the title of its document, or title and
        headings. It takes up to 64 tokens of the passage.
    max_length
        Most tokens read of one passage, prompt included. Default: the model's limit.
    storage
        Number format of the stored vectors; float16 keeps three decimal digits in half the space.
    shard_passages
        Passages of about 1,000 characters per shard. A killed job loses at most the unfinished shards.
    engine
        local: this process. ray: a Ray cluster, one worker per device; corpus and OUT must be on a disk that
        every node sees (extra "ray").
    workers
        Ray: models to load. Default: one per GPU, or on CPUs as many as leave one CPU to read.
    ray_address
        Ray: address of the cluster, such as auto. Default: a cluster is started on this machine.
    batch_tokens
        Tokens computed at a time. Default: 2,048 on CPU, 16,384 on CUDA.
    """
    if engine == "local" and (workers is not None or ray_address is not None):
        raise InputError("--workers and --ray-address are for --engine ray: add it, or remove them")
    if engine == "ray" and (compute.device is not None or update):
        raise InputError("--device and --update are for the local engine: remove them, or --engine ray")
    sizes = {"--chunk-tokens": chunk_tokens, "--overlap-tokens": overlap_tokens, "--cut": cut}
    _check_cutting(sizes, context, whole=whole, late=late_chunking)
    from nvembed.embed.job import open_job, recorded_cut
    from nvembed.embed.records import CorpusReading

    source = _source(corpus, out, reading)
    how = CorpusReading(
        field=reading.field,
        on_error=reading.on_error,
        shard_passages=shard_passages,
        delimiter=reading.delimiter,
        encoding=reading.encoding,
    )
    _, passage_prompt = prompts(task=task, prompt=prompt, own=own_prompts(model))
    with ExitStack() as stack:
        cluster = _join(stack, ray_address) if engine == "ray" else None
        count = cluster.workers(workers) if cluster is not None else 0
        device = compute.device if cluster is None else "cuda" if cluster.gpus else "cpu"
        facts = describe(
            model, device=device, dtype=compute.dtype, prompt=passage_prompt, max_length=max_length
        )
        if late_chunking:
            from nvembed.encoder import check_late

            check_late(facts.pooling)
        settings = embed_settings(
            facts,
            passage_prompt,
            None if whole else (chunk_tokens, overlap_tokens),
            storage=storage,
            cut="structure",
            context=context,
            late_chunking=late_chunking,
            batch_tokens=batch_tokens,
        )
        with long_progress("reading the corpus") as progress:
            job = stack.enter_context(open_job(out, source, how, progress, update=update))
        settings = replace(settings, cut=cut or recorded_cut(out) or ("sentences" if whole else "structure"))
        tally = Tally()
        recipe = _recipe(model, device, settings, compiled=compute.compiled)
        chosen = _engine(job, recipe, settings, facts, cluster, count, tally)
        _run(job, settings, chosen, tally, {"corpus": as_utf8(corpus), "model": as_utf8(model)})


def _check_cutting(options: Mapping[str, object], context: str, *, whole: bool, late: bool) -> None:
    """Refuse options that contradict each other; ``options`` are those of documents that are cut."""
    if whole and (cutting := [name for name, value in options.items() if value is not None]):
        raise InputError(f"--whole leaves documents whole: remove it, or {' and '.join(cutting)}")
    if whole and late:
        raise InputError("--late-chunking pools passages, and --whole makes none: remove one of them")
    if context == "headings" and (whole or options["--cut"] == "sentences"):
        raise InputError("--context headings needs --cut structure, which finds the headings")
    if context != "none" and late:
        raise InputError("--late-chunking reads the document around a passage: remove it, or --context")


def _source(corpus: str, out: Path, reading: CorpusOptions) -> "CorpusFiles":
    from nvembed.read.corpus import HUB, hub, list_files

    if corpus.startswith(HUB):
        name = corpus.removeprefix(HUB)
        return hub(name, config=reading.config, split=reading.split, revision=reading.revision)
    if (reading.config, reading.split, reading.revision) != (None, "train", None):
        raise InputError(f"--config, --split and --revision are for data sets: {HUB}owner/name")
    if Path(corpus).is_dir() and out.resolve().is_relative_to(Path(corpus).resolve()):
        raise InputError(f"{out} is inside the corpus {corpus}: choose a folder outside of it")
    return list_files(corpus, follow_links=reading.follow_links)


def _join(stack: ExitStack, address: str | None) -> "RayCluster":
    from nvembed.embed.ray_engine import ray_cluster

    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"  # Ray would send statistics to its makers
    return stack.enter_context(ray_cluster(address))


def _recipe(model: str, device: str | None, settings: "EmbedSettings", *, compiled: bool) -> ModelRecipe:
    where = str(Path(model).resolve()) if Path(model).exists() else model
    prompt, _ = place_titles(settings.prompt)
    return ModelRecipe(
        where,
        device,
        settings.dtype,
        prompt,
        settings.max_length,
        settings.batch_tokens,
        settings.late_chunking,
        compiled,
    )


def _engine(
    job: "CorpusJob",
    recipe: ModelRecipe,
    settings: "EmbedSettings",
    facts: Facts,
    cluster: "RayCluster | None",
    count: int,
    tally: Tally,
) -> "Engine":
    from nvembed.embed.job import local_engine

    if cluster is not None:
        from nvembed.embed.ray_engine import ray_engine

        return _tallied(ray_engine(cluster, count, facts.build_offsets, recipe.encode), tally)
    encode = counting(recipe.encode(), tally)
    # with late chunking a vector depends on the whole document, so none is used again
    earlier = None if settings.late_chunking else job.earlier_shards(settings.prompt, settings.context)
    return local_engine(
        facts.build_offsets(), encode if earlier is None else earlier.reusing(encode, tally.add_reused)
    )


def _tallied(engine: "Engine", tally: Tally) -> "Engine":
    """Return an engine of other processes that counts what it computes."""

    def compute(
        work: "Work", shards: list["Shard"], advance: "Advance"
    ) -> Generator["ShardEntry", None, None]:
        with closing(engine(work, shards, advance)) as computed:
            for entry in computed:
                tally.texts += entry.rows
                tally.tokens += entry.tokens
                yield entry

    return compute


def _run(
    job: "CorpusJob", settings: "EmbedSettings", engine: "Engine", tally: Tally, names: dict[str, str]
) -> None:
    start = perf_counter()
    try:
        with long_progress("embedding") as progress:
            manifest = job.run(settings, engine, progress, names=names)
    except BaseException:
        if not job.finished and (done := job.shards_done()):
            say(f"{done:,} shards are finished. Run the same command again to resume")
        raise
    counts = manifest["counts"]
    if job.finished:
        say("already finished: nothing was computed")
    else:
        say(tally.message(perf_counter() - start))
    if tally.reused:
        say(f"{tally.reused:,} passages have not changed: their vectors were used again")
    passages = f"{counts['passages']:,} passages ({counts['tokens']:,} tokens)"
    folder = job.earlier or job.out
    say(f"{counts['documents']:,} documents, {passages}, {len(manifest['shards']):,} shards -> {folder}")
    warn_of(manifest)
    if job.earlier is not None and is_index(folder):
        warn(
            f"the index of {folder} is of the earlier state of the corpus. Build it again: nvembed index "
            f"{folder}"
        )
