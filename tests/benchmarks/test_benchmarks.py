"""The benchmark scripts run: at a small size, with results that say what was not measured."""

import json
import math
import sys
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch

from conftest import ROOT, TINY_A

sys.path.append(str(ROOT / "benchmarks"))

import curve
import encode_gpu
import latency_gpu
import rehearsal
import train_gpu
from nvembed.errors import DataError, InputError
from nvembed.model.compiled import compile_layers
from nvembed.model.config import NV_EMBED_V2
from nvembed.model.nv_embed import NVEmbed
from nvembed.weights.known import known_weights
from nvembed.weights.save import SHARD_BYTES
from nvembed.weights.tensors import expected_tensors


def in_this_process(name: str, folder: Path) -> dict[str, object]:
    result = rehearsal.phase_load(folder) if name == "load" else rehearsal.phase_check(folder)
    return {**result, "max_rss_gib": 0.5}


def test_rehearsal(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rehearsal, "run_phase", in_this_process)
    result = rehearsal.rehearse(tmp_path / "weights", TINY_A, small=True)
    assert list((tmp_path / "weights").iterdir()) == [], "the weights are deleted"
    tensors = expected_tensors(rehearsal.tiny(NV_EMBED_V2))
    assert result["tensors"] == len(tensors)
    assert result["load"]["vector_finite_and_unit"]
    assert result["load"]["same_twice"]
    assert result["load"]["text_tokens"] == 16
    assert result["check"]["exit_code"] == 0
    assert {found["check"]: found["status"] for found in result["check"]["report"]["findings"]} == {
        "checksums": "pass",
        "files": "pass",
        "tensors": "pass",
        "values": "pass",
        "tokenizer": "pass",
        "memory": "pass",
        "licence": "skip",
        "known answer": "skip",
    }
    for phase in result["phases"].values():
        assert phase["seconds"] >= 0
        assert 0 < phase["peak_anonymous_gib"] <= phase["peak_resident_gib"]
    assert str(tmp_path) not in json.dumps(result), "results name no paths of this machine"
    assert "2,193,152 parameters" in rehearsal.markdown(result)


@pytest.mark.parametrize("error", [KeyboardInterrupt, RuntimeError])
def test_rehearsal_deletes_the_weights_whatever_happens(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: type[BaseException]
) -> None:
    seen = []

    def stopped(name: str, folder: Path) -> None:
        seen.append(sum(path.stat().st_size for path in folder.glob("*.safetensors")))
        raise error

    monkeypatch.setattr(rehearsal, "run_phase", stopped)
    with pytest.raises(error):
        rehearsal.rehearse(tmp_path, TINY_A, small=True)
    assert seen[0] > 4_000_000
    assert list(tmp_path.iterdir()) == []


def test_rehearsal_writes_every_tensor() -> None:
    config = rehearsal.tiny(NV_EMBED_V2)
    made = {name: tuple(value.shape) for name, value in rehearsal.random_tensors(config)}
    assert made == expected_tensors(config)


def test_rehearsal_fills_the_shards_as_released() -> None:
    """Names, shapes and order give the very sizes of the released files, headers included, to the byte."""
    shapes = expected_tensors(NV_EMBED_V2)
    shards: list[list[str]] = [[]]
    used = 0
    for name in sorted(shapes, key=rehearsal.released_order):
        size = 2 * math.prod(shapes[name])
        if used + size > SHARD_BYTES:
            shards.append([])
            used = 0
        shards[-1].append(name)
        used += size
    assert [len(names) for names in shards] == [83, 100, 106, 15]
    sizes = []
    for names in shards:
        header: dict[str, object] = {"__metadata__": {"format": "pt"}}
        end = 0
        for name in sorted(names):
            start, end = end, end + 2 * math.prod(shapes[name])
            header[name] = {"dtype": "F16", "shape": shapes[name], "data_offsets": [start, end]}
        written = len(json.dumps(header, separators=(",", ":")))
        sizes.append(8 + written + -written % 8 + end)
    assert sizes == [file.size_bytes for file in known_weights().files]


