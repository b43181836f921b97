"""An index for agents and frameworks: the MCP server with the SDK's client, and the three retrievers."""

import asyncio
import os
import sys
from pathlib import Path
from typing import Any

import pytest

from conftest import TINY_A
from nvembed import Index

PROGRAM = "import sys; from nvembed.cli.main import main; main(sys.argv[1:])"


@pytest.fixture(scope="module")
def notes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tools") / "notes"
    folder.mkdir()
    (folder / "judo.txt").write_text("Judo throws are allowed in freestyle wrestling.", encoding="utf-8")
    (folder / "rows.csv").write_text("id,text,year\na,An atom is small.,2020\n", encoding="utf-8")
    Index.build(folder, str(TINY_A)).close()
    return folder


def test_an_agent_searches_and_fetches(notes: Path) -> None:
    from mcp import Client, StdioServerParameters

    async def story() -> dict[str, Any]:
        command = StdioServerParameters(
            command=sys.executable, args=["-c", PROGRAM, "mcp", str(notes)], env=dict(os.environ)
        )
        async with Client(command) as client:
            tools = await client.list_tools()
            hits = await client.call_tool("search", {"query": "judo throws", "top": 1})
            atoms = await client.call_tool("search", {"query": "small", "where": ["year = 2020"]})
            bad = await client.call_tool("search", {"query": "small", "where": ["nothing = 1"]})
            document = await client.call_tool("fetch", {"id": "judo.txt#0"})
        return {"tools": tools, "hits": hits, "atoms": atoms, "bad": bad, "document": document}

    answers = asyncio.run(story())
    assert [tool.name for tool in answers["tools"].tools] == ["search", "fetch"]
    (hit,) = answers["hits"].structured_content["results"]
    assert (hit["id"], hit["document"]) == ("judo.txt#0", "judo.txt")
    assert [hit["document"] for hit in answers["atoms"].structured_content["results"]] == ["rows.csv:a"]
    assert answers["bad"].is_error
    assert "nothing" in answers["bad"].content[0].text
    assert answers["document"].structured_content["text"].startswith("Judo throws")


def test_an_agent_searches_several_indexes(notes: Path, tmp_path: Path) -> None:
    from mcp import Client, StdioServerParameters

    (tmp_path / "pets").mkdir()
    (tmp_path / "pets" / "cat.txt").write_text("A cat throws a ball.", encoding="utf-8")
    Index.build(tmp_path / "pets", str(TINY_A)).close()

    async def story() -> dict[str, Any]:
        arguments = ["-c", PROGRAM, "mcp", f"sport={notes}", str(tmp_path / "pets")]
        command = StdioServerParameters(command=sys.executable, args=arguments, env=dict(os.environ))
        async with Client(command) as client:
            hits = await client.call_tool("search", {"query": "throws", "mode": "text"})
            pets = await client.call_tool("search", {"query": "throws", "indexes": ["pets"]})
            bad = await client.call_tool("search", {"query": "throws", "indexes": ["nothing"]})
            document = await client.call_tool("fetch", {"id": "pets:cat.txt#0"})
            lost = await client.call_tool("fetch", {"id": "cat.txt#0"})
        return {"hits": hits, "pets": pets, "bad": bad, "document": document, "lost": lost}

    answers = asyncio.run(story())
    ids = {hit["id"] for hit in answers["hits"].structured_content["results"]}
    assert ids == {"sport:judo.txt#0", "pets:cat.txt#0"}
    assert [hit["index"] for hit in answers["pets"].structured_content["results"]] == ["pets"]
    assert "'sport'" in answers["bad"].content[0].text
    assert answers["document"].structured_content["text"] == "A cat throws a ball."
    assert answers["lost"].is_error


