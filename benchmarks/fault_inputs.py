"""Hostile inputs: mutated files for every reader, filters and citations, with bounds on time and memory.

Inputs are made from valid ones and a number, so that each can be made again. A batch runs in a forked child:
an input that ends or stops it is found by its number, and the rest of the batch runs in another child.
"""

import contextlib
import gzip
import io
import json
import mmap
import os
import random
import resource
import select
import shutil
import signal
import struct
import time
import traceback
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from nvembed.errors import NvembedError

TIME_S = 1.0  # of the processor, for one input
HANG_S = 20.0  # of the clock, for one input
MEMORY_BYTES = 256 << 20  # more than before, for one input
ADDRESS_BYTES = 24 << 30


@dataclass(frozen=True)
class Target:
    """A reader: ``read`` takes a file's path and its bytes. ``seeds`` are valid inputs.

    ``suffix``: of the file's name. ``most``: inputs at most, of a slow reader. ``time_s``: the bound of one
    input.
    """

    name: str
    seeds: tuple[bytes, ...]
    read: Callable[[Path, bytes], Any]
    suffix: str = ""
    most: int | None = None
    time_s: float = TIME_S


class TooSlowError(BaseException):
    """The input took more than its time."""


# mutations ----------------------------------------------------------------------------------------------

TOKENS = [
    *(
        b"",
        b"\0",
        b"\xff",
        b"\xc3",
        b"\xed\xa0\x80",
        b"\xef\xbb\xbf",
        b"\xff\xfe",
        b"\r",
        b"\n",
        b"\t",
        b'"',
        b"'",
    ),
    *(
        b"\\",
        b"\\ud800",
        b"\\u0000",
        b"NaN",
        b"Infinity",
        b"-1",
        b"0",
        b"1e999",
        b"-0.0",
        b"null",
        b"true",
        b"[]",
    ),
    *(b"{}", b"18446744073709551616", b"9223372036854775807", b"4294967295", b"1" * 5000, b"..", b"../../x"),
    *(
        b"/dev/zero",
        b"<",
        b"</",
        b"<!--",
        b"]]>",
        b"&#x110000;",
        b"---\n",
        b"+++\n",
        b"[1]",
        b"[0]",
        b"[99999]",
    ),
    *(
        b" and ",
        b" or ",
        b"=",
        b">=",
        b"(",
        b")",
        "é".encode(),
        "\u2028".encode(),
        "\u202e".encode(),
        "\U0001d7d9".encode(),
    ),
]
INTEGERS = [
    0,
    1,
    0x7F,
    0xFF,
    0x7FFF,
    0xFFFF,
    0x7FFFFFFF,
    0xFFFFFFFF,
    1 << 40,
    1 << 60,
    (1 << 63) - 1,
    (1 << 64) - 1,
]


def mutate(seeds: tuple[bytes, ...], draw: random.Random) -> bytes:
    """Return a seed after one to six changes."""
    raw = bytearray(draw.choice(seeds))
    for _ in range(draw.choice((1, 1, 1, 2, 3, 6))):
        place = draw.randrange(len(raw) + 1)
        size = min(len(raw) - place, draw.choice((1, 2, 4, 8, 32, 200)))
        kind = draw.randrange(11)
        if kind == 0 and raw:
            raw[min(place, len(raw) - 1)] ^= 1 << draw.randrange(8)
        elif kind == 1:
            raw[place : place + size] = draw.randbytes(size)
        elif kind == 2:
            del raw[place : place + size]
        elif kind == 3:
            raw[place:place] = draw.choice(TOKENS)
        elif kind == 4:
            raw[place : place + size] = draw.choice(TOKENS)
        elif kind == 5:
            raw = raw[:place]
        elif kind == 6:
            width = draw.choice((2, 4, 8))
            number = draw.choice(INTEGERS) & ((1 << 8 * width) - 1)
            raw[place : place + width] = number.to_bytes(width, draw.choice(("little", "big")))
        elif kind == 7:
            raw[place:place] = raw[place : place + size] * draw.choice((2, 10, 1000))
        elif kind == 8:
            other = draw.choice(seeds)
            raw[place:] = other[draw.randrange(len(other) + 1) :]
        elif kind == 9:
            raw[place:place] = draw.choice(
                (b"[", b"{", b"(", b"<b>", b'{"a":', b" ", b"\n", b'""', b"a.")
            ) * draw.choice((10, 1000, 20000))
        else:
            changed = _changed_json(bytes(raw), draw)
            raw = bytearray(changed if changed is not None else raw)
    return bytes(raw[: 1 << 20])


