"""Frameworks' own clients and our integrations against a server on a socket; the README's examples."""

import asyncio
import base64
import copy
import gc
import importlib
import pickle
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import llama_index.core
import numpy as np
import pytest
from serving import served

from conftest import TINY_A, tiny_model
from nvembed.cli.serve import loaded
from nvembed.encoder import Encoder
from nvembed.errors import DownloadError, InputError, MissingExtraError
from nvembed.integrations.remote import RemoteEncoder
from nvembed.serve.run import Server
from nvembed.serve.settings import ServerSettings

# LlamaIndex brings OpenAI's vocabulary along: nothing is downloaded
TIKTOKEN = Path(llama_index.core.__file__).parent / "_static" / "tiktoken_cache"
QUERY = "are judo throws allowed in wrestling?"
TEXTS = [QUERY, "Judo throws are allowed in freestyle wrestling.", "日本語 🦊", "2 + 2"]
INSTRUCTION = "Find the rule of the sport that is asked about"
KEY = "secret"
MAX_LENGTH = 256


# the frameworks' clients leave their sockets to the garbage collector
pytestmark = pytest.mark.filterwarnings(
    "ignore:Exception ignored in. <(ssl|socket|function _Selector):pytest.PytestUnraisableExceptionWarning"
)


@pytest.fixture(autouse=True)
def _alone(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setenv("TIKTOKEN_CACHE_DIR", str(TIKTOKEN))
    monkeypatch.setenv("HAYSTACK_TELEMETRY_ENABLED", "False")
    monkeypatch.setenv("NVEMBED_API_KEY", KEY)
    yield
    gc.collect()


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    chosen = ServerSettings(model=str(TINY_A), device="cpu")
    names = {"model": "tiny-a", "served_name": ("nvembed-small",)}
    with served(lambda: loaded(chosen), **names, api_key=(KEY,), max_length=MAX_LENGTH) as server:
        yield server


@pytest.fixture(scope="module")
def openai_ids_server() -> Iterator[Server]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TIKTOKEN_CACHE_DIR", str(TIKTOKEN))
        chosen = ServerSettings(model=str(TINY_A), device="cpu", vocabulary="cl100k_base")
        with served(lambda: loaded(chosen), model="tiny-a", served_name=("nvembed-small",)) as server:
            yield server


@pytest.fixture
def remote(server: Server) -> Iterator[RemoteEncoder]:
    with RemoteEncoder(server.url, api_key=KEY) as remote:
        yield remote


def same(got: Any, expected: np.ndarray) -> None:
    np.testing.assert_allclose(np.asarray(got, dtype=np.float32), expected, atol=1e-6)


class TestUnchanged:
    """Clients that know nothing of us, with a base URL and a key."""

    def test_langchain_openai_sends_openais_token_ids(
        self, openai_ids_server: Server, tiny_encoder: Encoder
    ) -> None:
        from langchain_openai import OpenAIEmbeddings

        client = OpenAIEmbeddings(
            model="nvembed-small", base_url=f"{openai_ids_server.url}/v1", api_key="none"
        )  # type: ignore[arg-type]
        same(client.embed_documents(TEXTS), tiny_encoder.encode(TEXTS))
        same(client.embed_query(QUERY), tiny_encoder.encode([QUERY])[0])
        same(asyncio.run(client.aembed_documents(TEXTS)), tiny_encoder.encode(TEXTS))

    @pytest.mark.parametrize(
        "text", [QUERY, "are", "judo throws", "¿Dónde está?", "a", "2 + 2", "word " * 99, "0"]
    )
    def test_ids_of_an_unknown_vocabulary_are_refused(self, server: Server, text: str) -> None:
        """Many short texts have ids that both tokenizers know, of other texts."""
        from langchain_openai import OpenAIEmbeddings
        from openai import BadRequestError

        client = OpenAIEmbeddings(model="nvembed-small", base_url=f"{server.url}/v1", api_key=KEY)  # type: ignore[arg-type]
        for call in (client.embed_query, lambda text: client.embed_documents([text])):
            with pytest.raises(BadRequestError) as refused:
                call(text)
            for way in ("check_embedding_ctx_length=False", "--vocabulary cl100k_base"):
                assert way in str(refused.value)

    def test_langchain_openai_with_texts(self, server: Server, tiny_encoder: Encoder) -> None:
        from langchain_openai import OpenAIEmbeddings

        client = OpenAIEmbeddings(
            model="nvembed-small",
            base_url=f"{server.url}/v1",
            api_key=KEY,  # type: ignore[arg-type]
            check_embedding_ctx_length=False,
        )
        same(client.embed_documents(TEXTS), tiny_encoder.encode(TEXTS))

    def test_llama_index_openai_like(self, server: Server, tiny_encoder: Encoder) -> None:
        from llama_index.embeddings.openai_like import OpenAILikeEmbedding

        client = OpenAILikeEmbedding(model_name="nvembed-small", api_base=f"{server.url}/v1", api_key=KEY)
        same(client.get_text_embedding_batch(TEXTS), tiny_encoder.encode(TEXTS))
        same(client.get_query_embedding(QUERY), tiny_encoder.encode([QUERY])[0])

    def test_haystack_openai(self, server: Server, tiny_encoder: Encoder) -> None:
        from haystack.components.embedders import OpenAITextEmbedder
        from haystack.utils import Secret

        client = OpenAITextEmbedder(
            Secret.from_env_var("NVEMBED_API_KEY"),
            model="nvembed-small-query",
            api_base_url=f"{server.url}/v1",
        )
        same(client.run(QUERY)["embedding"], tiny_encoder.encode_query([QUERY], task="NQ")[0])


class TestRemoteEncoder:
    def test_it_is_the_librarys_encoder(
        self, remote: RemoteEncoder, tiny_encoder: Encoder, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr("nvembed.integrations.remote.REQUEST_TEXTS", 3)
        for chosen in ({}, {"instruction": INSTRUCTION}, {"task": "STS12"}):
            same(remote.encode_query(iter(TEXTS), **chosen), tiny_encoder.encode_query(TEXTS, **chosen))
        same(remote.encode_document(TEXTS), tiny_encoder.encode_document(TEXTS))
        same(remote.encode_document(TEXTS, task="STS12"), tiny_encoder.encode_document(TEXTS, task="STS12"))

    def test_dimensions_and_cuts(self, server: Server, tiny_encoder: Encoder) -> None:
        long = ["word " * 300, "short"]
        with RemoteEncoder(f"{server.url}/v1/", api_key=KEY, truncate_dim=8) as remote:
            with pytest.warns(UserWarning, match="1 of 2 texts"):
                got = remote.encode_document(long)
            with pytest.warns(UserWarning, match="1 of 2 texts"):
                same(got, tiny_encoder.encode_document(long, truncate_dim=8, max_length=MAX_LENGTH))
            remote.truncate = False
            with pytest.raises(InputError, match=r"400: .*tokens"):
                remote.encode_document(long)

    def test_refusals(self, server: Server, remote: RemoteEncoder, tiny_encoder: Encoder) -> None:
        assert remote.encode_document([]).shape == (0, tiny_encoder.dim)
        with pytest.raises(InputError, match="expected a list"):
            remote.encode_document("text")
        with pytest.raises(InputError, match="both"):
            remote.encode_query(["x"], instruction="y", task="NQ")
        with pytest.raises(InputError, match="other"):
            RemoteEncoder(server.url, api_key=KEY, model="other").encode_query(["x"])
        with pytest.raises(InputError, match="401: unknown API key"):
            RemoteEncoder(server.url, api_key="wrong").encode_query(["x"])
        with pytest.raises(InputError, match="address"):
            RemoteEncoder("127.0.0.1:8000")
        with pytest.raises(DownloadError, match=r"http://127\.0\.0\.1:9 cannot be reached"):
            RemoteEncoder("http://127.0.0.1:9").encode_query(["x"])

    def test_what_cannot_be_sent(self, server: Server, remote: RemoteEncoder) -> None:
        with pytest.raises(InputError, match=r"text 1 is a NoneType \(None\): expected str"):
            remote.encode_document(["x", None])  # type: ignore[list-item]
        for texts, instruction in ((["\ud800"], "y"), (["x"], "\ud800")):
            with pytest.raises(InputError, match=r"a lone surrogate \(U\+D800\), which is not valid Unicode"):
                remote.encode_query(texts, instruction=instruction)
        for key in ("SECRET\n", "ключ"):
            with pytest.raises(InputError, match="api_key is not printable ASCII") as refused:
                RemoteEncoder(server.url, api_key=key)
            assert key.strip() not in str(refused.value)

    def test_what_is_above_the_servers_limits_is_sent_in_parts(self, tiny_encoder: Encoder) -> None:
        chosen = ServerSettings(model=str(TINY_A), device="cpu")
        limits = {"max_items": 3, "max_text_bytes": 99}
        with (
            served(lambda: loaded(chosen), model="tiny-a", **limits) as server,
            RemoteEncoder(server.url) as remote,
        ):
            same(remote.encode_document([*TEXTS, *TEXTS]), tiny_encoder.encode_document([*TEXTS, *TEXTS]))
            with pytest.raises(InputError, match=r"413: input\[0\] is 100 bytes; max_text_bytes is 99"):
                remote.encode_document(["x" * 100])

    def test_it_waits_for_a_busy_server(self, monkeypatch: pytest.MonkeyPatch) -> None:
        waited: list[float] = []
        monkeypatch.setattr("nvembed.integrations.remote.time.sleep", waited.append)
        row = {"embedding": base64.b64encode(np.array([0.6, 0.8], "<f4").tobytes()).decode()}
        answers = [
            httpx.Response(429, headers={"retry-after": "0"}),
            httpx.Response(503, headers={"retry-after": "Wed, 21 Oct 2026 07:28:00 GMT"}),  # a proxy's
            httpx.Response(200, json={"data": [row], "details": {"truncated": []}}),
            httpx.Response(503, headers={"retry-after": "900"}, json={"error": {"message": "draining"}}),
            httpx.Response(200, text="<html>"),
        ]
        remote = RemoteEncoder("http://busy", timeout_s=600)
        remote._http = httpx.Client(transport=httpx.MockTransport(lambda request: answers.pop(0)))
        same(remote.encode_document(["x"]), np.array([[0.6, 0.8]], np.float32))
        assert waited == [0, 1]
        with pytest.raises(DownloadError, match="http://busy answered 503: draining"):
            remote.encode_document(["x"])
        with pytest.raises(DownloadError, match="is not an nvembed server: '<html>'"):
            remote.encode_document(["x"])


class TestIntegrations:
    """Each gives the library's vectors, from a server and from an encoder in this process."""

    def test_langchain(self, remote: RemoteEncoder, tiny_encoder: Encoder) -> None:
        from nvembed.integrations.langchain import NVEmbedEmbeddings

        for encoder in (remote, tiny_encoder):
            embeddings = NVEmbedEmbeddings(encoder)
            same(embeddings.embed_query(QUERY), tiny_encoder.encode_query([QUERY], task="NQ")[0])
            same(embeddings.embed_documents(TEXTS), tiny_encoder.encode_document(TEXTS))
            same(asyncio.run(embeddings.aembed_documents(TEXTS)), tiny_encoder.encode_document(TEXTS))
            assert embeddings.embed_documents([]) == []
        chosen = NVEmbedEmbeddings(remote, instruction=INSTRUCTION)
        expected = tiny_encoder.encode_query([QUERY], instruction=INSTRUCTION)[0]
        same(asyncio.run(chosen.aembed_query(QUERY)), expected)
        with pytest.raises(InputError, match="both"):
            NVEmbedEmbeddings(remote, instruction="x", task="NQ")

    def test_llama_index(self, remote: RemoteEncoder, tiny_encoder: Encoder) -> None:
        from nvembed.integrations.llama_index import NVEmbedEmbedding

        for encoder in (remote, tiny_encoder):
            embedding = NVEmbedEmbedding(encoder)
            same(embedding.get_query_embedding(QUERY), tiny_encoder.encode_query([QUERY], task="NQ")[0])
            same(embedding.get_text_embedding_batch(TEXTS), tiny_encoder.encode_document(TEXTS))
        chosen = NVEmbedEmbedding(remote, task="STS12")
        same(chosen.get_text_embedding(QUERY), tiny_encoder.encode_document([QUERY], task="STS12")[0])
        expected = tiny_encoder.encode_query([QUERY], task="STS12")[0]
        same(asyncio.run(chosen.aget_query_embedding(QUERY)), expected)
        same(asyncio.run(chosen.aget_text_embedding(QUERY)), expected)

    def test_caches_name_the_model(
        self, remote: RemoteEncoder, tiny_encoder: Encoder, server: Server
    ) -> None:
        """A cache that two models share gives each its own vectors."""
        from llama_index.core.ingestion import IngestionCache, IngestionPipeline
        from llama_index.core.schema import TextNode

        from nvembed.integrations.langchain import NVEmbedEmbeddings
        from nvembed.integrations.llama_index import NVEmbedEmbedding

        other = Encoder([tiny_model()], tiny_encoder.tokenizer)
        another = Encoder([tiny_model(seed=1)], tiny_encoder.tokenizer)
        short = copy.copy(remote)
        short.truncate_dim = 8
        cache = IngestionCache()
        encoders = [(e, {}) for e in (tiny_encoder, remote, other, another, short)]
        encoders.append((tiny_encoder, {"task": "STS12"}))
        for _ in range(2):
            for encoder, options in encoders:
                expected = encoder.encode_document(TEXTS, **options)
                pipeline = IngestionPipeline(
                    transformations=[NVEmbedEmbedding(encoder, **options)], cache=cache, disable_cache=False
                )
                nodes = pipeline.run(nodes=[TextNode(text=text) for text in TEXTS])
                same([node.embedding for node in nodes], expected)
        names = [NVEmbedEmbeddings(encoder, **options).model for encoder, options in encoders]
        assert len(set(names)) == len(encoders)
        assert names[0] == NVEmbedEmbeddings(tiny_encoder).model
        embedding = NVEmbedEmbedding(short)
        before = embedding.to_dict()
        short.truncate_dim = 16
        assert embedding.to_dict() != before, "a setting that changed since is in the key too"

    def test_copies_and_other_processes(self, remote: RemoteEncoder, tiny_encoder: Encoder) -> None:
        from haystack.utils import Secret

        from nvembed.integrations.haystack import NVEmbedTextEmbedder
        from nvembed.integrations.langchain import NVEmbedEmbeddings
        from nvembed.integrations.llama_index import NVEmbedEmbedding

        key = Secret.from_env_var("NVEMBED_API_KEY")
        expected = tiny_encoder.encode_query([QUERY], task="NQ")[0]
        component = NVEmbedTextEmbedder(remote.url, api_key=key)
        component.run(QUERY)  # it has a connection now
        for copied in (copy.deepcopy, copy.copy, lambda value: pickle.loads(pickle.dumps(value))):
            same(copied(remote).encode_query([QUERY], task="NQ")[0], expected)
            same(copied(NVEmbedEmbeddings(remote)).embed_query(QUERY), expected)
            same(copied(NVEmbedEmbedding(remote)).get_query_embedding(QUERY), expected)
            same(copied(component).run(QUERY)["embedding"], expected)

    def test_llama_index_workers(self, remote: RemoteEncoder, tiny_encoder: Encoder) -> None:
        from llama_index.core.ingestion import IngestionPipeline
        from llama_index.core.schema import TextNode

        from nvembed.integrations.llama_index import NVEmbedEmbedding

        pipeline = IngestionPipeline(transformations=[NVEmbedEmbedding(remote)])
        nodes = pipeline.run(nodes=[TextNode(text=text) for text in TEXTS], num_workers=2)
        same([node.embedding for node in nodes], tiny_encoder.encode_document(TEXTS))

    def test_a_server_that_changes_its_model(
        self, remote: RemoteEncoder, tiny_encoder: Encoder, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        assert remote.fingerprint == tiny_encoder.fingerprint
        assert remote.max_length == MAX_LENGTH
        monkeypatch.setitem(remote._facts, "model_sha", "0" * 32)
        with pytest.raises(InputError, match="another model"):
            remote.encode_document(["x"])

    def test_haystack(self, server: Server, tiny_encoder: Encoder) -> None:
        from haystack import Document, Pipeline
        from haystack.utils import Secret

        from nvembed.integrations.haystack import NVEmbedDocumentEmbedder, NVEmbedTextEmbedder

        pipeline = Pipeline()
        key = Secret.from_env_var("NVEMBED_API_KEY")
        text = NVEmbedTextEmbedder(server.url, api_key=key, instruction=INSTRUCTION)
        pipeline.add_component("query", text)
        documents = NVEmbedDocumentEmbedder(server.url, api_key=key, meta_fields_to_embed=["title", "none"])
        pipeline.add_component("documents", documents)
        asked = [Document(content="Throws are allowed.", meta={"title": "Judo"}), Document(content="2 + 2")]
        read_again = Pipeline.loads(pipeline.dumps(), allowed_modules=["nvembed.integrations.haystack"])
        for one in (pipeline, read_again):
            got = one.run({"query": {"text": QUERY}, "documents": {"documents": asked}})
            expected = tiny_encoder.encode_query([QUERY], instruction=INSTRUCTION)[0]
            same(got["query"]["embedding"], expected)
            vectors = tiny_encoder.encode_document(["Judo\nThrows are allowed.", "2 + 2"])
            same([document.embedding for document in got["documents"]["documents"]], vectors)
        assert asked[0].embedding is None
        assert documents.run([]) == {"documents": []}
        own = NVEmbedTextEmbedder(encoder=tiny_encoder)
        same(own.run(QUERY)["embedding"], tiny_encoder.encode_query([QUERY], task="NQ")[0])
        with pytest.raises(InputError, match="cannot be written to YAML"):
            own.to_dict()

    @pytest.mark.parametrize(
        ("module", "missing"),
        [
            ("langchain", "langchain_core.embeddings"),
            ("llama_index", "llama_index.core.base.embeddings.base"),
            ("haystack", "haystack"),
        ],
    )
    def test_what_is_missing_is_named(
        self, module: str, missing: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        name = f"nvembed.integrations.{module}"
        monkeypatch.setitem(sys.modules, missing, None)
        monkeypatch.delitem(sys.modules, name, raising=False)
        extra = module.replace("_", "-")
        with pytest.raises(MissingExtraError, match=rf"pip install 'nvembed\[{extra}\]'"):
            importlib.import_module(name)
