"""Indexes as tools for agents, by the Model Context Protocol: ``search`` and ``fetch``."""

from collections.abc import Mapping
from typing import Any

from nvembed.errors import NvembedError, needs_extra
from nvembed.indexing.group import IndexGroup
from nvembed.indexing.index import Index
from nvembed.search.retrieve import Mode

with needs_extra("mcp", "nvembed mcp"):
    from mcp.server import MCPServer
    from mcp.server.mcpserver.exceptions import ToolError

MOST_HITS = 50


def mcp_server(indexes: Mapping[str, Index]) -> "MCPServer[Any]":
    """Return a server with the tools ``search`` and ``fetch``; ``run()`` serves it on standard streams.

    With several indexes an id is ``INDEX:ID``.
    """
    group = IndexGroup(indexes)
    several = len(group.indexes) > 1
    names = ", ".join(group.indexes)
    about = " ".join(f"{name}: {_about(index)}" for name, index in group.indexes.items())
    server = MCPServer(names, instructions=f"Search the documents of {about}", log_level="WARNING")
    choice = f" indexes: which of {names} to search; default: all." if several else ""

    @server.tool(
        description=f"Search documents by meaning and by words. {about} "
        f'where: filters such as "year >= 2020". mode: hybrid, vector or text.{choice}'
    )
    async def search(
        query: str,
        top: int = 5,
        where: list[str] | None = None,
        mode: Mode = "hybrid",
        indexes: list[str] | None = None,
    ) -> dict[str, Any]:
        try:
            hits = await group.asearch(
                query, indexes=indexes or (), top=min(top, MOST_HITS), where=where or (), mode=mode
            )
        except NvembedError as error:
            raise ToolError(str(error)) from error
        return {
            "results": [
                {
                    "id": f"{hit.index}:{hit.id}" if several else hit.id,
                    "index": hit.index,
                    "document": hit.document,
                    "title": hit.metadata.get("title") or hit.document,
                    "text": hit.text,
                    "metadata": hit.metadata,
                    "score": hit.score,
                }
                for hit in hits
            ]
        }

    @server.tool(description="Return the whole text of a document, by the id of a search result.")
    async def fetch(id: str) -> dict[str, Any]:
        name, _, rest = id.partition(":") if several else (names, "", id)
        try:
            text, metadata = await group.adocument(name, rest)
        except NvembedError as error:
            raise ToolError(str(error)) from error
        return {"id": id, "title": metadata.get("title") or rest, "text": text, "metadata": metadata}

    return server


def _about(index: Index) -> str:
    fields = ", ".join(f"{field} ({kind})" for field, kind in sorted(index.passages.record.fields.items()))
    return f"{len(index):,} documents. Fields for filters: {fields or 'none'}."