VALUES: list[Any] = [
    *(
        None,
        True,
        0,
        -1,
        1,
        2**31,
        2**63,
        2**64,
        -(2**64),
        10**400,
        0.5,
        1e308,
        "",
        "a",
        "\0",
        "../x",
        "/etc",
        "é" * 300,
    ),
    *(
        [],
        {},
        [[]],
        [None],
        {"a": None},
        [1, "a"],
        "a" * 100_000,
        list(range(5000)),
        0.1,
        "nan",
        "\u202e",
        "1",
    ),
]


def _changed_json(raw: bytes, draw: random.Random) -> bytes | None:
    """Return JSON, or one line of JSON lines, with one value changed; None where it is not JSON."""
    lines = raw.split(b"\n")
    row = draw.randrange(len(lines)) if len(lines) > 2 else None
    try:
        value = json.loads(raw if row is None else lines[row])
    except (ValueError, RecursionError):
        return None
    if not isinstance(value, dict | list) or not value:
        return None
    node: Any = value
    while True:
        key = draw.choice(list(node) if isinstance(node, dict) else range(len(node)))
        if isinstance(node[key], dict | list) and node[key] and draw.random() < 0.8:
            node = node[key]
            continue
        break
    change = draw.randrange(4)
    if change == 0:
        del node[key]
    elif change == 1 and isinstance(node, dict):
        node[draw.choice(("extra", "", "id", "text", str(key).upper()))] = node[key]
    elif change == 2:
        deep: Any = node[key]
        for _ in range(draw.choice((5, 90, 150, 400))):
            deep = [deep] if draw.random() < 0.5 else {"a": deep}
        node[key] = deep
    else:
        node[key] = draw.choice(VALUES)
    try:
        changed = json.dumps(value, ensure_ascii=draw.random() < 0.5).encode(errors="surrogatepass")
    except (ValueError, RecursionError):
        return None
    if row is None:
        return changed
    lines[row] = changed
    return b"\n".join(lines)


# batches ------------------------------------------------------------------------------------------------


def batch(target: Target, first: int, size: int, root: Path) -> Iterator[tuple[str, str]]:
    """Yield the outcome of each input: ``accepted``, ``refused``, or what was wrong with it."""
    number = first
    while number < first + size:
        outcomes, code = _child(target, number, first + size, root)
        yield from outcomes
        number += len(outcomes)
        if number < first + size and code != 0:
            what = "hang" if code is None else "crash"
            yield what, f"input {number}: exit {code}"
            number += 1


def _child(target: Target, first: int, end: int, root: Path) -> tuple[list[tuple[str, str]], int | None]:
    shared = mmap.mmap(-1, 8)
    log = root / f"fuzz.{os.getpid()}"
    log.write_bytes(b"")
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            os.setsid()
            os.dup2(os.open(os.devnull, os.O_RDWR), 2)
            resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
            resource.setrlimit(resource.RLIMIT_AS, (ADDRESS_BYTES, ADDRESS_BYTES))
            with log.open("w") as file:
                for number in range(first, end):
                    outcome = _try(target, number, root)
                    file.write(json.dumps(outcome) + "\n")
                    file.flush()
                    shared[:8] = struct.pack("<q", number - first + 1)
            code = 0
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(code)
    code = _wait(pid, shared)
    return [tuple(json.loads(line)) for line in log.read_text().splitlines()], code


