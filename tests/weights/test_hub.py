"""Fetching from the hub, against a hub of our own on loopback: what is fetched, kept, resumed and said."""

import hashlib
import json
import re
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from urllib.parse import unquote, urlsplit

import huggingface_hub
import pytest
from huggingface_hub import constants

from nvembed.errors import DownloadError, WeightsError
from nvembed.weights.hub import model_folder, unknown_files
from nvembed.weights.tensors import INDEX

COMMIT = "0123456789abcdef0123456789abcdef01234567"
SHARDS = ["model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"]
FILES = {
    "config.json": b'{"model_type": "nvembed"}',
    "tokenizer.json": b'{"model": {}}',
    "tokenizer_config.json": b'{"eos_token": "</s>"}',
    "README.md": b"a model card",
    INDEX: json.dumps({"weight_map": {"a": SHARDS[0], "b": SHARDS[1]}}).encode(),
    SHARDS[0]: bytes(range(256)) * 400,
    SHARDS[1]: bytes(range(255, -1, -1)) * 500,
    "modeling_nvembed.py": b"raise SystemExit('remote code was run')",
    "pytorch_model.bin": b"a pickle",
    "training_args.pt": b"another pickle",
}
DATA = {name for name in FILES if not name.endswith((".py", ".bin", ".pt"))}


@dataclass
class Hub:
    """What the server does, and what it was asked for."""

    gated: bool = False
    down: set[str] = field(default_factory=set)  # files that answer 503
    breaks: dict[str, int] = field(default_factory=dict)  # file -> bytes after which the next GET breaks off
    always_breaks: bool = False  # every GET of a shard breaks off before its first byte
    requests: list[tuple[str, str, str | None]] = field(default_factory=list)  # method, path, Range

    def fetched(self) -> list[str]:
        """Names of the files whose content was asked for."""
        return [
            path.rsplit("/", 1)[1]
            for method, path, _ in self.requests
            if method == "GET" and "resolve" in path
        ]


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    hub: Hub  # set on a subclass for each test

    def log_message(self, format: str, *args: object) -> None:
        pass

    def answer(self, status: int, body: bytes = b"", **headers: str) -> None:
        self.send_response(status)
        for name, value in {"Content-Length": str(len(body)), **headers}.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(body)

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        path = unquote(urlsplit(self.path).path)
        self.hub.requests.append((self.command, path, self.headers.get("Range")))
        api = re.fullmatch(r"/api/models/nvidia/tiny(?:/(revision|tree)/(.+))?", path)
        resolve = re.fullmatch(rf"/nvidia/tiny/resolve/{COMMIT}/(.+)", path)
        if api is None and resolve is None:
            self.answer(404, X_Error_Code="RepoNotFound")
        elif self.hub.gated and resolve is not None:
            self.answer(403, X_Error_Code="GatedRepo")
        elif resolve is not None:
            self.send_file(resolve[1])
        elif api is not None and api[2] not in ("main", "v1", COMMIT, None):
            self.answer(404, X_Error_Code="RevisionNotFound")
        elif api is not None and api[1] == "tree":
            files = [{"type": "file", "path": n, "size": len(c), "oid": sha(c)} for n, c in FILES.items()]
            self.answer(200, json.dumps(files).encode())
        else:
            siblings = [{"rfilename": name} for name in FILES]
            info = {"id": "nvidia/tiny", "sha": COMMIT, "siblings": siblings, "tags": [], "downloads": 0}
            self.answer(200, json.dumps(info).encode())

    def send_file(self, name: str) -> None:
        if name in self.hub.down:
            self.answer(503)
            return
        content = FILES[name]
        headers = {"ETag": f'"{sha(content)}"', "X_Repo_Commit": COMMIT, "Accept_Ranges": "bytes"}
        wanted = re.fullmatch(r"bytes=(\d+)-", self.headers.get("Range", ""))
        start = int(wanted[1]) if wanted else 0
        if wanted:
            headers["Content_Range"] = f"bytes {start}-{len(content) - 1}/{len(content)}"
        broken = name in self.hub.breaks or (self.hub.always_breaks and name in SHARDS)
        if self.command == "GET" and broken:
            sent = self.hub.breaks.pop(name, 0)
            self.send_response(206 if wanted else 200)
            self.send_header("Content-Length", str(len(content) - start))
            self.end_headers()
            self.wfile.write(content[start : start + sent])
            self.close_connection = True
        else:
            self.answer(206 if wanted else 200, content[start:], **headers)


def sha(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "cache"
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(folder))
    return folder


@pytest.fixture
def hub(cache: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    hub = Hub()
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("TestHandler", (Handler,), {"hub": hub}))
    thread = Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
    thread.start()
    use_endpoint(monkeypatch, f"http://127.0.0.1:{server.server_port}")
    yield hub
    huggingface_hub.close_session()
    server.shutdown()
    server.server_close()
    thread.join()


