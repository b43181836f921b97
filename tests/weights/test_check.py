"""``nvembed check``: every kind of fault is found and named, and a sound model passes."""

import json
import math
import weakref
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny_sentence import sentence_folder
from tokenizers import Tokenizer, models, pre_tokenizers, processors

from nvembed.cli import check as command
from nvembed.cli.main import main
from nvembed.cli.options import Compute
from nvembed.compress.static import write_static
from nvembed.encoder import Encoder
from nvembed.errors import ConfigError, WeightsError
from nvembed.files import file_digest
from nvembed.model.config import NV_EMBED_V2, BackboneConfig, ModelConfig, PoolerConfig
from nvembed.model.nv_embed import NVEmbed
from nvembed.text.tokenize import TextSettings
from nvembed.weights import check as room
from nvembed.weights import known as known_room
from nvembed.weights.check import Report, check_folder, free_memory, memory_table
from nvembed.weights.checkpoint import load_model, open_checkpoint
from nvembed.weights.known import (
    KnownFile,
    KnownWeights,
    ask,
    known_answer,
    known_weights,
    licence_of,
)
from nvembed.weights.save import save_checkpoint
from nvembed.weights.sums import write_sums
from nvembed.weights.tensors import Checkpoint, StoredTensor, expected_tensors

CPU = torch.device("cpu")
CPU_OPTION = Compute(device="cpu")
WORDS = ["<unk>", "<s>", "</s>", "a", "short", "text", ".", "A"]
CONFIG = ModelConfig(
    BackboneConfig(
        architecture="mistral",
        vocab_size=len(WORDS),
        hidden_size=16,
        intermediate_size=24,
        num_layers=1,
        num_heads=4,
        num_kv_heads=2,
        head_dim=4,
        max_position=512,
    ),
    PoolerConfig(num_latents=4, num_heads=2, head_dim=16),
)
NORM = "embedding_model.norm.weight"
LATENTS = "latent_attention_model.latents"