def _wait(pid: int, shared: mmap.mmap) -> int | None:
    """Wait for a child that must get on with each input in ``HANG_S``."""
    handle = os.pidfd_open(pid)
    poll = select.poll()
    poll.register(handle, select.POLLIN)
    done, moved, hung = b"", time.monotonic(), False
    while not poll.poll(1000):
        if shared[:8] != done:
            done, moved = shared[:8], time.monotonic()
        elif time.monotonic() - moved > HANG_S:
            hung = True
            os.killpg(pid, signal.SIGKILL)
    os.close(handle)
    _, status = os.waitpid(pid, 0)
    return None if hung else os.waitstatus_to_exitcode(status)


def make(target: Target, number: int) -> bytes:
    """Return an input by its number; the first ones are the seeds as they are."""
    if number < len(target.seeds):
        return target.seeds[number]
    return mutate(target.seeds, random.Random(f"{target.name}/{number}"))


def _try(target: Target, number: int, root: Path) -> tuple[str, str]:
    raw = make(target, number)
    path = root / f"input.{os.getpid()}{target.suffix}"
    path.write_bytes(raw)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    signal.signal(signal.SIGPROF, _too_slow)
    signal.setitimer(signal.ITIMER_PROF, target.time_s)
    outcome, detail = "accepted", ""
    try:
        target.read(path, raw)
    except NvembedError as error:
        outcome = "refused"
        if not str(error).strip():
            outcome, detail = "no message", repr(error)
    except TooSlowError:
        outcome, detail = "slow", f"more than {target.time_s} s\n" + traceback.format_exc(limit=-4)
    except BaseException:
        outcome, detail = "traceback", traceback.format_exc(limit=-4)
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
        path.unlink(missing_ok=True)
    grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - peak) << 10
    if grown > MEMORY_BYTES + 64 * len(raw):
        outcome, detail = "memory", f"{grown >> 20} MiB for {len(raw):,} bytes; {outcome} {detail}"
    return outcome, f"input {number} ({len(raw):,} bytes): {detail}" if detail else ""


def _too_slow(*_: object) -> None:
    raise TooSlowError


# readers ------------------------------------------------------------------------------------------------


def targets(base: Path, root: Path) -> dict[str, Target]:
    """Return every reader with valid inputs for it."""
    all_targets = [*_records(base), *_documents(), *_models(base), *_own_files(base, root), *_languages()]
    for target in all_targets:  # imports of libraries are no input's time, and valid inputs must be accepted
        path = root / f"input.{os.getpid()}{target.suffix}"
        for seed in target.seeds:
            path.write_bytes(seed)
            target.read(path, seed)
    return {target.name: target for target in all_targets}


def _all(items: Iterator[Any] | list[Any]) -> None:
    for _ in items:
        pass