def use_endpoint(monkeypatch: pytest.MonkeyPatch, endpoint: str) -> None:
    """Point the client at ``endpoint``, without this machine's proxy, token or waiting."""
    huggingface_hub.close_session()
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.delenv("HF_TOKEN", raising=False)
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", "/nonexistent/token")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "ENDPOINT", endpoint)
    template = endpoint + "/{repo_id}/resolve/{revision}/{filename}"
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
    monkeypatch.setattr(constants, "DOWNLOAD_CHUNK_SIZE", 1024)
    monkeypatch.setattr(time, "sleep", lambda _: None)  # the client waits before it tries again


def content(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_downloads_data_only_then_works_offline(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = model_folder("nvidia/tiny")
    assert content(folder) == {name: FILES[name] for name in DATA}
    assert set(hub.fetched()) == DATA, "code and pickles are not even asked for"

    asked = len(hub.requests)
    use_endpoint(monkeypatch, "http://127.0.0.1:9")
    assert model_folder("nvidia/tiny") == folder
    assert model_folder("nvidia/tiny", revision=COMMIT) == folder
    assert len(hub.requests) == asked


def test_what_another_library_left_is_completed(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(FILES, "config.json", b'{"model_type": "bert"}')
    monkeypatch.setitem(FILES, "modules.json", b"[]")
    folder = model_folder("nvidia/tiny")
    assert (folder / "modules.json").is_file()
    (folder / "modules.json").unlink()
    hub.requests.clear()
    assert (model_folder("nvidia/tiny") / "modules.json").is_file()
    hub.requests.clear()
    model_folder("nvidia/tiny")
    assert not hub.requests, "the model has no config_sentence_transformers.json, which is known now"
    (folder / "modules.json").unlink()
    use_endpoint(monkeypatch, "http://127.0.0.1:9")
    assert model_folder("nvidia/tiny") == folder
    assert unknown_files(folder) == ["modules.json"]


def test_a_tag_is_resolved_to_its_commit(hub: Hub) -> None:
    assert model_folder("nvidia/tiny", revision="v1").name == COMMIT


def test_a_broken_connection_resumes_where_it_broke(hub: Hub) -> None:
    hub.breaks = {SHARDS[1]: 50_000}
    assert content(model_folder("nvidia/tiny"))[SHARDS[1]] == FILES[SHARDS[1]]
    ranges = [range_ for method, path, range_ in hub.requests if method == "GET" and path.endswith(SHARDS[1])]
    assert len(ranges) == 2
    assert ranges[0] is None
    start = int(re.fullmatch(r"bytes=(\d+)-", ranges[1] or "")[1])  # type: ignore[index]
    assert 0 < start <= 50_000


def test_a_second_try_fetches_only_what_is_missing(hub: Hub) -> None:
    hub.down = {SHARDS[1]}
    with pytest.raises(DownloadError, match=r"could not be downloaded .*: try again to resume"):
        model_folder("nvidia/tiny")
    hub.down = set()
    hub.requests.clear()
    assert content(model_folder("nvidia/tiny"))[SHARDS[1]] == FILES[SHARDS[1]]
    assert SHARDS[0] not in hub.fetched()


def test_a_connection_that_stays_broken_is_said(hub: Hub) -> None:
    hub.always_breaks = True
    with pytest.raises(DownloadError, match="could not be downloaded"):
        model_folder("nvidia/tiny")


def test_a_gated_model_says_how_to_be_let_in(hub: Hub) -> None:
    hub.gated = True
    with pytest.raises(
        DownloadError,
        match=r"nvidia/tiny is gated: accept its licence at https://huggingface.co/nvidia/tiny, then log in",
    ):
        model_folder("nvidia/tiny")


def test_an_unknown_model(hub: Hub) -> None:
    with pytest.raises(DownloadError, match=r"nvidia/other is neither .*check the name"):
        model_folder("nvidia/other")


def test_an_unknown_revision(hub: Hub) -> None:
    with pytest.raises(
        DownloadError, match="nvidia/tiny has no revision 'v9': check the branch, tag or commit"
    ):
        model_folder("nvidia/tiny", revision="v9")


def test_no_network_and_nothing_here(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    use_endpoint(monkeypatch, "http://127.0.0.1:9")
    with pytest.raises(DownloadError, match=r"could not be downloaded .* pass the path of a folder"):
        model_folder("nvidia/tiny")
    huggingface_hub.close_session()


def test_offline_mode_and_nothing_here(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(DownloadError, match="could not be downloaded"):
        model_folder("nvidia/tiny")


def test_a_cache_without_the_model_card_will_do(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    """Another library's cache holds only what that library reads."""
    folder = model_folder("nvidia/tiny")
    (folder / "README.md").unlink()
    use_endpoint(monkeypatch, "http://127.0.0.1:9")
    assert model_folder("nvidia/tiny") == folder


def test_a_local_folder_is_taken_as_it_is(tmp_path: Path) -> None:
    assert model_folder(tmp_path) == tmp_path


@pytest.mark.parametrize("name", ["missing", "./missing/model", "a/b/c", "/missing", "owner/"])
def test_neither_folder_nor_id(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(WeightsError, match="is not a folder; expected"):
        model_folder(name)


def test_an_id_the_hub_cannot_have(cache: Path) -> None:
    with pytest.raises(DownloadError, match="HFValidationError"):
        model_folder("nvidia/a b")