def tokenizer(words: list[str]) -> bytes:
    vocabulary = {word: row for row, word in enumerate(words)}
    made = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    made.pre_tokenizer = pre_tokenizers.Whitespace()
    made.add_special_tokens(["<unk>", "<s>", "</s>"])
    made.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    return made.to_str().encode()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A sound model in two shards, float16."""
    torch.manual_seed(0)
    model = NVEmbed(CONFIG).half()
    save_checkpoint(
        tmp_path / "model",
        CONFIG,
        TextSettings("released", 512, "</s>", 2, 1),
        model.state_dict().items(),
        tokenizer_files={
            "tokenizer.json": tokenizer(WORDS),
            "tokenizer_config.json": b'{"eos_token": "</s>"}',
        },
        shard_bytes=9_000,
    )
    return tmp_path / "model"


def shards(folder: Path) -> list[Path]:
    return sorted(folder.glob("*.safetensors"))


def change(folder: Path, name: str, value: torch.Tensor | None) -> None:
    """Replace a stored tensor, add it to the last shard, or (``None``) remove it."""
    path = next((path for path in shards(folder) if name in load_file(path)), shards(folder)[-1])
    tensors = load_file(path)
    if value is None:
        del tensors[name]
    else:
        tensors[name] = value
    save_file(tensors, path)


def looked_at(folder: Path, *, dtype: str = "float32", hash_files: bool = False) -> Report:
    return check_folder(folder, device=CPU, dtype=dtype, hash_files=hash_files, advance=lambda _: None)


def findings(folder: Path, **options: Any) -> dict[str, tuple[str, str]]:
    return {found.check: (found.status, found.detail) for found in looked_at(folder, **options).findings}


def test_a_sound_model_passes(folder: Path) -> None:
    read: list[int] = []
    told: list[int] = []
    report = check_folder(
        folder, device=CPU, dtype="float32", hash_files=False, advance=read.append, expect=told.append
    )
    found = {item.check: (item.status, item.detail) for item in report.findings}
    assert list(found) == ["files", "checksums", "tensors", "values", "tokenizer", "memory", "licence"]
    assert [status for status, _ in found.values()] == ["pass"] * 6 + ["skip"]
    assert report.ok
    assert not report.recognised
    tensors = expected_tensors(CONFIG)
    numbers = sum(math.prod(shape) for shape in tensors.values())
    assert f"{len(tensors)} tensors, {numbers:,} parameters, stored as F16" in found["tensors"][1]
    assert [sum(read)] == [2 * numbers] == told
    assert "8 tokens, released mode, texts up to 512 tokens" in found["tokenizer"][1]
    assert found["licence"][1].startswith("unknown")


def test_missing_files_are_named(folder: Path) -> None:
    shards(folder)[1].unlink()
    (folder / "tokenizer.json").unlink()
    found = findings(folder)
    assert found["files"] == ("fail", "missing: tokenizer.json, model-00002-of-00002.safetensors")
    assert found["tensors"][0] == "fail"
    assert {found[name][0] for name in ("values", "tokenizer", "memory")} == {"skip"}


@pytest.mark.parametrize("name", ["config.json", "tokenizer.json", "model.safetensors.index.json"])
def test_every_faulty_file_is_a_finding(folder: Path, name: str) -> None:
    (folder / name).write_bytes(b"{")
    assert "fail" in {status for status, _ in findings(folder).values()}
    (folder / name).unlink()
    assert "fail" in {status for status, _ in findings(folder).values()}


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_values_that_are_not_finite_are_named(folder: Path, value: float) -> None:
    tensor = torch.ones(16, dtype=torch.float16)
    tensor[7] = value
    change(folder, NORM, tensor)
    assert findings(folder)["values"] == ("fail", f"not finite: {NORM}; fetch the weights again")


def test_values_beyond_the_dtype(folder: Path) -> None:
    change(folder, NORM, torch.full((16,), -1e5))
    assert findings(folder, dtype="bfloat16")["values"] == ("pass", "all finite, also as bfloat16")
    status, detail = findings(folder, dtype="float16")["values"]
    assert (status, detail) == ("fail", f"beyond 65,504, the range of float16: {NORM}; use bfloat16")


def test_a_matrix_of_one_value_is_suspicious(folder: Path) -> None:
    change(folder, LATENTS, torch.zeros(4, 16))
    assert findings(folder)["checksums"][0] == "fail"
    write_sums(folder)
    status, detail = findings(folder)["values"]
    assert status == "warn"
    assert LATENTS in detail
    assert looked_at(folder).ok


def test_tensors_that_do_not_fit_are_all_named(folder: Path) -> None:
    change(folder, LATENTS, torch.ones(5, 16))
    change(folder, NORM, None)
    change(folder, "lm_head.weight", torch.ones(1))
    change(folder, "embedding_model.embed_tokens.weight", torch.ones(len(WORDS), 16, dtype=torch.int8))
    status, detail = findings(folder)["tensors"]
    assert status == "fail"
    assert f"1 missing: {NORM}" in detail
    assert "1 unexpected: lm_head.weight" in detail
    assert f"1 misshapen: {LATENTS} is (5, 16), expected (4, 16)" in detail
    assert "1 not floats: embedding_model.embed_tokens.weight is I8, expected F64, F32, F16, BF16" in detail


def test_an_index_that_is_wrong(folder: Path) -> None:
    index = folder / "model.safetensors.index.json"
    content = json.loads(index.read_text())
    content["weight_map"][NORM] = next(p.name for p in shards(folder) if NORM not in load_file(p))
    index.write_text(json.dumps(content))
    status, detail = findings(folder)["tensors"]
    assert status == "warn"
    assert "1 are in another file than model.safetensors.index.json lists" in detail
    assert NORM in detail


def test_weights_nobody_reads(folder: Path) -> None:
    save_file({"x": torch.ones(1)}, folder / "old.safetensors")
    status, detail = findings(folder)["files"]
    assert status == "warn"
    assert detail.endswith("does not list them: old.safetensors")


def test_another_models_tokenizer(folder: Path) -> None:
    (folder / "tokenizer.json").write_bytes(tokenizer([*WORDS, "more"]))
    assert findings(folder)["tokenizer"] == (
        "fail",
        "tokenizer.json has 9 tokens, but the model has 8 embeddings: it belongs to another model",
    )
    with pytest.raises(ConfigError, match="9 tokens, but the model has 8 embeddings"):
        Encoder.from_pretrained(folder)
    (folder / "tokenizer.json").write_bytes(tokenizer(["<s>", "</s>", "<unk>", *WORDS[3:]]))
    assert findings(folder)["tokenizer"] == ("fail", "a text ends with token 1; expected the config's EOS, 2")
    (folder / "tokenizer.json").write_bytes(b"{")
    assert findings(folder)["tokenizer"][1].startswith("tokenizer.json cannot be read")


def test_one_tensor_at_a_time(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    alive: list[weakref.ref[torch.Tensor]] = []
    read = Checkpoint.read

    def watched(checkpoint: Checkpoint, name: str) -> torch.Tensor:
        assert all(ref() is None for ref in alive), f"another tensor is held while {name} is read"
        tensor = read(checkpoint, name)
        alive.append(weakref.ref(tensor))
        return tensor

    monkeypatch.setattr(Checkpoint, "read", watched)
    assert findings(folder)["values"][0] == "pass"
    assert len(alive) == len(expected_tensors(CONFIG))


def test_memory_is_what_a_loaded_model_takes(folder: Path) -> None:
    checkpoint = open_checkpoint(folder)
    rows = {(row.dtype, row.folded): row for row in memory_table(checkpoint, CPU)}
    assert len(rows) == 8
    for (dtype, folded), row in rows.items():
        if dtype in ("int8", "int4"):
            continue  # estimates for large models, where norms and biases are few
        model = load_model(checkpoint, device="cpu", dtype=getattr(torch, dtype), fold=folded)
        held = sum(value.nbytes for value in model.state_dict().values())
        assert row.weights_bytes == held
        assert row.needed_bytes > held
        assert row.fits


def test_memory_of_the_released_model() -> None:
    """The sizes that the hub's index and the dossier give, from the shapes alone."""
    known = known_weights()
    stored = {n: StoredTensor(Path("x"), shape, "F16") for n, shape in expected_tensors(NV_EMBED_V2).items()}
    assert len(stored) == known.num_tensors
    checkpoint = Checkpoint(Path("x"), NV_EMBED_V2, TextSettings("released", 32768, "</s>", 2), stored)
    rows = {(row.dtype, row.folded): row for row in memory_table(checkpoint, CPU)}
    assert rows["float16", False].weights_bytes == known.total_bytes == 15_702_032_384
    saved = 8 * 4096 * 4096 * 4 - 2 * 4096 * 4096 + 512 * 4096 + 2 * 4096
    assert rows["float16", True].weights_bytes == known.total_bytes - 2 * saved
    assert 7.2e9 < rows["int8", True].weights_bytes < 7.6e9
    assert 4.2e9 < rows["int4", True].weights_bytes < 4.6e9
    row = rows["bfloat16", True]
    assert row.needed_bytes - row.weights_bytes >= 2 * 65536 * 4096, "room for the largest tensor"
    assert row.needed_bytes < 16e9 < rows["float32", True].needed_bytes