def _records(base: Path) -> Iterator[Target]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    from nvembed.data.example import open_examples
    from nvembed.evaluate.tasks import load_task
    from nvembed.read.beir import read_identified, read_qrels, read_texts
    from nvembed.read.corpus import SourceFile, read_documents

    rows = [
        {"_id": "a1", "title": "T", "text": "Judo throws are allowed.", "year": 2019, "tags": ["x", "y"]},
        {"_id": "b2", "text": "Ünï \u00e9 🎉", "meta": {"a": [1, 2.5, None], "b": True}},
        {"_id": "c3", "text": "three"},
    ]
    jsonl = "".join(json.dumps(row) + "\n" for row in rows).encode()
    csv = b'id,text,lang\n1,"one, two\nthree",en\n2,four,de\n3,"a ""quote""",fr\n'
    tsv = b"id\ttext\tyear\n1\tone two\t2001\n2\tthree\t2002\n"
    sink = io.BytesIO()
    table = {"text": ["one", "two", "three"] * 4, "n": list(range(12)), "v": [[0.5]] * 12, "d": ["k"] * 12}
    pq.write_table(pa.table(table), sink, row_group_size=5)
    arrow = io.BytesIO()
    with pa.ipc.new_stream(arrow, pa.table(table).schema) as writer:
        writer.write_table(pa.table(table))

    def documents(kind: str, path: Path, _: bytes) -> None:
        _all(read_documents(SourceFile(path, "name", kind)))

    def texts(path: Path, _: bytes) -> None:
        _all(read_texts(path))

    kinds = {"txt": b"one\ntwo\r\n\nthree\n", "jsonl": jsonl, "csv": csv, "tsv": tsv}
    for kind, raw in kinds.items():
        yield Target(f"records {kind}", (raw,), partial(documents, kind), f".{kind}")
        yield Target(f"texts {kind}", (raw,), texts, f".{kind}")
    packed = tuple(gzip.compress(raw) for raw in kinds.values())
    yield Target("records jsonl.gz", packed, partial(documents, "jsonl"), ".jsonl.gz")
    for kind, stored in (("parquet", sink.getvalue()), ("arrow", arrow.getvalue())):
        yield Target(f"records {kind}", (stored,), partial(documents, kind), f".{kind}", most=4000)
    yield Target("queries", (jsonl,), lambda path, _: read_identified(path, "query"), ".jsonl")
    qrels = b"query-id\tcorpus-id\tscore\nq1\td1\t1\nq1\td2\t0\nq2\td1\t2\n"
    yield Target(
        "qrels",
        (qrels,),
        lambda path, _: read_qrels(path, queries={"q1", "q2"}, passages={"d1", "d2"}),
        ".tsv",
    )
    mined = (base / "mined" / "animals.jsonl").read_bytes()

    def examples(path: Path, _: bytes) -> None:
        file = open_examples(path)
        try:
            _all(iter(file))
        finally:
            file.close()

    yield Target("training examples", (mined,), examples, ".jsonl")

    def task(name: str, path: Path, raw: bytes) -> None:
        folder = path.with_name(f"{path.name}.d") / name
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "test.jsonl").write_bytes(raw)
        load_task(folder)

    for kind, name in (("sts", "STS12"), ("classification", "Banking77Classification")):
        raw = (base / "tasks" / kind / name / "test.jsonl").read_bytes()
        yield Target(f"evaluation {kind}", (raw,), partial(task, f"{kind}/{name}"), ".task")


def _documents() -> Iterator[Target]:
    from corpora import pdf, sentences

    from nvembed.read.documents import extract
    from nvembed.read.html import read_html

    html = (
        b"<html><head><meta charset=utf-8><title>A  page</title><style>x{}</style></head><body><h1>Head</h1>"
        b"<p>\xc3\x9cn &amp; <b>bold</b> text.<ul><li>one<li>two</ul>"
        b"<table><tr><td>1<td colspan=2>2<th>3</table>"
        b"<pre> a\n  b</pre><svg><text>x</text></svg><a href=x>y</a><script>no()</script></body></html>"
    )
    markdown = b"---\ntitle: A\ntags: [a, b]\ndate: 2020-01-01\nn: {a: 1}\n---\n# Head\n\ntext\n"
    toml = b'+++\ntitle = "A"\nn = [1, 2]\n+++\ntext\n'

    def document(kind: str, path: Path, _: bytes) -> None:
        extract(path, kind)

    def page(xhtml: bool, _: Path, raw: bytes) -> None:
        with contextlib.suppress(ValueError):  # the reader's process makes a DataError of it
            read_html(raw, xhtml=xhtml)

    yield Target(
        "document text",
        (b"one\n\ntwo " * 20, "\ufeffünï".encode("utf-16")),
        partial(document, "text"),
        ".txt",
    )
    yield Target("document markdown", (markdown, toml), partial(document, "markdown"), ".md")
    yield Target("document html", (html,), partial(page, False), ".html")
    yield Target("document xhtml", (b'<?xml version="1.0"?>' + html,), partial(page, True), ".xhtml")
    pages = pdf(sentences(3, 2), sentences(4, 2))
    yield Target("document pdf", (pages,), partial(document, "pdf"), ".pdf", most=2000, time_s=5.0)


