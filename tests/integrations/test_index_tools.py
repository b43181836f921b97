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


def test_langchain(notes: Path) -> None:
    from nvembed.integrations.langchain import NVEmbedRetriever

    with Index.open(notes) as index:
        retriever = NVEmbedRetriever(index=index, top=1)
        (document,) = retriever.invoke("judo throws")
        assert (document.id, document.metadata["document"]) == ("judo.txt#0", "judo.txt")
        assert asyncio.run(retriever.ainvoke("judo throws"))[0].id == document.id


def test_llama_index(notes: Path) -> None:
    from nvembed.integrations.llama_index import NVEmbedNodeRetriever

    with Index.open(notes) as index:
        (node,) = NVEmbedNodeRetriever(index, where=["year = 2020"]).retrieve("small")
        assert (node.node.node_id, node.node.metadata["year"]) == ("rows.csv:a#0", "2020")


def test_haystack(notes: Path) -> None:
    from nvembed.integrations.haystack import NVEmbedPassageRetriever

    retriever = NVEmbedPassageRetriever.from_dict(NVEmbedPassageRetriever(str(notes)).to_dict())
    (document, *_) = retriever.run("judo throws", top_k=1)["documents"]
    assert (document.id, document.content[:4]) == ("judo.txt#0", "Judo")