def test_too_little_memory(folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    needed = {row.dtype: row.needed_bytes for row in memory_table(open_checkpoint(folder), CPU) if row.folded}
    monkeypatch.setattr(room, "free_memory", lambda device: needed["float32"] - 1)
    status, detail = findings(folder)["memory"]
    assert status == "warn"
    assert detail.endswith("use bfloat16")
    assert command.check(str(folder), compute=CPU_OPTION) == 0, "alone, it is no failure"
    assert command.check(str(folder), compute=CPU_OPTION, known_answer=True) == 1
    assert "does not fit" in " ".join(capsys.readouterr().out.split())
    monkeypatch.setattr(room, "free_memory", lambda device: None)
    assert findings(folder)["memory"][1].endswith("the free memory is unknown")


def test_free_memory_knows_containers(tmp_path: Path) -> None:
    assert (free_memory(CPU) or 0) > 0
    assert free_memory(CPU, tmp_path) is None
    (tmp_path / "proc").mkdir()
    (tmp_path / "proc/meminfo").write_text("MemTotal: 9000 kB\nMemAvailable:    1000 kB\n")
    assert free_memory(CPU, tmp_path) == 1_024_000
    group = tmp_path / "sys/fs/cgroup"
    group.mkdir(parents=True)
    (group / "memory.max").write_text("max\n")
    (group / "memory.stat").write_text("anon 100000\nfile 900000\nshmem 50000\n")
    assert free_memory(CPU, tmp_path) == 1_024_000
    (group / "memory.max").write_text("500000\n")
    assert free_memory(CPU, tmp_path) == 350_000
    (group / "memory.max").write_text("1000\n")
    assert free_memory(CPU, tmp_path) == 0


@pytest.fixture
def known(folder: Path, monkeypatch: pytest.MonkeyPatch) -> KnownWeights:
    """Pretend that the model in ``folder`` is the released one."""
    files = tuple(
        KnownFile(name=path.name, size_bytes=path.stat().st_size, sha256=file_digest(path))
        for path in shards(folder)
    )
    known = known_weights().model_copy(update={"files": files})
    monkeypatch.setattr(room, "known_weights", lambda: known)
    return known


def test_released_weights_are_recognised_by_size(folder: Path, known: KnownWeights) -> None:
    report = looked_at(folder)
    assert report.recognised
    assert report.ok
    licence = report.findings[-1]
    assert licence.status == "warn"
    assert licence.detail.startswith("their sizes are those of nvidia/NV-Embed-v2 (verify with --hash)")
    assert "CC-BY-NC-4.0: not for commercial use; weights derived from them inherit it" in licence.detail


def test_released_weights_are_recognised_by_the_hubs_cache(folder: Path, known: KnownWeights) -> None:
    for file in known.files:
        assert findings(folder)["licence"][1].startswith("their sizes are those of"), "not yet all of them"
        blob = folder / file.sha256
        (folder / file.name).rename(blob)
        (folder / file.name).symlink_to(blob)
    assert findings(folder)["licence"][1].startswith(
        "these are the weights of nvidia/NV-Embed-v2, CC-BY-NC-4.0"
    )


def test_hashes(folder: Path, known: KnownWeights) -> None:
    assert findings(folder, hash_files=True)["sha256"] == ("pass", "2 files are as released")
    path = shards(folder)[0]
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    status, detail = findings(folder, hash_files=True)["sha256"]
    assert status == "fail"
    assert f"{path.name} is {file_digest(path)}, expected {known.files[0].sha256}" in detail


def test_hashes_of_unknown_weights(folder: Path) -> None:
    status, detail = findings(folder, hash_files=True)["sha256"]
    assert status == "skip"
    assert all(file_digest(path) in detail for path in shards(folder))


def test_derived_weights_inherit_the_licence(folder: Path) -> None:
    card = folder / "README.md"
    card.write_text("---\nlicense: mit\nbase_model:\n- nvidia/NV-Embed-v2\n---\ntext")
    status, detail = findings(folder)["licence"]
    assert status == "warn"
    assert detail.startswith("the model card names nvidia/NV-Embed-v2 as the origin, CC-BY-NC-4.0")
    card.write_text("---\nlicense: mit\n---\nBetter than nvidia/NV-Embed-v2.")
    assert findings(folder)["licence"] == ("pass", "mit, according to the model card")
    status, said = licence_of(folder.parent, NV_EMBED_V2, None, known_weights())
    assert status == "warn"
    assert said.startswith("unknown weights with exactly NV-Embed's sizes")


def vectors_of(scores: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Queries and passages whose 100 x inner products are ``scores``."""
    return scores.astype(np.float32) / 100, np.eye(2, dtype=np.float32)


@pytest.mark.parametrize(
    ("off", "right"),
    [
        (0.0, {"float32", "float16", "bfloat16"}),
        (0.05, {"float16", "bfloat16"}),
        (0.4, {"bfloat16"}),
        (0.6, set()),
        (math.nan, set()),
    ],
)
def test_the_known_answer(off: float, right: set[str]) -> None:
    card = known_answer()
    scores = np.array(card.scores_v2)
    scores[1, 0] += off
    queries, passages = vectors_of(scores)
    asked = []

    def encode(texts: Any, prompt: str) -> np.ndarray:
        asked.append((tuple(texts), prompt))
        return queries if prompt else passages

    answers = {dtype: ask(encode, dtype) for dtype in ("float32", "float16", "bfloat16")}  # type: ignore[arg-type]
    assert {dtype for dtype, answer in answers.items() if answer.right} == right
    assert asked[:2] == [(card.queries, card.prompt), (card.passages, "")]
    if not math.isnan(off):
        assert answers["float32"].largest_difference == pytest.approx(off, abs=1e-4)


def run(*argv: str) -> int:
    with pytest.raises(SystemExit) as stop:
        main(argv)
    return int(stop.value.code or 0)


def test_the_command_line(folder: Path, known: KnownWeights, capsys: Any) -> None:
    """Recognised weights are asked for the known answer; these random ones cannot know it."""
    assert run("check", str(folder), "--device", "cpu", "--hash") == 1
    out = " ".join(capsys.readouterr().out.split())
    for word in (
        "known answer",
        "sha256",
        "the model card's scores, 100 x cosine",
        "87.4269",
        "bfloat16",
        "folded",
    ):
        assert word in out

    assert run("check", str(folder), "--device", "cpu", "--no-known-answer", "--json") == 0
    report = json.loads(capsys.readouterr().out)
    assert report["ok"]
    assert report["findings"][-1] == {"check": "known answer", "status": "skip", "detail": "not requested"}
    assert len(report["memory"]) == 8
    assert report["known_answer"] is None
    assert run("check", str(folder), "--device", "cpu", "--json") == 1
    report = json.loads(capsys.readouterr().out)
    assert not report["ok"]
    assert report["known_answer"]["largest_difference"] > report["known_answer"]["tolerance"] == 1e-3


def test_a_faulty_model_is_not_asked(folder: Path, capsys: Any) -> None:
    change(folder, NORM, torch.full((16,), math.nan))
    assert command.check(str(folder), compute=CPU_OPTION, known_answer=True, json=True) == 1
    report = json.loads(capsys.readouterr().out)
    assert report["findings"][-1]["detail"] == "not computed, because another check failed"


def test_no_such_model(tmp_path: Path) -> None:
    with pytest.raises(WeightsError, match="is not a folder; expected"):
        command.check(str(tmp_path / "missing"))


def test_the_recipe_is_the_hubs(tmp_path: Path) -> None:
    """Shard sizes are the tensors and a header: what is left for headers is small and not negative."""
    known = known_weights()
    assert 0 < sum(file.size_bytes for file in known.files) - known.total_bytes < 100_000
    assert [file.name for file in known.files] == [
        f"model-0000{n}-of-00004.safetensors" for n in (1, 2, 3, 4)
    ]
    assert known_room.recognise(tmp_path, known) is None


@pytest.mark.parametrize("layout", ["transformer", "inner", "static"])
def test_models_in_the_layout_of_sentence_transformers_pass(tmp_path: Path, layout: str) -> None:
    folder = tmp_path / "model"
    sentence_folder(folder, "bert", dense=(16,))
    if layout == "inner":
        inner = folder / "0_Transformer"
        inner.mkdir()
        for path in list(folder.iterdir()):
            if path.is_file() and path.name not in ("modules.json", "config_sentence_transformers.json"):
                path.rename(inner / path.name)
        modules = json.loads((folder / "modules.json").read_text())
        modules[0]["path"] = "0_Transformer"
        (folder / "modules.json").write_text(json.dumps(modules))
    if layout == "static":
        source = open_checkpoint(folder)
        table = np.random.default_rng(0).normal(size=(source.config.backbone.vocab_size, 8))
        folder = tmp_path / "static"
        write_static(folder, source, table.astype(np.float32), tokens=None, bits="int8")
    report = check_folder(
        folder, device=torch.device("cpu"), dtype="float32", hash_files=True, advance=lambda _: None
    )
    assert report.ok, report.findings
    assert {finding.check for finding in report.findings} >= {"files", "tokenizer", "sha256"}


def test_memory_of_fp8_on_a_gpu(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("nvembed.weights.check.free_memory", lambda _: 1 << 40)
    rows = memory_table(open_checkpoint(folder), torch.device("cuda"))
    weights = {row.dtype: row.weights_bytes for row in rows if row.folded}
    assert weights["int8"] < weights["fp8"] < weights["bfloat16"]
    assert "fp8" not in {row.dtype for row in memory_table(open_checkpoint(folder), torch.device("cpu"))}
