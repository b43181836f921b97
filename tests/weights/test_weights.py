"""Checkpoints in and out: what is read, what is written, and what is refused with which words."""

import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from conftest import TINY_A, tiny_model
from nvembed.encoder import Encoder
from nvembed.errors import ConfigError, OutputError, WeightsError
from nvembed.text.tokenize import TextSettings
from nvembed.weights.checkpoint import load_model, open_checkpoint
from nvembed.weights.save import save_checkpoint
from nvembed.weights.tensors import expected_tensors, read_tensor

TOKENIZER_FILES = {name: (TINY_A / name).read_bytes() for name in ("tokenizer.json", "tokenizer_config.json")}
SETTINGS = TextSettings("clean", 256, eos_token="</s>", eos_id=2, bos_id=1)


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    """A private copy of tiny-a, to be damaged."""
    return Path(shutil.copytree(TINY_A, tmp_path / "model"))


def edit_config(folder: Path, **changes: object) -> None:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | changes))


@pytest.mark.parametrize("pooling", ["latent", "mean", "eos", "self"])
@pytest.mark.parametrize("architecture", ["mistral", "llama", "qwen2", "qwen3"])
def test_every_kind_of_model_comes_back_as_it_was(tmp_path: Path, architecture: str, pooling: str) -> None:
    model = tiny_model(pooling, architecture=architecture)
    save_checkpoint(
        tmp_path / "m",
        model.config,
        SETTINGS,
        model.state_dict().items(),
        tokenizer_files=TOKENIZER_FILES,
        shard_bytes=200_000,
    )
    checkpoint = open_checkpoint(tmp_path / "m")
    assert checkpoint.text == SETTINGS
    written = checkpoint.config.backbone
    if architecture == "llama":  # the same function, under the name the published code can load
        assert written.architecture == "mistral"
    else:
        assert checkpoint.config == model.config
    again = load_model(checkpoint, device="cpu", dtype=torch.float32, fold=False)
    for name, value in model.state_dict().items():
        torch.testing.assert_close(again.state_dict()[name], value, atol=0, rtol=0)


def test_shards_and_their_index(tmp_path: Path) -> None:
    model = tiny_model()
    save_checkpoint(
        tmp_path / "m",
        model.config,
        SETTINGS,
        model.state_dict().items(),
        tokenizer_files=TOKENIZER_FILES,
        dtype=torch.float16,
        shard_bytes=50_000,
    )
    index = json.loads((tmp_path / "m" / "model.safetensors.index.json").read_text())
    files = sorted(set(index["weight_map"].values()))
    assert files == sorted(path.name for path in (tmp_path / "m").glob("*.safetensors"))
    assert files[0] == f"model-00001-of-{len(files):05}.safetensors"
    total = sum(value.numel() * 2 for value in model.state_dict().values())
    assert index["metadata"]["total_size"] == total
    assert all((tmp_path / "m" / file).stat().st_mode & 0o044 == 0o044 for file in files)
    for file in files:
        stored = load_file(tmp_path / "m" / file)
        assert sum(v.nbytes for v in stored.values()) <= 50_000 or len(stored) == 1
        assert {v.dtype for v in stored.values()} == {torch.float16}


def test_written_config_has_the_released_keys(tmp_path: Path, tiny_encoder: Encoder) -> None:
    tiny_encoder.save_pretrained(tmp_path / "m")
    released = json.loads((TINY_A / "config.json").read_text())
    written = json.loads((tmp_path / "m" / "config.json").read_text())
    assert "auto_map" not in written  # there is no code in the folder
    for key in ("architectures", "hidden_size", "is_mask_instruction", "mask_type", "model_type"):
        assert written[key] == released[key]
    assert written["latent_attention_config"] == released["latent_attention_config"]
    for key, value in written["text_config"].items():
        if key not in ("_name_or_path", "sliding_window"):
            assert released["text_config"][key] == value, key
    stored = load_file(tmp_path / "m" / "model.safetensors")
    for name, value in load_file(TINY_A / "model.safetensors").items():
        assert stored[name].dtype == value.dtype
        torch.testing.assert_close(stored[name], value, atol=0, rtol=0)


