"""The whole way of a small recipe: mine, train, mine again, train again, export, evaluate."""

import json
import os
import re
import shutil
import signal
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import tiny_lm
from eval_folders import make_retrieval
from forks import Forks, forks
from tiny_recipe import ANIMALS, tiny_recipe

from conftest import ROOT
from nvembed.cli.main import main
from nvembed.encoder import Encoder
from nvembed.train.log import StepRecord
from nvembed.vectors.embeddings import Embeddings, bare


@pytest.fixture(scope="module")
def processes() -> Iterator[Forks]:
    commands = (f"nvembed.cli.{name}" for name in ("init", "mine", "train", "merge", "export", "evaluate"))
    rest = ("nvembed.encoder", "nvembed.train.loop", "nvembed.evaluate.protocol", "sklearn.linear_model")
    with forks("peft", "bm25s", "nvembed.cli.main", *commands, *rest) as made:
        yield made


def reproduce(
    processes: Forks, folder: Path, arguments: list[str], variables: dict[str, str]
) -> subprocess.CompletedProcess[str]:
    """Run the script in a folder, with this checkout's ``nvembed``."""
    command = processes.program(folder / "bin" / "nvembed", "from nvembed.cli.main import main; main()")
    environment = {**os.environ, "PATH": f"{command.parent}:{os.environ['PATH']}", **variables}
    script = ["bash", str(ROOT / "recipes" / "reproduce.sh"), *arguments]
    return subprocess.run(script, cwd=folder, env=environment, capture_output=True, text=True, check=False)


def test_reproduce_from_beginning_to_end(tmp_path: Path, processes: Forks) -> None:
    """The script: stopped by a folder of another run, then given again."""
    recipe = tiny_recipe(tmp_path)
    taught = '[teacher]\nmodel = "work/teacher"\ninstruct = true\nweight = 0.5\ntemperature = 0.1\n'
    with (recipe / "stage2.toml").open("a") as file:
        file.write(taught)
    tiny_lm.folder(tmp_path / "lm", tiny_lm.sizes())
    make_retrieval(tmp_path / "tasks" / "SQuAD", passages=12, queries=4)
    variables = {"DATA": ".", "BASE": "lm", "DEV": "tasks/SQuAD", "EVAL": "tasks"}

    def run() -> subprocess.CompletedProcess[str]:
        return reproduce(processes, tmp_path, [str(recipe), "work"], variables)

    (tmp_path / "work" / "stage1").mkdir(parents=True)
    (tmp_path / "work" / "stage1" / "settings.json").write_text("{}")
    stopped = run()
    assert stopped.returncode == 1, "a step that fails ends the script"
    assert "4/7" not in stopped.stderr
    (tmp_path / "work" / "stage1" / "settings.json").unlink()
    work = tmp_path / "work"
    finished = [work / "base" / "model.safetensors", work / "data1" / "animals.jsonl"]
    kept = [path.stat().st_mtime_ns for path in finished]
    done = run()
    assert done.returncode == 0, done.stderr
    assert [path.stat().st_mtime_ns for path in finished] == kept, "what is finished is not made again"
    assert sorted(path.name for path in work.iterdir()) == sorted(
        ["base", "data1", "data2", "model", "results", "stage1", "stage2", "teacher"]
    )
    assert (work / "model" / "adapter_model.safetensors").is_file()
    assert not (work / "model" / "model.safetensors").exists()
    for name in ("data1", "data2"):
        mined = [json.loads(line) for line in (work / name / "animals.jsonl").read_text().splitlines()]
        assert len(mined) == 12
        assert all(row["hard_negatives"] for row in mined)
        assert not any(row["positives"][0] in row["hard_negatives"] for row in mined)
    teachers = [(work / name / "animals.settings.json").read_text() for name in ("data1", "data2")]
    assert "bm25" in teachers[0]
    assert "work/teacher" in teachers[1]
    settings = [json.loads((work / name / "settings.json").read_text()) for name in ("stage1", "stage2")]
    assert "teacher" not in settings[0]
    assert settings[1]["teacher"].endswith("/120/float32"), "its content, most tokens and number format"
    for stage in ("stage1", "stage2"):
        log = (work / stage / "log.jsonl").read_text().splitlines()
        assert (sum('"loss"' in line for line in log), sum('"scores"' in line for line in log)) == (4, 2)
    texts = [f"where does the {name} live?" for name in ANIMALS]
    vectors = {
        name: Encoder.from_pretrained(work / name, device="cpu").encode(texts)
        for name in ("base", "teacher", "model")
    }
    assert np.abs(vectors["teacher"] - vectors["base"]).max() > 1e-3
    assert np.abs(vectors["model"] - vectors["teacher"]).max() > 1e-3
    scored = {path.parent.parent.name for path in (work / "results").glob("*/*/SQuAD.json")}
    assert len(scored) == 4
    assert {"local__untrained", "local__stage1", "local__model"} < scored


