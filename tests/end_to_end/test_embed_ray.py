"""The engine on Ray: a worker is killed, and the bytes are the local engine's; failures end as they are."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("ray", reason="the extra 'ray' is not installed")
pytest.importorskip("pypdfium2", reason="the extra 'corpus' is not installed")

import pyarrow.parquet as pq
from corpora import content, encode, make_corpus, settings, word_offsets

from nvembed.embed.job import local_engine, open_job
from nvembed.embed.ray_engine import RayCluster
from nvembed.embed.records import CorpusReading
from nvembed.errors import InputError
from nvembed.read.corpus import list_files

UNIT = Path(__file__).parents[1] / "helpers"

# The worker that begins shard 3 first is killed within it. Then two jobs fail on the same cluster: one in its
# workers, one in this process, and the cluster is left at once.
SCRIPT = """
import os, signal, sys
from pathlib import Path
from corpora import encode, settings, word_offsets
from nvembed.embed.job import open_job
from nvembed.embed.records import CorpusReading
from nvembed.embed.ray_engine import ray_cluster, ray_engine
from nvembed.read.corpus import list_files
from nvembed.errors import NumericsError

corpus, folder, fatal = Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3]

def build():
    def deadly(texts):
        if texts[0] == fatal:
            with (folder / "begun").open("ab", 0) as begun:
                begun.write(b"x")
                if begun.tell() == 1:
                    os.kill(os.getpid(), signal.SIGKILL)
        return encode(texts)
    return deadly

def build_failing():
    def failing(texts):
        raise NumericsError("the vector of text 0 is not finite")
    return failing

def run(out, cluster, build, progress=lambda *_: None):
    with open_job(out, list_files(str(corpus)), CorpusReading(shard_passages=4), lambda *_: None) as job:
        engine = ray_engine(cluster, cluster.workers(None), lambda: word_offsets, build)
        job.run(settings(), engine, progress, names={"corpus": "c", "model": "m"})

def full(done, total):
    if done:
        raise OSError("no space left")

with ray_cluster(cpus=3) as cluster:
    print("workers", cluster.workers(None))
    run(folder / "ray", cluster, build)
    try:
        run(folder / "failed", cluster, build_failing)
    except NumericsError as error:
        print("failed:", error)
    run(folder / "full", cluster, build, full)
"""


def test_a_worker_is_killed_and_the_bytes_are_the_same(tmp_path: Path) -> None:
    corpus = make_corpus(tmp_path / "corpus")
    with open_job(tmp_path / "local", list_files(str(corpus)), CorpusReading(shard_passages=4), print) as job:
        engine = local_engine(word_offsets, encode)
        job.run(settings(), engine, lambda *_: None, names={"corpus": "c", "model": "m"})
    fatal = pq.read_table(tmp_path / "local" / "shards" / "00003.parquet")["text"][0].as_py()
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, corpus, tmp_path, fatal],
        capture_output=True,
        text=True,
        timeout=900,
        env={
            **os.environ,
            "PYTHONPATH": f"{UNIT}:{os.environ.get('PYTHONPATH', '')}",
            "RAY_raylet_start_wait_time_s": "300",  # on a busy machine
            "RAY_worker_niceness": "0",  # Ray's workers would wait for all others there
        },
    )
    assert "workers 2" in done.stdout, done.stderr
    assert content(tmp_path / "ray") == content(tmp_path / "local")
    assert len((tmp_path / "begun").read_bytes()) >= 2, "the shard is begun again after the kill"
    assert "failed: the vector of text 0 is not finite" in done.stdout
    assert not list((tmp_path / "failed").rglob("*.parquet"))
    assert "OSError: no space left" in done.stderr
    assert "has already been shutdown" not in done.stderr


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
