"""Which store of 4,096-dimensional vectors finds the nearest ten, how fast, in how much memory?

    python benchmarks/index.py --rows 1000000 --work FOLDER --out benchmarks/results
    python benchmarks/index.py --rows 20000 --work FOLDER   # a trial, of two minutes

Synthetic clustered vectors go to a file of float16 under FOLDER (8.2 GB for a million), block by block from
a fixed seed; the exact nearest of 200 queries are found once. Each kind then runs in a process of its own,
so that its peak memory is its own: it is built, then asked one query at a time. All find candidates that are
scored exactly from the float16 file (LanceDB: from its own float16 column), so recall is that of the
candidates. A kind that is done is not done again: results are written after each.

faiss-cpu and usearch are compared where they are installed; they are no dependencies.
"""

import argparse
import json
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np

from memory import hardware, heading, phase
from nvembed.vectors.search import top_k

DIM, LATENT, BLOCK = 4096, 256, 2_000
QUERIES, TOP = 200, 10
Search = Callable[[np.ndarray, int], np.ndarray]  # a query, how many candidates -> their rows


@dataclass(frozen=True)
class Data:
    """What every kind is given."""

    folder: Path
    rows: int

    @property
    def vectors(self) -> np.ndarray:
        return np.memmap(self.folder / "vectors.f16", np.float16, "r", shape=(self.rows, DIM))

    @property
    def queries(self) -> np.ndarray:
        return np.load(self.folder / "queries.npy")

    @property
    def nearest(self) -> np.ndarray:
        return np.load(self.folder / "nearest.npy")

    def blocks(self, size: int = BLOCK) -> Iterator[np.ndarray]:
        vectors = self.vectors
        for i in range(0, self.rows, size):
            yield np.asarray(vectors[i : i + size])


