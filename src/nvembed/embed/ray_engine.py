"""Shards computed on a Ray cluster, with Ray Data: tasks read and cut, an actor for each device embeds.

Ray starts a killed task or actor again; a shard that is written already is not computed again.
"""

import json
import logging
import threading
from collections.abc import Callable, Generator, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

import pyarrow as pa

from nvembed import errors
from nvembed.embed.job import Advance, Engine, Work
from nvembed.embed.passages import Passages
from nvembed.embed.plan import Shard, Span, Stamped
from nvembed.embed.records import ShardEntry, plain
from nvembed.embed.shard import Encode
from nvembed.errors import InputError, NvembedError, needs_extra
from nvembed.read.chunk import Offsets
from nvembed.read.corpus import SourceFile
from nvembed.read.streams import Place

# Blocks of shards that Ray schedules; one task reads the shards of a block.
MAX_BLOCKS = 10_000
# Ray Data's threads in this process by the beginnings of their names, and how long to wait for one to end.
DATA_THREADS = ("StreamingExecutor-", "ray-data-", "iter_threaded", "map_tp_")
THREAD_TIMEOUT_S = 300


@dataclass(frozen=True)
class RayCluster:
    """The resources of a Ray cluster."""

    cpus: int
    gpus: int

    def workers(self, count: int | None) -> int:
        """Return the number of models to load: one for each GPU, or for each CPU except one, which reads.

        Raises:
            InputError: ``count`` is larger than that, or below 1.
        """
        most = self.gpus or max(1, self.cpus - 1)
        if count is not None and not 1 <= count <= most:
            kind = f"{self.gpus} GPUs, a worker for each" if self.gpus else f"{self.cpus} CPUs, one to read"
            raise InputError(f"--workers is {count}; expected 1 to {most}: the cluster has {kind}")
        return count or most


@contextmanager
def ray_cluster(address: str | None = None, *, cpus: int | None = None) -> Iterator[RayCluster]:
    """Join a Ray cluster, or start one on this machine; leave or end it at the end.

    Args:
        address: as for ``ray.init``; None starts a cluster of ``cpus`` CPUs.

    Raises:
        InputError: there is no cluster at ``address``, or none could be started.
        MissingExtraError: without the extra ``ray``.
    """
    with needs_extra("ray", "--engine ray"):
        import ray
    local: dict[str, Any] = {"address": "local", "num_cpus": cpus, "include_dashboard": False}
    try:
        ray.init(logging_level="error", **({"address": address} if address else local))
    except Exception as error:  # Ray raises a bare Exception after its time limit
        what = f"no Ray cluster can be joined at {address}" if address else "Ray could not be started here"
        raise InputError(f"{what}: {error}") from error
    try:
        resources = ray.cluster_resources()
        yield RayCluster(int(resources.get("CPU", 0)), int(resources.get("GPU", 0)))
    finally:
        ray.shutdown()


def ray_engine(
    cluster: RayCluster,
    workers: int,
    build_offsets: Callable[[], Offsets],
    build_encode: Callable[[], Encode],
) -> Engine:
    """Compute shards on the cluster, with ``workers`` models.

    Args:
        build_offsets, build_encode: called in the cluster's processes; they must be importable there.
    """

    def engine(work: Work, shards: list[Shard], _advance: Advance) -> Generator[ShardEntry, None, None]:
        from ray.data import ActorPoolStrategy, DataContext, from_items

        if not shards:
            return
        logging.getLogger("ray.data").setLevel(logging.ERROR)  # it reports on itself at every step
        context = DataContext.get_current()
        context.enable_progress_bars = False
        context.print_on_execution_start = False
        bare = replace(work, out=work.out.resolve(), stamped=[])  # each row has the files of its shard
        rows = [_to_row(shard, work.stamped) for shard in shards]
        done = (
            from_items(rows, override_num_blocks=min(len(rows), MAX_BLOCKS))
            # half a CPU, because Ray would join both steps into one if they asked for the same
            .map(_read, fn_args=(bare, build_offsets), num_cpus=0.5)
            .map(
                _Embed,
                fn_constructor_args=(bare, build_encode),
                compute=ActorPoolStrategy(size=workers),
                num_cpus=1 if workers < cluster.cpus else 0,
                num_gpus=1 if cluster.gpus else 0,
            )
        )
        with _iterating(iter(done.iter_rows())) as results:
            for row in results:
                if row["error"]:
                    name, message = json.loads(row["error"])
                    raise getattr(errors, name)(message)
                yield ShardEntry.model_validate_json(row["entry"])

    return engine