@pytest.mark.parametrize(
    ("script", "cases"),
    [
        (encode_gpu, ["16 tokens", "64 tokens", "mix"]),
        (train_gpu, [*train_gpu.CASES, train_gpu.WHOLE]),
    ],
    ids=lambda value: value.__name__ if isinstance(value, ModuleType) else "",
)
def test_gpu_benchmarks_on_cpu(
    script: ModuleType,
    cases: list[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    name = script.__name__
    argv = [f"{name}.py", "--device", "cpu", "--tiny", "--repeats", "1", "--results", str(tmp_path)]
    monkeypatch.setattr(sys, "argv", argv)
    script.main()
    tried = [json.loads(line) for line in capsys.readouterr().out.splitlines() if line.startswith("{")]
    assert [case["case"] for case in tried] == cases
    for case in tried:
        assert case.get("lowest_cosine", 1.0) > 0.999, "ours and transformers compute the same"
        assert ("lowest_cosine" in case) == (script is encode_gpu)
        assert math.isfinite(case["of_ceiling"])
    result = json.loads((tmp_path / f"{name}.json").read_text())
    assert not result["measured"]
    assert all(list(case) == ["case"] for case in result["cases"]), "nothing is claimed"
    assert "**not measured**: no CUDA device" in (tmp_path / f"{name}.md").read_text()


@pytest.mark.filterwarnings("ignore")  # of the compiler
@pytest.mark.parametrize(
    ("script", "flags", "page"),
    [(encode_gpu, ["--variant", "fp8"], "encode_gpu_fp8"), (latency_gpu, [], "latency_gpu")],
    ids=["fp8", "latency"],
)
def test_other_gpu_benchmarks_on_cpu(
    script: ModuleType, flags: list[str], page: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def compile_eagerly(model: NVEmbed) -> None:
        compile_layers(model, backend="eager")

    monkeypatch.setattr(encode_gpu, "compile_layers", compile_eagerly)
    argv = [f"{script.__name__}.py", "--device", "cpu", "--tiny", "--repeats", "1", *flags]
    monkeypatch.setattr(sys, "argv", [*argv, "--results", str(tmp_path)])
    script.main()
    result = json.loads((tmp_path / f"{page}.json").read_text())
    assert f"python benchmarks/{script.__name__}.py" in result["command"]
    assert not result["measured"]
    assert "**not measured**" in (tmp_path / f"{page}.md").read_text()


def test_train_gpu_counts_the_products_of_a_step() -> None:
    """By hand: hidden size 64, 2 layers of 4 heads of 16, 96 wide; a pooler of 2 heads of 64, 8 latents."""
    case = train_gpu.Case(2, 2, 64, checkpointing=True, cache=False)
    model = encode_gpu.random_model(rehearsal.tiny(NV_EMBED_V2), torch.device("cpu"), torch.bfloat16)
    linears = 2 * (64 * (64 + 32 + 32 + 64) + 3 * 64 * 96)
    attention = 2 * 2 * 4 * 16 * 10
    head = 64 * 128 + 2 * 8 * 128 + 128 * 64 + 64 * 512 + 256 * 64
    expected = 2 * 40 * (3 * linears + 4.5 * attention + 4 * head)
    assert train_gpu.operations(model, case, 10) == pytest.approx(expected)


def test_encode_gpu_sees_a_wrong_mask() -> None:
    """The agreement that the benchmark asks for is one that a causal mask does not have."""
    models = encode_gpu.build(rehearsal.tiny(NV_EMBED_V2), torch.device("cpu"), torch.bfloat16)
    for layer in models.mistral.layers:
        layer.self_attn.is_causal = True
    case = encode_gpu.measure(models, [16] * 4, "causal", encode_gpu.Clock(torch.device("cpu"), 1))
    assert case["lowest_cosine"] < 0.9


def test_encode_gpu_refuses_the_full_size_on_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["encode_gpu.py", "--device", "cpu"])
    with pytest.raises(SystemExit, match="needs CUDA: pass --device cpu --tiny"):
        encode_gpu.main()


def a_log(folder: Path, steps: int, loss: float) -> Path:
    folder.mkdir()
    records: list[dict[str, object]] = []
    for step in range(1, steps + 1):
        noise = 0.2 * math.sin(step)
        records.append(
            {"kind": "step", "step": step, "loss": loss / step**0.3 + noise, "tokens": 1000 + step}
        )
        if step % 20 == 0:
            records.append({"kind": "scores", "step": step, "a": step / 200, "b": 0.5})
    (folder / "log.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    return folder


def test_curve(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("matplotlib", reason="the extra 'eval' is not installed")
    one, two = a_log(tmp_path / "stage1", 100, 3.0), a_log(tmp_path / "stage2", 60, 1.0)
    run = curve.read_run(one)
    assert run.tokens.tolist()[:2] == [1001, 2003]
    assert run.scored.tolist() == [20, 40, 60, 80, 100]
    assert run.scores.tolist() == pytest.approx([30, 35, 40, 45, 50])
    np.testing.assert_allclose(curve.smoothed(np.array([0.0, 3.0, 6.0])), [1.5, 3.0, 4.5])
    picture = tmp_path / "curve.png"
    monkeypatch.setattr("sys.argv", ["curve.py", str(one), str(two), "--out", str(picture)])
    curve.main()
    assert picture.read_bytes().startswith(b"\x89PNG")
    assert "stage1: 100 steps, 105,050 tokens, loss " in capsys.readouterr().out
    monkeypatch.setattr("sys.argv", ["curve.py", str(one), "--out", str(tmp_path / "curve.txt")])
    with pytest.raises(InputError, match=r"curve.txt: expected a \.png or \.svg file"):
        curve.main()
    (one / "log.jsonl").write_text("")
    with pytest.raises(DataError, match=r"log\.jsonl"):
        curve.read_run(one)
