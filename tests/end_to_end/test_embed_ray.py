"""The engine on Ray: a local cluster with two workers, one of which is killed; the local engine's bytes."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("ray", reason="the extra 'ray' is not installed")
pytest.importorskip("pypdfium2", reason="the extra 'corpus' is not installed")

from corpora import content, encode, make_corpus, settings, word_offsets

from nvembed.embed.job import local_engine, open_job
from nvembed.embed.plan import CorpusReading
from nvembed.embed.ray_engine import RayCluster
from nvembed.errors import InputError
from nvembed.read.corpus import list_files

UNIT = Path(__file__).parents[1] / "helpers"

# Each worker notes itself and the text that begins a shard; when both have begun one, the latter is killed in
# the midst of it. Then a job fails, on the same cluster.
SCRIPT = """
import os, signal, sys, threading, time
from functools import partial
from pathlib import Path
from corpora import encode, settings, word_offsets
from nvembed.embed.job import open_job
from nvembed.embed.plan import CorpusReading
from nvembed.embed.ray_engine import ray_cluster, ray_engine
from nvembed.read.corpus import list_files
from nvembed.errors import NumericsError

corpus, out, failed, notes = map(Path, sys.argv[1:])

def build():
    def noting(texts):
        with notes.open("a") as file:
            file.write(f"{os.getpid()} {texts[0]!r}\\n")
        time.sleep(0.3)
        return encode(texts)
    return noting

def build_failing():
    def failing(texts):
        raise NumericsError("the vector of text 0 is not finite")
    return failing

def kill():
    while True:
        workers = [line.split()[0] for line in notes.read_text().splitlines()]
        if len(set(workers)) == 2:
            print("killed", workers[-1], flush=True)
            os.kill(int(workers[-1]), signal.SIGKILL)
            return
        time.sleep(0.01)

def run(out, cluster, build):
    with open_job(out, list_files(str(corpus)), CorpusReading(shard_passages=4), lambda *_: None) as job:
        engine = ray_engine(cluster, cluster.workers(None), lambda: word_offsets, build)
        job.run(settings(), engine, lambda *_: None, names={"corpus": "c", "model": "m"})

with ray_cluster(cpus=3) as cluster:
    print("workers", cluster.workers(None))
    threading.Thread(target=kill, daemon=True).start()
    run(out, cluster, build)
    try:
        run(failed, cluster, build_failing)
    except NumericsError as error:
        print("failed:", error)
"""


def test_a_worker_is_killed_and_the_bytes_are_the_same(tmp_path: Path) -> None:
    corpus = make_corpus(tmp_path / "corpus")
    with open_job(tmp_path / "local", list_files(str(corpus)), CorpusReading(shard_passages=4), print) as job:
        engine = local_engine(word_offsets, encode)
        job.run(settings(), engine, lambda *_: None, names={"corpus": "c", "model": "m"})
    notes = tmp_path / "notes"
    notes.touch()
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, corpus, tmp_path / "ray", tmp_path / "failed", notes],
        capture_output=True,
        text=True,
        timeout=240,
        env={
            **os.environ,
            "PYTHONPATH": f"{UNIT}:{os.environ.get('PYTHONPATH', '')}",
            "RAY_raylet_start_wait_time_s": "120",  # on a busy machine
            "RAY_worker_niceness": "0",  # Ray's workers would wait for all others there
        },
    )
    assert done.returncode == 0, done.stderr
    assert "workers 2" in done.stdout
    assert content(tmp_path / "ray") == content(tmp_path / "local")
    killed = done.stdout.split("killed ")[1].split()[0]
    begun = [line.split(maxsplit=1) for line in notes.read_text().splitlines()]
    assert killed in {worker for worker, _ in begun}
    assert len({worker for worker, _ in begun}) == 3, "another worker took the place of the killed one"
    texts = [text for _, text in begun]
    twice = {text for text in texts if texts.count(text) > 1}
    assert twice <= {text for worker, text in begun if worker == killed}
    assert len(twice) == 1, "the shard in which the worker was killed was begun again, and no other"
    assert "failed: the vector of text 0 is not finite" in done.stdout
    assert not list((tmp_path / "failed").rglob("*.parquet"))


def test_workers_leave_a_cpu_to_read() -> None:
    assert RayCluster(cpus=2, gpus=0).workers(None) == 1
    assert RayCluster(cpus=16, gpus=0).workers(None) == 15
    assert RayCluster(cpus=1, gpus=0).workers(None) == 1
    assert RayCluster(cpus=8, gpus=8).workers(None) == 8
    assert RayCluster(cpus=8, gpus=8).workers(3) == 3
    with pytest.raises(InputError, match=r"--workers is 2; expected 1 to 1: .* 2 CPUs, one to read"):
        RayCluster(cpus=2, gpus=0).workers(2)
    with pytest.raises(InputError, match=r"--workers is 5; expected 1 to 4: .* 4 GPUs, a worker for each"):
        RayCluster(cpus=64, gpus=4).workers(5)
