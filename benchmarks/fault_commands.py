"""Commands under faults: small scenes of each command, run in forked children with one fault injected.

The parent imports everything once; each run is a fork of it, so that a fault costs a fraction of a second and
not the start of Python. ``fault_shim.c`` is preloaded and counts system calls on the scene's work folder.
"""

import contextlib
import ctypes
import errno
import hashlib
import importlib
import json
import mmap
import os
import random
import re
import select
import shutil
import signal
import subprocess
import sys
import time
import traceback
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent.parent
sys.path[:0] = [str(ROOT / "tests"), str(ROOT / "tests" / "helpers")]

SHIM = "fault_shim.c"
# actions of the shim
COUNT, KILL, TEAR, FAIL, FAIL_ON, SIGNAL = range(6)
HANG_S = 120.0

# what a record says of the time and of the process, and not of the result
TIMES = {
    "seconds",
    "tokens_per_s",
    "remaining_s",
    "date",
    "time",
    "evaluation_time",
    "created",
    "started",
    "finished",
    "peak_memory_bytes",
    "loaded_s",
}


@dataclass(frozen=True)
class Fault:
    """``at``: the system call, from 1; or ``after_s``: the moment. ``number``: an errno or a signal."""

    action: int = COUNT
    at: int = 0
    number: int = 0
    after_s: float | None = None


@dataclass(frozen=True)
class Ended:
    """How a command ended; ``code`` is negative for a signal, None where it had to be killed for hanging."""

    code: int | None
    out: str
    err: str
    seconds: float
    calls: int


@dataclass(frozen=True)
class Scene:
    """A command on small inputs. Its work folder starts as a copy of ``start``, or empty.

    ``answers``: commands whose output is the result, in place of the bytes of the work folder.
    """

    name: str
    argv: tuple[str, ...]
    start: Path | None = None
    answers: tuple[tuple[str, ...], ...] = ()
    resumes: bool = True


@dataclass
class Stage:
    """Inputs of all scenes below ``root``; ``work`` is the folder that a scene changes."""

    root: Path
    scenes: dict[str, Scene] = field(default_factory=dict)
    references: dict[str, tuple[Ended, dict[str, str]]] = field(default_factory=dict)

    @property
    def work(self) -> Path:
        return self.root / "work"


def preload(folder: Path) -> None:
    """Start this program again with the shim in front of the C library, unless it is there."""
    if os.environ.get("FAULT_SHIM") == "1":
        return
    library = folder / "fault_shim.so"
    source = Path(__file__).parent / SHIM
    if not library.exists() or library.stat().st_mtime < source.stat().st_mtime:
        folder.mkdir(parents=True, exist_ok=True)
        subprocess.run(
            ["gcc", "-O2", "-shared", "-fPIC", "-o", str(library), str(source), "-ldl"], check=True
        )
    variables = {
        **os.environ,
        "LD_PRELOAD": str(library),
        "FAULT_SHIM": "1",
        "OMP_NUM_THREADS": "1",
        "HF_HUB_OFFLINE": "1",
        "PYTHONHASHSEED": "0",
    }
    os.execve(sys.executable, [sys.executable, *sys.argv], variables)


def import_all() -> None:
    """Import what the commands import, so that a fork has it."""
    names = [
        f"cli.{name}" for name in ("embed", "encode", "evaluate", "index", "init", "mine", "search", "train")
    ]
    names += ["cli.main", "data.blend", "encoder", "evaluate.protocol", "search.index", "train.loop"]
    for name in names:
        importlib.import_module(f"nvembed.{name}")
    for name in ("lancedb", "peft", "scipy.stats", "sklearn.linear_model", "sklearn.metrics"):
        importlib.import_module(name)
    warnings.filterwarnings("ignore", message="lancedb fork support")