def test_released_latent_config_without_sizes(copy: Path) -> None:
    """The released config.json holds no sizes of the pooler: they are the published classes' defaults."""
    from nvembed.model.config import NV_EMBED_V2
    from nvembed.weights.model_config import read_config

    config = json.loads((copy / "config.json").read_text())
    config["latent_attention_config"] = {"model_type": "latent_attention"}
    config["text_config"] |= {
        "hidden_size": 4096,
        "intermediate_size": 14336,
        "num_hidden_layers": 32,
        "num_attention_heads": 32,
        "num_key_value_heads": 8,
    }
    model, text = read_config(config, json.loads((copy / "tokenizer_config.json").read_text()))
    assert model == NV_EMBED_V2
    assert text == TextSettings("released", 32768, "</s>", 2, bos_id=1)


def test_the_mask_is_off_where_the_released_rule_says_so(copy: Path) -> None:
    edit_config(copy, padding_side="left")
    assert not open_checkpoint(copy).text.mask_instruction
    edit_config(copy, padding_side="right", is_mask_instruction=False)
    assert not open_checkpoint(copy).text.mask_instruction


class TestRefused:
    def test_missing_unexpected_and_misshapen_are_said_at_once(self, copy: Path) -> None:
        tensors = load_file(copy / "model.safetensors")
        del tensors["embedding_model.norm.weight"]
        tensors["lm_head.weight"] = torch.zeros(2)
        tensors["latent_attention_model.latents"] = torch.zeros(3, 64)
        save_file(tensors, copy / "model.safetensors")
        with pytest.raises(WeightsError) as error:
            open_checkpoint(copy)
        message = str(error.value)
        assert "1 missing: embedding_model.norm.weight" in message
        assert "1 unexpected: lm_head.weight" in message
        assert "1 misshapen: latent_attention_model.latents is (3, 64), expected (16, 64)" in message

    @pytest.mark.parametrize("kept", [0, 5, 1000, -1])
    def test_truncated_file(self, copy: Path, kept: int) -> None:
        path = copy / "model.safetensors"
        path.write_bytes(path.read_bytes()[:kept])
        with pytest.raises(WeightsError, match=r"\.safetensors .*is truncated or corrupt .*fetch it again"):
            open_checkpoint(copy)

    def test_corrupted_header(self, copy: Path) -> None:
        path = copy / "model.safetensors"
        content = bytearray(path.read_bytes())
        content[20:40] = b"\xff" * 20
        path.write_bytes(content)
        with pytest.raises(WeightsError, match="is truncated or corrupt"):
            open_checkpoint(copy)

    def test_a_missing_shard(self, copy: Path) -> None:
        index = {"weight_map": {"embedding_model.norm.weight": "model-00001-of-00002.safetensors"}}
        (copy / "model.safetensors.index.json").write_text(json.dumps(index))
        with pytest.raises(WeightsError, match=r"00001-of-00002\.safetensors is missing: fetch it again"):
            open_checkpoint(copy)

    def test_an_index_without_a_map(self, copy: Path) -> None:
        (copy / "model.safetensors.index.json").write_text("{}")
        with pytest.raises(WeightsError, match="has no weight_map of tensors to files: copy the file"):
            open_checkpoint(copy)
        (copy / "model.safetensors.index.json").write_text('{"weight_map": {"a": 1, "b": "c"}}')
        with pytest.raises(WeightsError, match="has no weight_map of tensors to files: copy the file"):
            open_checkpoint(copy)

    def test_pickles(self, copy: Path) -> None:
        (copy / "model.safetensors").rename(copy / "pytorch_model.bin")
        with pytest.raises(WeightsError, match=r"only pickled weights \(pytorch_model\.bin\), which can"):
            open_checkpoint(copy)

    def test_no_weights(self, copy: Path) -> None:
        (copy / "model.safetensors").unlink()
        with pytest.raises(WeightsError, match=r"has no weights: expected model\.safetensors, or shards"):
            open_checkpoint(copy)

    def test_unknown_architecture(self, copy: Path) -> None:
        edit_config(copy, text_config={"model_type": "gpt_neox"})
        with pytest.raises(ConfigError, match=r"got model_type 'gpt_neox'; expected mistral, llama"):
            open_checkpoint(copy)

    def test_a_config_of_another_type_with_code_is_refused(self, copy: Path) -> None:
        edit_config(copy, model_type="mistral")
        with pytest.raises(ConfigError, match="code of its own"):
            open_checkpoint(copy)

    @pytest.mark.parametrize(
        ("changes", "message"),
        [
            ({"text_config": None}, "text_config None: expected the backbone's config"),
            (
                {"nvembed": {"pooling": "sum"}},
                "nvembed.pooling 'sum': expected one of latent",
            ),
            ({"nvembed": {"text_mode": "x"}}, "nvembed.text_mode 'x': expected one of released, clean"),
            ({"latent_attention_config": {"hidden_dim": 7}}, "hidden_dim 7: expected the backbone's hidden"),
            ({"latent_attention_config": {"output_normalize": False}}, "output_normalize false"),
            ({"latent_attention_config": []}, "latent_attention_config []: expected an object"),
            (
                {"latent_attention_config": {"num_cross_heads": 0}},
                "num_cross_heads must be a whole number above 0; got 0",
            ),
            ({"nvembed": "clean"}, "nvembed 'clean': expected an object"),
            ({"nvembed": {"max_length": "512"}}, "max_length must be a whole number above 0; got '512'"),
            (
                {"nvembed": {"eos_token_id": [2, 3]}},
                "eos_token_id [2, 3]: expected a token's id, below 32,000",
            ),
            ({"nvembed": {"bos_token_id": 32000}}, "bos_token_id 32000: expected a token's id, below 32,000"),
            ({"nvembed": {"bos_token_id": -1}}, "bos_token_id -1: expected a token's id, below 32,000"),
        ],
    )
    def test_settings_we_do_not_have(self, copy: Path, changes: dict[str, object], message: str) -> None:
        edit_config(copy, **changes)
        with pytest.raises(ConfigError, match=re.escape(message)):
            open_checkpoint(copy)

    @pytest.mark.parametrize(
        ("content", "message"),
        [("{", "is not JSON"), ("[]", "holds a list: expected a JSON object")],
    )
    def test_config_that_is_no_object(self, copy: Path, content: str, message: str) -> None:
        (copy / "config.json").write_text(content)
        with pytest.raises(ConfigError, match=message):
            open_checkpoint(copy)

    @pytest.mark.parametrize("name", ["config.json", "tokenizer.json", "tokenizer_config.json"])
    def test_missing_files(self, copy: Path, name: str) -> None:
        (copy / name).unlink()
        with pytest.raises(ConfigError, match=rf"has no {re.escape(name)}: it is not a complete model"):
            open_checkpoint(copy)

    def test_a_folder_in_a_files_place(self, copy: Path) -> None:
        (copy / "config.json").unlink()
        (copy / "config.json").mkdir()
        with pytest.raises(ConfigError, match=r"config\.json is not a regular file"):
            open_checkpoint(copy)

    @pytest.mark.parametrize("name", ["./nowhere", "/nowhere/at/all", "one", "a/b/c"])
    def test_no_such_folder(self, name: str) -> None:
        with pytest.raises(WeightsError, match="is not a folder; expected"):
            Encoder.from_pretrained(name)

    def test_no_eos_token(self, copy: Path) -> None:
        (copy / "tokenizer_config.json").write_text("{}")
        with pytest.raises(ConfigError, match="eos_token None: expected the token's text"):
            open_checkpoint(copy)