def leave(command: list[str]) -> int:
    """Run a command in this process and return its exit code."""
    with pytest.raises(SystemExit) as left:
        main(command)
    return int(left.value.code or 0)


def test_a_teacher_that_cannot_teach_is_refused_before_the_first_step(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    recipe = tiny_recipe(tmp_path)
    tiny_lm.folder(tmp_path / "lm", tiny_lm.sizes())
    monkeypatch.chdir(tmp_path)
    assert leave(["init", "lm", "base", "--recipe", str(recipe / "stage1.toml")]) == 0
    assert leave(["mine", str(recipe), "--out", "mined"]) == 0
    stage = recipe / "stage1.toml"
    command = ["train", str(stage), "--model", "base", "--data", "mined", "--out", "run"]
    told = stage.read_text()
    taught = told + '[teacher]\nmodel = "{}"\ninstruct = false\nweight = 1.0\ntemperature = 0.1\n'
    stage.write_text(taught.format("bm25"))
    capsys.readouterr()
    assert leave(command) == 1
    assert "the teacher bm25 has no vectors" in capsys.readouterr().err
    stage.write_text(taught.format("base").replace("weight", "wieght"))
    assert leave(command) == 1
    assert "wieght" in (error := capsys.readouterr().err)
    assert "weight" in error
    stage.write_text(taught.format("base"))

    def ill(_self: Encoder, texts: list[str], **_: object) -> Iterator[Embeddings]:
        yield bare(np.full((len(texts), 4), np.nan, dtype=np.float32))

    monkeypatch.setattr(Encoder, "stream", ill)
    assert leave(command) == 1
    assert "vectors are not finite" in capsys.readouterr().err
    assert not list((tmp_path / "run").glob("step-*"))
    mined = tmp_path / "mined" / "animals.jsonl"
    mined.write_text(mined.read_text().replace("otter", "stoat"))
    assert leave(command) == 1
    assert "is of a run with another set animals" in " ".join(capsys.readouterr().err.split())
    stage.write_text(told)
    assert leave([*command, "--set", "teacher.weight=2"]) == 1
    assert "the recipe has no [teacher]" in " ".join(capsys.readouterr().err.split())


def test_ones_own_pairs_with_ones_own_instruction(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """From a JSONL of pairs to vectors: init, mine, leaks, train (stopped and resumed), merge, encode."""
    recipe = tiny_recipe(tmp_path)
    instruction = "Given a question about an animal, retrieve where it lives"
    (recipe / "blend.toml").write_text(
        f'seed = 1\n[sets.animals]\nform = "pairs"\npath = "pairs.jsonl"\ninstruction = "{instruction}"\n'
    )
    tiny_lm.folder(tmp_path / "lm", tiny_lm.sizes())
    for folder in ("a", "b"):
        make_retrieval(tmp_path / folder / "helpdesk", passages=12, queries=4)
    monkeypatch.chdir(tmp_path)
    stage = str(recipe / "stage1.toml")
    assert leave(["init", "lm", "base", "--recipe", stage]) == 0
    assert leave(["mine", str(recipe), "--out", "mined"]) == 0
    assert leave(["leaks", "mined", "--against", "a"]) == 0
    row = json.loads((tmp_path / "mined" / "animals.jsonl").read_text().splitlines()[0])
    assert row["instruction"] == instruction
    command = ["train", stage, "--model", "base", "--data", "mined", "--out", "run", "--dev", "a/helpdesk"]
    capsys.readouterr()
    assert leave(command) == 1
    assert "--instruction" in capsys.readouterr().err
    assert leave([*command, "--dev", "b/helpdesk", "--instruction", f"helpdesk={instruction}"]) == 1
    assert "second task named 'helpdesk'" in capsys.readouterr().err
    assert leave([*command, "--instruction", f"help={instruction}"]) == 1
    assert "not evaluated" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()
    command += ["--instruction", f"helpdesk={instruction}"]

    def ask(_stage: object) -> Callable[[StepRecord], None]:
        return lambda record: os.kill(os.getpid(), signal.SIGTERM) if record.step == 2 else None

    with monkeypatch.context() as patch:
        patch.setattr("nvembed.cli.train._reporter", ask)
        assert leave(command) == 143
    assert "run the same command again" in capsys.readouterr().err
    assert leave(command) == 0
    message = capsys.readouterr().err
    assert "4 steps from step 3 of 4 queries" in message
    assert "passes over 12 examples" in message
    log = [json.loads(line) for line in (tmp_path / "run" / "log.jsonl").read_text().splitlines()]
    assert [(each["kind"], each["step"]) for each in log if each["kind"] == "scores"] == [
        ("scores", 2),
        ("scores", 4),
    ]
    qrels = tmp_path / "a" / "helpdesk" / "qrels" / "test.tsv"
    qrels.write_text(qrels.read_text().rstrip().rsplit("\n", 1)[0] + "\n")
    assert leave(command) == 1
    assert "another dev_revisions" in " ".join(capsys.readouterr().err.split())
    assert leave(["merge", "base", "run/best", "merged"]) == 0
    (tmp_path / "in.txt").write_text("where does the otter live?\n")
    assert leave(["encode", "merged", "in.txt", "out.npy", "--instruction", instruction]) == 0
    assert np.load(tmp_path / "out.npy").shape == (1, 64)


def test_the_tiny_recipe_with_its_own_data(tmp_path: Path, processes: Forks) -> None:
    """``recipes/tiny`` as it ships, with a random language model and two steps."""
    recipe = ROOT / "recipes" / "tiny"
    shutil.copytree(recipe, tmp_path / "tiny")
    for stage in (1, 2):
        path = tmp_path / "tiny" / f"stage{stage}.toml"
        text = (
            path.read_text()
            .replace("num_layers = 4", "num_layers = 1")
            .replace("max_tokens = 256", "max_tokens = 128")
        )
        text = text.replace("num_heads = 8", "num_heads = 2").replace("head_dim = 72", "head_dim = 32")
        text = text.replace("global_batch = 16", "global_batch = 4").replace(
            "warmup_steps = 4", "warmup_steps = 1"
        )
        path.write_text(re.sub(r"(?m)^(steps|save_every|evaluate_every) = \d+", r"\1 = 2", text))
    tiny_lm.folder(tmp_path / "lm", tiny_lm.sizes())
    done = reproduce(processes, tmp_path, ["tiny", "work"], {"BASE": "lm"})
    assert done.returncode == 0, done.stderr
    examples = [
        json.loads(line) for line in (tmp_path / "work" / "data1" / "xquad_en.jsonl").read_text().splitlines()
    ]
    assert len(examples) == 319
    assert len(list((tmp_path / "work" / "results").glob("*/*/xquad_en.json"))) == 4
    assert (
        leave(
            [
                "leaks",
                str(tmp_path / "work" / "data1"),
                "--against",
                str(recipe),
                "--root",
                str(recipe / "data"),
            ]
        )
        == 0
    )