class Runner:
    """Runs commands in forks of this process."""

    def __init__(self, folder: Path) -> None:
        self._memory = mmap.mmap(-1, 8)
        self._count = ctypes.c_long.from_buffer(self._memory)
        self._arm = getattr(ctypes.CDLL(None), "fault_arm", None)
        self.folder = folder
        folder.mkdir(parents=True, exist_ok=True)

    def start(self, argv: Sequence[str], watched: Path, fault: Fault = Fault(), tag: str = "0") -> int:
        """Fork a child that runs a command; return its process id."""
        self._count.value = 0
        pid = os.fork()
        if pid:
            return pid
        code = 1
        try:
            os.setsid()
            for number, name in ((1, "out"), (2, "err")):
                handle = os.open(self.folder / f"{name}.{tag}", os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
                os.dup2(handle, number)
            os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
            signal.signal(signal.SIGINT, signal.default_int_handler)
            if self._arm is not None:
                self._arm(
                    os.fsencode(watched),
                    fault.action,
                    ctypes.c_long(fault.at),
                    fault.number,
                    ctypes.byref(self._count),
                )
            code = _main(argv)
        except BaseException:  # a signal in the last lines
            traceback.print_exc()
        finally:
            os._exit(code)

    def wait(self, pid: int, after_s: float | None = None, number: int = 0, tag: str = "0") -> Ended:
        """Wait for a child; send it a signal after a while, where that is asked for."""
        start = time.monotonic()
        handle = os.pidfd_open(pid)
        try:
            poll = select.poll()
            poll.register(handle, select.POLLIN)
            if after_s is not None and not poll.poll(1000 * after_s):
                os.kill(pid, number)
            hung = not poll.poll(1000 * HANG_S)
            if hung:
                os.killpg(pid, signal.SIGKILL)
        finally:
            os.close(handle)
        _, status = os.waitpid(pid, 0)
        code = None if hung else os.waitstatus_to_exitcode(status)
        texts = [(self.folder / f"{name}.{tag}").read_text(errors="replace") for name in ("out", "err")]
        return Ended(code, *texts, time.monotonic() - start, self._count.value)

    def run(self, argv: Sequence[str], watched: Path, fault: Fault = Fault()) -> Ended:
        """Run a command to its end."""
        return self.wait(self.start(argv, watched, fault), fault.after_s, fault.number)


def _main(argv: Sequence[str]) -> int:
    from nvembed.cli.main import main

    code: Any = 1
    try:
        main(list(argv))
    except SystemExit as ended:
        code = ended.code if isinstance(ended.code, int) else 0 if ended.code is None else 1
    except BaseException:
        traceback.print_exc()
    try:
        sys.stdout.flush()
        sys.stderr.flush()
    except OSError:
        pass
    return int(code)


def fresh(stage: Stage, scene: Scene, source: Path | None = None) -> None:
    """Make the work folder what the scene, or another state of it, starts from."""
    shutil.rmtree(stage.work, ignore_errors=True)
    source = source or scene.start
    if source is None:
        stage.work.mkdir()
    else:
        shutil.copytree(source, stage.work, symlinks=True)


def snapshot(stage: Stage, scene: Scene, runner: Runner) -> dict[str, str]:
    """Return the result: every file's digest without times, or the answers of the scene's questions."""
    if scene.answers:
        files = {}
        for argv in scene.answers:
            ended = runner.run(argv, stage.work)
            files[" ".join(argv[2:])] = hits(ended)
        return files | {"names": "\n".join(_names(stage.work))}
    return {
        path.relative_to(stage.work).as_posix(): _digest(path)
        for path in sorted(stage.work.rglob("*"))
        if path.name != ".lock"
    }


def hits(ended: Ended) -> str:
    """Return the hits of a search by score and id: the order of equal scores is that of the rows."""
    if ended.code != 0:
        return f"{ended.code}\n{ended.err}"
    rows = [json.loads(line) for line in ended.out.splitlines()]
    for row in rows:
        del row["rank"]
    return "\n".join(json.dumps(row) for row in sorted(rows, key=lambda row: (-row["score"], row["id"])))


def _digest(path: Path) -> str:
    if path.is_symlink():
        return f"-> {os.readlink(path)}"  # noqa: PTH115
    if path.is_dir():
        return "folder"
    if path.name.endswith(".timing.json"):
        return "times"
    raw = path.read_bytes()
    if path.suffix in (".json", ".jsonl"):
        parts = [raw] if path.suffix == ".json" else raw.splitlines()
        with contextlib.suppress(ValueError):
            raw = b"\n".join(
                json.dumps(_timeless(json.loads(part)), sort_keys=True).encode() for part in parts
            )
    return hashlib.sha256(raw).hexdigest()


def _timeless(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _timeless(each) for key, each in value.items() if key not in TIMES}
    return [_timeless(each) for each in value] if isinstance(value, list) else value


def _names(folder: Path) -> list[str]:
    """The entries of an index's folders, with the random part of a table's name left out."""
    paths = list(folder.glob("*")) + list(folder.glob("*/*")) + list(folder.glob("index/*"))
    names = {path.relative_to(folder).as_posix() for path in paths if path.name != ".lock"}
    return sorted(re.sub(r"nvembed_[0-9a-f]{8}", "nvembed_X", name) for name in names)


def errno_name(number: int) -> str:
    return errno.errorcode.get(number, str(number))


# the scenes ---------------------------------------------------------------------------------------------


def build(root: Path, runner: Runner, names: Sequence[str] | None = None) -> Stage:
    """Make a tiny model, corpora, training files and tasks, and the scenes on them."""
    stage = Stage(root)
    base = root / "base"
    if not (base / ".whole").exists():
        shutil.rmtree(base, ignore_errors=True)
        base.mkdir(parents=True)
        _inputs(base, runner)
        (base / ".whole").touch()
    work = str(stage.work)
    model = ["--model", str(base / "model"), "--device", "cpu"]
    chunks = ["--chunk-tokens", "48", "--overlap-tokens", "8", "--shard-passages", "12"]
    questions = tuple(  # every passage is an answer; hybrid ranks follow from these two
        ("search", work, question, "--mode", mode, "--json", "--top", "100", "--device", "cpu")
        for question, mode in (
            ("What does document 2 say?", "text"),
            ("sentence 3", "text"),
            ("two", "vector"),
        )
    )
    recipe = str(base / "recipe")
    scenes = [
        Scene(f"encode {kind}", ("encode", *model[1:2], str(base / "texts.jsonl"), f"{work}/out.{kind}"))
        for kind in ("npy", "parquet", "jsonl")
    ]
    scenes += [
        Scene("embed", ("embed", str(base / "corpus"), f"{work}/out", *model, *chunks)),
        Scene("index", ("index", work), base / "embedded", questions),
        Scene("index --add", ("index", work, "--add", str(base / "more")), base / "indexed", questions),
        Scene("index --delete", ("index", work, "--delete", "r3"), base / "indexed", questions),
        Scene(
            "index --add --delete",
            ("index", work, "--add", str(base / "more"), "--delete", "r3"),
            base / "indexed",
            questions,
        ),
        Scene("mine bm25", ("mine", recipe, "--out", f"{work}/out", "--root", str(base))),
        Scene(
            "mine model",
            ("mine", recipe, "--out", f"{work}/out", "--root", str(base), "--teacher", str(base / "model")),
        ),
        Scene(
            "train",
            (
                *("train", f"{recipe}/stage1.toml", *model, "--data", str(base / "mined")),
                *("--out", f"{work}/out", "--dev", str(base / "tasks" / "retrieval" / "SQuAD")),
            ),
        ),
        Scene(
            "evaluate",
            (
                "evaluate",
                str(base / "model"),
                "--tasks",
                "all",
                "--data",
                str(base / "tasks"),
                "--out",
                f"{work}/out",
            ),
        ),
    ]
    stage.scenes = {scene.name: scene for scene in scenes if names is None or scene.name in names}
    return stage


def _inputs(base: Path, runner: Runner) -> None:
    import tiny_lm
    from corpora import make_corpus, sentences
    from eval_folders import make_labelled, make_pairs, make_retrieval
    from tiny_recipe import tiny_recipe

    def run(*argv: str | Path) -> None:
        ended = runner.run([str(each) for each in argv], base)
        if ended.code != 0:
            raise SystemExit(f"{argv}: {ended.code}\n{ended.err}")

    recipe = tiny_recipe(base)
    tiny_lm.folder(base / "lm", tiny_lm.sizes())
    run("init", base / "lm", base / "model", "--recipe", recipe / "stage1.toml")
    make_corpus(base / "corpus")
    (base / "corpus" / "d.pdf").unlink()  # read in a process of its own; tests/read has its faults
    (base / "corpus" / "c.html").unlink()
    _passages(base / "first.jsonl", range(16))
    _passages(base / "second.jsonl", (2, 16, 17, 18))
    rows = [{"id": f"t{i}", "text": sentences(i, 1 + i % 3)} for i in range(40)]
    (base / "texts.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    model = ("--model", base / "model", "--device", "cpu")
    run("embed", base / "first.jsonl", base / "embedded", *model, "--whole", "--shard-passages", "6")
    run("embed", base / "second.jsonl", base / "more", *model, "--whole")
    shutil.copytree(base / "embedded", base / "indexed")
    run("index", base / "indexed")
    run("mine", recipe, "--out", base / "mined", "--root", base)
    make_retrieval(base / "tasks" / "retrieval" / "SQuAD", passages=24, queries=6)
    make_pairs(base / "tasks" / "sts" / "STS12", binary=False, n=20)
    make_labelled(base / "tasks" / "classification" / "Banking77Classification", n=40)


def _passages(path: Path, numbers: Sequence[int] | range) -> None:
    """Write records of different lengths, so that no two have one score for the words of a query."""
    from eval_folders import WORDS

    rows = [
        {"id": f"r{n}", "text": " ".join(random.Random(n).choices(WORDS, k=3 + n)), "year": 2000 + n}
        for n in numbers
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def kept(stage: Stage, scene: Scene, name: str, make: Callable[[], None]) -> Path:
    """Return a state of a scene's work folder under ``root/states``, made once."""
    folder = stage.root / "states" / f"{scene.name} {name}"
    if not folder.exists():
        make()
        folder.parent.mkdir(exist_ok=True)
        shutil.copytree(stage.work, folder, symlinks=True)
    return folder