# Root reads everything: the test below becomes another user first.
AS_NOBODY = """
import os, sys
from nvembed.weights.checkpoint import open_checkpoint
os.setgid(65534); os.setuid(65534)
try:
    open_checkpoint(sys.argv[1])
except Exception as error:
    print(type(error).__name__, error)
"""


@pytest.mark.parametrize("name", ["config.json", "model.safetensors"])
def test_no_read_permission(copy: Path, name: str) -> None:
    (copy / name).chmod(0)
    if os.geteuid() == 0:
        with tempfile.TemporaryDirectory() as place:  # each start of pytest hides its own folder from others
            Path(place).chmod(0o755)
            folder = shutil.copytree(copy, Path(place) / "model")
            command = [sys.executable, "-c", AS_NOBODY, str(folder)]
            done = subprocess.run(command, capture_output=True, text=True, check=False)
        said = done.stdout + done.stderr
    else:
        with pytest.raises((ConfigError, WeightsError)) as error:
            open_checkpoint(copy)
        said = str(error.value)
    assert "cannot be read: permission denied; check its owner and mode" in said


class TestSaving:
    def save(self, folder: Path) -> None:
        model = tiny_model()
        save_checkpoint(
            folder, model.config, SETTINGS, model.state_dict().items(), tokenizer_files=TOKENIZER_FILES
        )

    def test_an_existing_folder_is_never_replaced(self, tmp_path: Path) -> None:
        self.save(tmp_path / "m")
        before = (tmp_path / "m" / "model.safetensors").read_bytes()
        with pytest.raises(OutputError, match=r"m exists already: remove it, or write to another path"):
            self.save(tmp_path / "m")
        assert (tmp_path / "m" / "model.safetensors").read_bytes() == before
        assert [path.name for path in tmp_path.iterdir()] == ["m"]

    def test_an_exception_leaves_nothing(self, tmp_path: Path) -> None:
        def tensors():
            yield "embedding_model.norm.weight", torch.zeros(32)
            raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            save_checkpoint(
                tmp_path / "m", tiny_model().config, SETTINGS, tensors(), tokenizer_files=TOKENIZER_FILES
            )
        assert list(tmp_path.iterdir()) == []

    def test_a_full_disk_leaves_nothing(self, tmp_path: Path) -> None:
        """The kernel refuses to let any file of the process grow beyond 1 MB."""
        code = (
            "import resource, signal, sys; from pathlib import Path\n"
            "from test_weights import TestSaving; from nvembed.errors import OutputError\n"
            "signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
            "resource.setrlimit(resource.RLIMIT_FSIZE, (1_000_000, 1_000_000))\n"
            "try: TestSaving().save(Path(sys.argv[1]))\n"
            "except OutputError as error: print(error)\n"
        )
        tests = Path(__file__).parent
        paths = os.pathsep.join([str(tests), str(tests.parent), str(tests.parent / "helpers")])
        done = subprocess.run(
            [sys.executable, "-c", code, str(tmp_path / "m")],
            capture_output=True,
            text=True,
            check=False,
            env={**os.environ, "PYTHONPATH": paths + os.pathsep + os.environ.get("PYTHONPATH", "")},
        )
        assert re.search(r"could not write .*; nothing was left behind", done.stdout), done.stderr
        assert list(tmp_path.iterdir()) == []


def test_reading_a_tensor_leaves_no_mapping_behind(tmp_path: Path) -> None:
    """The file may be replaced while the model lives: loaded weights do not point into it."""
    shutil.copytree(TINY_A, tmp_path / "m")
    encoder = Encoder.from_pretrained(tmp_path / "m", device="cpu", dtype="float16")
    before = encoder.encode(["judo"])
    path = tmp_path / "m" / "model.safetensors"
    with path.open("r+b") as file:
        file.truncate(10)
    np.testing.assert_array_equal(encoder.encode(["judo"]), before)


def test_expected_tensors_of_tiny_a() -> None:
    checkpoint = open_checkpoint(TINY_A)
    assert expected_tensors(checkpoint.config).keys() == checkpoint.tensors.keys()
    name = "latent_attention_model.latents"
    assert read_tensor(checkpoint.tensors[name], name).shape == (16, 64)