@contextmanager
def _iterating(rows: Generator[Any, None, None]) -> Iterator[Generator[Any, None, None]]:
    """Close a dataset's iterator at the end, and wait until Ray Data's threads have ended.

    Closing waits 2 s for them. Ray ends the process when a thread uses it after ``ray.shutdown``.
    """
    try:
        yield rows
    finally:
        rows.close()
        for thread in threading.enumerate():
            if thread.name.startswith(DATA_THREADS):
                thread.join(THREAD_TIMEOUT_S)


def _as_text(error: NvembedError) -> str:
    """Return an error as text: Ray sends the trace of an exception, not the exception."""
    return json.dumps([type(error).__name__, str(error)])


def _read(row: dict[str, Any], work: Work, build_offsets: Callable[[], Offsets]) -> dict[str, Any]:
    """Read and cut one shard; return its passages as an Arrow stream."""
    shard, stamped = _from_row(row)
    result = {"shard": shard.number, "documents": 0, "passages": b"", "error": ""}
    try:
        passages = replace(work, stamped=stamped).read(shard, _once(build_offsets))
    except NvembedError as error:
        return {**result, "error": _as_text(error)}
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, passages.table.schema) as writer:
        writer.write_table(passages.table)
    return {**result, "documents": passages.documents, "passages": sink.getvalue().to_pybytes()}


@cache
def _once(build: Callable[[], Offsets]) -> Offsets:
    """Build a function once for each process of the cluster that reads."""
    return build()


class _Embed:
    """An actor: it loads the model once, and embeds and writes a shard at a time."""

    def __init__(self, work: Work, build_encode: Callable[[], Encode]) -> None:
        self._work = work
        self._encode = build_encode()

    def __call__(self, row: dict[str, Any]) -> dict[str, Any]:
        if row["error"]:
            return {"entry": "", "error": row["error"]}
        with pa.ipc.open_stream(row["passages"]) as reader:
            context = self._work.settings.context
            passages = Passages(int(row["documents"]), reader.read_all(), context)
        try:
            entry = self._work.write(int(row["shard"]), passages, self._encode)
        except NvembedError as error:
            return {"entry": "", "error": _as_text(error)}
        return {"entry": json.dumps(plain(entry)), "error": ""}


def _to_row(shard: Shard, stamped: list[Stamped]) -> dict[str, Any]:
    """Return a shard and its files as plain values."""
    numbers = list(dict.fromkeys(span.file for span in shard.spans))
    files = [
        [str(item.file.path.resolve()), *item.file[1:], *item[1:]] for item in (stamped[n] for n in numbers)
    ]
    spans = [[numbers.index(span.file), *span.place, span.documents] for span in shard.spans]
    return {"shard": shard.number, "files": json.dumps(files), "spans": json.dumps(spans)}


def _from_row(row: dict[str, Any]) -> tuple[Shard, list[Stamped]]:
    stamped = [
        Stamped(SourceFile(Path(path), name, kind, prefix, before), *rest)
        for path, name, kind, prefix, before, *rest in json.loads(row["files"])
    ]
    spans = [Span(file, Place(*place), documents) for file, *place, documents in json.loads(row["spans"])]
    return Shard(int(row["shard"]), 0, spans), stamped