def _models(base: Path) -> Iterator[Target]:
    import tiny_lm
    import torch
    from gguf_writer import write as write_gguf
    from safetensors.torch import save as save_tensors

    from nvembed.text.tokenize import TextSettings, TextTokenizer
    from nvembed.weights.checkpoint import load_model, load_tokenizer, open_checkpoint
    from nvembed.weights.gguf import read_gguf
    from nvembed.weights.tensors import file_tensors, read_tensor

    stored = save_tensors({"a": torch.zeros(3, 2), "b.weight": torch.ones(4, dtype=torch.bfloat16)})

    def safetensors(path: Path, _: bytes) -> None:
        for name, tensor in file_tensors(path).items():
            read_tensor(tensor, name)

    yield Target("safetensors", (stored,), safetensors, ".safetensors")
    sizes = tiny_lm.sizes(
        hidden_size=8, intermediate_size=8, num_heads=2, num_kv_heads=1, head_dim=4, num_layers=1
    )
    path = base / "tiny.gguf"
    if not path.exists():
        write_gguf(path, sizes, tiny_lm.tensors(sizes))

    def gguf(path: Path, _: bytes) -> None:
        model = read_gguf(path)
        _all(model.tensors())

    yield Target("gguf", (path.read_bytes(),), gguf, ".gguf", most=4000)
    model = base / "model"
    settings = TextSettings(
        mode="clean", max_length=64, eos_token="<|im_end|>", eos_id=2, bos_id=1, mask_instruction=True
    )

    def tokenizer(_: Path, raw: bytes) -> None:
        TextTokenizer(raw, settings)(["one 2 é"], prompt="p: ")

    yield Target("tokenizer.json", ((model / "tokenizer.json").read_bytes(),), tokenizer, ".json", most=4000)

    def with_file(name: str, path: Path, raw: bytes) -> None:
        folder = path.with_name(f"{path.name}.d")
        if not folder.exists():
            folder.mkdir()
            for file in model.iterdir():
                (folder / file.name).symlink_to(file)
        (folder / name).unlink()
        (folder / name).write_bytes(raw)
        checkpoint = open_checkpoint(folder)
        load_tokenizer(checkpoint)
        load_model(checkpoint, device="cpu", dtype=torch.float32)

    for name in ("config.json", "tokenizer_config.json"):
        yield Target(
            name, ((model / name).read_bytes(),), partial(with_file, name), f".{name[:6]}", most=4000
        )


def _own_files(base: Path, root: Path) -> Iterator[Target]:
    from nvembed.data.prepare import MiningRecipe
    from nvembed.data.sources import BlendRecipe
    from nvembed.embed.embedded import open_embedded, vectors_of
    from nvembed.recipe import read_recipe
    from nvembed.search.record import read_record
    from nvembed.train.recipe import StageRecipe

    embedded = base / "embedded"

    def with_file(source: Path, name: str, use: Callable[[Path], Any], path: Path, raw: bytes) -> None:
        folder = path.with_name(f"{path.name}.d")
        if not folder.exists():
            folder.mkdir()
            for each in source.iterdir():
                (folder / each.name).symlink_to(each)
        (folder / name).unlink()
        (folder / name).write_bytes(raw)
        use(folder)

    def vectors(folder: Path) -> None:
        corpus = open_embedded(folder)
        for part in corpus.batches():
            vectors_of(part)

    manifest = (embedded / "manifest.json").read_bytes()
    yield Target("manifest.json", (manifest,), partial(with_file, embedded, "manifest.json", vectors), ".m")
    record = next((base / "indexed" / "index").glob("*.json"))
    yield Target("index record", (record.read_bytes(),), lambda path, _: read_record(path), ".json")
    for name, schema in (("stage1", StageRecipe), ("blend", BlendRecipe), ("mining", MiningRecipe)):
        raw = (base / "recipe" / f"{name}.toml").read_bytes()
        yield Target(
            f"recipe {name}", (raw,), lambda path, _, schema=schema: read_recipe(path, schema), ".toml"
        )
    yield from _training_files(root, with_file)