class Clusters:
    """Topics of unequal size in a latent space of falling variance, turned into 4,096 dimensions.

    So lie the vectors of an embedding model: in clusters, and in far fewer dimensions than they have numbers.
    In white noise of 4,096 dimensions all are equally far, and there is nothing to find.
    """

    def __init__(self, rows: int) -> None:
        rng = np.random.default_rng(0)
        spectrum = np.arange(1, LATENT + 1, dtype=np.float32) ** -0.5
        self.spectrum = spectrum / np.linalg.norm(spectrum)
        topics = max(8, rows // 2_000)
        self.centres = rng.standard_normal((topics, LATENT), dtype=np.float32) * self.spectrum
        self.shares = rng.dirichlet(np.ones(topics))
        self.basis = np.linalg.qr(rng.standard_normal((DIM, LATENT)))[0].T.astype(np.float32)

    def block(self, number: int, rows: int) -> np.ndarray:
        rng = np.random.default_rng((1, number))
        topic = rng.choice(len(self.centres), rows, p=self.shares)
        latent = 0.6 * rng.standard_normal((rows, LATENT), dtype=np.float32) * self.spectrum
        x = (self.centres[topic] + latent) @ self.basis
        x += rng.standard_normal((rows, DIM), dtype=np.float32) * np.float32(0.15 / DIM**0.5)
        return np.asarray(x / np.linalg.norm(x, axis=1, keepdims=True))


def make_vectors(data: Data) -> None:
    clusters = Clusters(data.rows)
    np.save(data.folder / "queries.npy", clusters.block(10**9, QUERIES))
    with (data.folder / "vectors.part").open("wb") as out:
        for number, first in enumerate(range(0, data.rows, BLOCK)):
            out.write(clusters.block(number, min(BLOCK, data.rows - first)).astype(np.float16).data)
    (data.folder / "vectors.part").rename(data.folder / "vectors.f16")


def find_nearest(data: Data) -> None:
    np.save(data.folder / "nearest.npy", top_k(data.queries, data.blocks(), TOP)[1])


@dataclass(frozen=True)
class Built:
    """``search`` by setting; the bytes a vector takes besides its float16 row; how many queries to time."""

    search: dict[str, Search]
    bytes_per_vector: float
    timed: int = QUERIES
    exact: bool = False


def ours_float16(data: Data) -> Built:
    def search(query: np.ndarray, count: int) -> np.ndarray:
        return top_k(query[None], data.blocks(), count)[1][0]

    return Built({"scan": search}, 0, timed=5, exact=True)


def lance(probes: tuple[int, ...]) -> Callable[[Data], Built]:
    def build(data: Data) -> Built:
        import pyarrow as pa

        from nvembed.search import lance as module

        module.EXACT_ROWS = 0  # also a small trial is one of the index
        store = module.LanceStore(data.folder / "lance", "nvembed_00000000", "rq")
        store.drop()

        def batches() -> Iterator[pa.RecordBatch]:
            first = 0
            for block in data.blocks():
                names = [str(i) for i in range(first, first + len(block))]
                numbers = pa.array([0] * len(block))
                flat = pa.FixedSizeListArray.from_arrays(pa.array(block.reshape(-1)), DIM)
                empty = pa.array(["{}"] * len(block))
                columns = {"id": names, "document": names, "start": numbers, "end": numbers, "text": names}
                yield pa.record_batch(
                    {**columns, "metadata": empty, "words": numbers.cast("string"), "vector": flat}
                )
                first += len(block)

        store.fill(batches(), {})
        store.finish()
        sizes = {index.columns[0]: index.size_bytes for index in store._table().list_indices()}
        searches = {}
        for probe in probes:

            def search(query: np.ndarray, count: int, probe: int = probe) -> np.ndarray:
                module.PROBES = probe
                near = store.nearest(query, TOP, ())
                assert len(near.rows) <= count
                return np.sort([int(row.id) for row in near.rows])

            searches[f"{probe} partitions"] = search
        return Built(searches, sizes["vector"] / data.rows)

    return build


def faiss_kind(factory: str, probes: tuple[int, ...]) -> Callable[[Data], Built]:
    """An index of faiss's factory, trained on 40 vectors per list, 10,000 to 20,000."""

    def build(data: Data) -> Built:
        import faiss

        lists = max(16, data.rows // 4_000)
        index = faiss.index_factory(DIM, factory.format(lists=lists), faiss.METRIC_INNER_PRODUCT)
        count = min(data.rows, max(10_000, 40 * lists), 20_000)
        sample = np.sort(np.random.default_rng(0).choice(data.rows, count, replace=False))
        index.train(data.vectors[sample].astype(np.float32))
        for block in data.blocks():
            index.add(block.astype(np.float32))
        searches = {}
        for probe in probes:

            def search(query: np.ndarray, count: int, probe: int = probe) -> np.ndarray:
                faiss.extract_index_ivf(index).nprobe = probe
                ids = index.search(query[None], count)[1][0]
                return np.sort(ids[ids >= 0])

            searches[f"{probe} of {lists} lists"] = search
        path = data.folder / "faiss.index"
        faiss.write_index(index, str(path))
        size = path.stat().st_size
        path.unlink()
        return Built(searches, size / data.rows)

    return build


def faiss_binary(data: Data) -> Built:
    import faiss

    index = faiss.IndexBinaryFlat(DIM)
    for block in data.blocks():
        index.add(np.packbits(block > 0, axis=1))

    def search(query: np.ndarray, count: int) -> np.ndarray:
        return np.sort(index.search(np.packbits(query > 0)[None], count)[1][0])

    return Built({"scan": search}, DIM / 8)


def usearch_binary(data: Data) -> Built:
    from usearch.index import Index, MetricKind, ScalarKind

    index = Index(ndim=DIM, metric=MetricKind.Hamming, dtype=ScalarKind.B1, connectivity=16)
    first = 0
    for block in data.blocks():
        index.add(np.arange(first, first + len(block)), np.packbits(block > 0, axis=1))
        first += len(block)
    searches = {}
    for expansion in (128, 512):

        def search(query: np.ndarray, count: int, expansion: int = expansion) -> np.ndarray:
            index.expansion_search = expansion
            return np.sort(index.search(np.packbits(query > 0), count).keys.astype(np.int64))

        searches[f"expansion {expansion}"] = search
    return Built(searches, index.serialized_length / data.rows)


KINDS: dict[str, Callable[[Data], Built]] = {
    "ours, float16": ours_float16,
    "LanceDB, IVF_RQ": lance((5, 20, 50)),
    "faiss, IVF RaBitQ": faiss_kind("IVF{lists},RaBitQ", (8, 32, 64)),
    "faiss, IVF PQ256": faiss_kind("IVF{lists},PQ256x8", (8, 32, 64)),
    "faiss, binary": faiss_binary,
    "usearch, HNSW binary": usearch_binary,
}
# Too slow to build at a million rows on two cores: measured at fewer, or when they are asked for.
SLOW = {"faiss, IVF PQ256": 50_000}
CANDIDATES = 10 * TOP


def measure(name: str, data: Data) -> dict[str, Any]:
    """Build one kind and ask it; runs in a process of its own."""
    phases: dict[str, dict[str, float]] = {}
    with phase("build", phases):
        built = KINDS[name](data)
    result: dict[str, Any] = {"kind": name, "rows": data.rows, "bytes_per_vector": built.bytes_per_vector}
    result["build"] = phases["build"]
    result["settings"] = []
    vectors, queries, nearest = data.vectors, data.queries, data.nearest
    count = CANDIDATES
    for setting, search in built.search.items():
        seconds, hit_count = [], 0
        search(queries[-1], count)  # the first query pays for what is loaded lazily
        for query, expected in zip(queries[: built.timed], nearest, strict=False):
            start = time.perf_counter()
            ids = search(query, TOP if built.exact else count)
            if not built.exact:
                ids = ids[top_k(query[None], [vectors[ids]], TOP)[1][0]]
            seconds.append(time.perf_counter() - start)
            hit_count += len(set(ids.tolist()) & set(expected.tolist()))
        milliseconds = 1e3 * np.array(seconds)
        result["settings"].append(
            {
                "setting": setting,
                "queries": len(seconds),
                "recall_at_10": hit_count / (TOP * len(seconds)),
                "p50_ms": float(np.percentile(milliseconds, 50)),
                "p95_ms": float(np.percentile(milliseconds, 95)),
            }
        )
    return result


def run(data: Data, kinds: list[str], results: dict[str, Any], save: Callable[[], None]) -> None:
    for stage, result, make in (
        ("vectors", "vectors.f16", make_vectors),
        ("exact search", "nearest.npy", find_nearest),
    ):
        if not (data.folder / result).exists():
            start = time.perf_counter()
            make(data)
            results["stages"][stage] = time.perf_counter() - start
            print(f"{stage}: {results['stages'][stage]:.0f} s", flush=True)
            save()
    for name in kinds:
        if name in results["kinds"]:
            continue
        library = name.partition(",")[0]
        if library in ("faiss", "usearch") and find_spec(library) is None:
            print(f"{name}: not measured, {library} is not installed")
            continue
        start = time.perf_counter()
        command = [sys.executable, __file__, "--rows", str(data.rows), "--work", str(data.folder.parent)]
        done = subprocess.run([*command, "--one", name], stdout=subprocess.PIPE, text=True)
        if done.returncode:
            print(f"{name}: failed with exit code {done.returncode}", flush=True)
            continue
        results["kinds"][name] = json.loads(done.stdout.splitlines()[-1])
        results["kinds"][name]["total_s"] = time.perf_counter() - start
        print(f"{name}: {results['kinds'][name]['total_s']:.0f} s", flush=True)
        save()


def markdown(results: dict[str, Any], command: str) -> str:
    rows = results["rows"]
    lines = [
        *heading(f"{rows:,} vectors of {DIM:,} numbers: index, recall, latency", command, results["machine"]),
        f"Synthetic vectors (seed fixed): {max(8, rows // 2_000)} topics of unequal size, {LATENT} latent "
        f"dimensions of falling variance, isotropic noise. {QUERIES} queries of the same topics, one at a "
        "time; recall@10 against exact search. All but float16 find 100 candidates, "
        "scored exactly from float16 rows, which take 8,192 bytes per vector more. Memory: the process's own "
        "(anonymous) at its peak while building; mapped files not counted.",
        "",
        "| kind | setting | recall@10 | p50 ms | p95 ms | queries | bytes per vector | build s | build GiB |",
        "|---|---|---:|---:|---:|---:|---:|---:|---:|",
    ]
    for name, kind in results["kinds"].items():
        lines += [
            f"| {name} | {row['setting']} | {row['recall_at_10']:.4f} | {row['p50_ms']:.1f} | "
            f"{row['p95_ms']:.1f} | {row['queries']} | {kind['bytes_per_vector']:,.0f} | "
            f"{kind['build']['seconds']:.0f} | {kind['build']['peak_anonymous_gib']:.1f} |"
            for row in kind["settings"]
        ]
    stages = ", ".join(f"{name} {seconds:.0f} s" for name, seconds in results["stages"].items())
    return "\n".join([*lines, "", f"Before: {stages}.", ""])


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--work", type=Path, required=True, help="where vectors and indexes are kept")
    parser.add_argument("--out", type=Path, help="the folder of index.json and index.md")
    parser.add_argument("--kinds", help=f"some of: {'; '.join(KINDS)}; parted by ';'")
    parser.add_argument("--one", help=argparse.SUPPRESS)
    args = parser.parse_args()
    data = Data(args.work / str(args.rows), args.rows)
    if args.one:
        print(json.dumps(measure(args.one, data)))
        return
    data.folder.mkdir(parents=True, exist_ok=True)
    names = [kind.strip() for kind in args.kinds.split(";")] if args.kinds else list(KINDS)
    kinds = [kind for kind in names if args.kinds or args.rows <= SLOW.get(kind, args.rows)]
    path = data.folder / "results.json"
    results = {"rows": args.rows, "stages": {}, "kinds": {}}
    if path.exists():
        results = json.loads(path.read_text())
    libraries = ("lancedb", "faiss-cpu", "usearch")
    versions = {name: version(name) for name in libraries if find_spec(name.partition("-")[0])}
    results["machine"] = {**hardware(), **versions}
    command = f"python benchmarks/index.py --rows {args.rows} --work FOLDER --out benchmarks/results"

    def save() -> None:
        path.write_text(json.dumps(results, indent=1) + "\n")
        out = args.out or data.folder
        out.mkdir(parents=True, exist_ok=True)
        (out / "index.json").write_text(json.dumps(results, indent=1) + "\n")
        (out / "index.md").write_text(markdown(results, command))

    run(data, kinds, results, save)
    save()
    print(markdown(results, command))


if __name__ == "__main__":
    main()