def test_langchain(notes: Path) -> None:
    from nvembed.integrations.langchain import NVEmbedRetriever

    with Index.open(notes) as index:
        retriever = NVEmbedRetriever(index=index, top=1)
        (document,) = retriever.invoke("judo throws")
        assert (document.id, document.metadata["document"]) == ("judo.txt#0", "judo.txt")
        assert asyncio.run(retriever.ainvoke("judo throws"))[0].id == document.id


def test_a_chain_of_langchain(notes: Path) -> None:
    from langchain_core.language_models import FakeListChatModel
    from langchain_core.output_parsers import StrOutputParser
    from langchain_core.prompts import ChatPromptTemplate
    from langchain_core.runnables import RunnableLambda, RunnablePassthrough

    from nvembed.integrations.langchain import NVEmbedRetriever

    seen: list[str] = []
    with Index.open(notes) as index:
        prompt = ChatPromptTemplate.from_template("{passages}\n\n{question}")
        chain = (
            {
                "passages": NVEmbedRetriever(index=index, top=1, mode="text")
                | RunnableLambda(lambda documents: "\n".join(each.page_content for each in documents)),
                "question": RunnablePassthrough(),
            }
            | prompt
            | RunnableLambda(lambda value: seen.append(value.to_string()) or value)
            | FakeListChatModel(responses=["Yes."])
            | StrOutputParser()
        )
        assert chain.invoke("are judo throws allowed?") == "Yes."
        assert chain.batch(["atom", "judo"], config={"max_concurrency": 2}) == ["Yes.", "Yes."]
    assert "Judo throws are allowed in freestyle wrestling." in seen[0]


def test_llama_index(notes: Path) -> None:
    from nvembed.integrations.llama_index import NVEmbedNodeRetriever

    with Index.open(notes) as index:
        (node,) = NVEmbedNodeRetriever(index, where=["year = 2020"]).retrieve("small")
        assert (node.node.node_id, node.node.metadata["year"]) == ("rows.csv:a#0", "2020")


def test_a_query_engine_of_llama_index(notes: Path) -> None:
    from llama_index.core.llms import MockLLM
    from llama_index.core.query_engine import RetrieverQueryEngine

    from nvembed.integrations.llama_index import NVEmbedNodeRetriever

    with Index.open(notes) as index:
        engine = RetrieverQueryEngine.from_args(
            NVEmbedNodeRetriever(index, top=1, mode="text"), llm=MockLLM()
        )
        answer = engine.query("judo throws")
    assert [node.node.node_id for node in answer.source_nodes] == ["judo.txt#0"]
    assert "document: judo.txt" in str(answer)
    assert "start: 0" not in str(answer), "places in the text are not for the model"


def test_haystack(notes: Path) -> None:
    from nvembed.integrations.haystack import NVEmbedPassageRetriever

    retriever = NVEmbedPassageRetriever.from_dict(NVEmbedPassageRetriever(str(notes)).to_dict())
    (document, *_) = retriever.run("judo throws", top_k=1)["documents"]
    assert (document.id, document.content[:4]) == ("judo.txt#0", "Judo")


def test_a_pipeline_of_haystack(notes: Path) -> None:
    from haystack import Pipeline
    from haystack.components.builders import PromptBuilder

    from nvembed.integrations.haystack import NVEmbedPassageRetriever

    pipeline = Pipeline()
    pipeline.add_component("retriever", NVEmbedPassageRetriever(str(notes), top_k=1, mode="text"))
    template = "{% for each in documents %}{{ each.content }}{% endfor %} {{ question }}"
    pipeline.add_component("prompt", PromptBuilder(template, required_variables=["documents", "question"]))
    pipeline.connect("retriever.documents", "prompt.documents")
    restored = Pipeline.loads(pipeline.dumps(), allowed_modules=["nvembed.integrations.haystack", "haystack"])
    question = "judo throws?"
    result = restored.run({"retriever": {"query": question}, "prompt": {"question": question}})
    assert result["prompt"]["prompt"].startswith("Judo throws are allowed")