def _training_files(root: Path, with_file: Callable[..., None]) -> Iterator[Target]:
    """The files of a run and of a state; its tensors have no digests, as those of earlier versions."""
    import torch
    from training import job, recipe

    from nvembed.train import checkpoint
    from nvembed.train.adapt import adapt, trained
    from nvembed.train.log import TrainingLog
    from nvembed.train.loop import train
    from nvembed.train.optim import Optimizer

    folder = root / "run"
    shutil.rmtree(folder, ignore_errors=True)
    settings = recipe(optimizer={"steps": 3})
    train(job(folder, settings))
    run = folder / "step-00000003"
    state = (run / "state.json").read_bytes()
    old = {key: value for key, value in json.loads(state).items() if key != "digests"}
    plain = root / "state"
    shutil.rmtree(plain, ignore_errors=True)
    shutil.copytree(run, plain)
    (plain / "state.json").write_text(json.dumps(old))
    model = job(folder, settings).model
    adapt(model, settings.adapter, seed=0)
    optimizer = Optimizer(trained(model), settings.optimizer)

    def resume(path: Path) -> None:
        checkpoint.load(path, model, optimizer, sharded=False, device=torch.device("cpu"))

    def log(path: Path, _: bytes) -> None:
        folder = path.with_name(f"{path.name}.d")
        folder.mkdir(exist_ok=True)
        shutil.copyfile(path, folder / "log.jsonl")
        with TrainingLog(folder, after=2):
            pass

    read = partial(with_file, run, "state.json", checkpoint.read_state)
    yield Target("training state", (state, json.dumps(old).encode()), read, ".state")
    for name in ("adapter_model.safetensors", "pooler.safetensors", "optimizer.safetensors"):
        use = partial(with_file, plain, name, resume)
        yield Target(f"training {name.partition('.')[0]}", ((plain / name).read_bytes(),), use, f".{name}")
    start = partial(checkpoint.start_from, model=model, adapter=settings.adapter)
    config = (plain / "adapter_config.json").read_bytes()
    use = partial(with_file, plain, "adapter_config.json", start)
    yield Target("training adapter_config", (config,), use, ".peft")
    yield Target("training log", ((folder / "log.jsonl").read_bytes(),), log, ".log")


def _languages() -> Iterator[Target]:
    from nvembed.search.citation import find_citations
    from nvembed.search.fields import Kind
    from nvembed.search.where import parse_where
    from nvembed.text.mark import sentences, word_spans
    from nvembed.text.words import Words

    fields: Mapping[str, Kind] = {
        "year": "int",
        "lang": "string",
        "score": "float",
        "day": "date",
        "draft": "bool",
        "tags": "string[]",
    }
    filters = (
        b'year >= 2020 and lang = "en"',
        b"draft = true and score < 1.5e3 and day = 2020-05",
        b"tags = x and document = 'it''s' and id != a",
    )

    def where(_: Path, raw: bytes) -> None:
        parse_where([raw.decode(errors="replace")], fields)

    yield Target("filters", filters, where)
    answers = (b"It is so [1]. And so [2, 3], not [12]; [1][2].", b"See [1-3] and [ 2 ,4] (1).")

    def cited(_: Path, raw: bytes) -> None:
        find_citations(raw.decode(errors="replace"), 5)

    yield Target("citations", answers, cited)
    words = Words("english")

    def marks(_: Path, raw: bytes) -> None:
        text = raw.decode(errors="replace")
        sentences(text)
        word_spans(text[:200], [text], words)

    yield Target("marks", (b"One throws. Two... three! Four?\nfive", "日本語。です。 é".encode()), marks)
