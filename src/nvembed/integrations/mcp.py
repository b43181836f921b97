"""An index as tools for agents, by the Model Context Protocol: ``search`` and ``fetch``."""

from typing import Any

from nvembed.errors import NvembedError, needs_extra
from nvembed.indexing.index import Index
from nvembed.search.retrieve import Mode

with needs_extra("mcp", "nvembed mcp"):
    from mcp.server import MCPServer
    from mcp.server.mcpserver.exceptions import ToolError

MOST_HITS = 50


def mcp_server(index: Index, name: str) -> "MCPServer[Any]":
    """Return a server with the tools ``search`` and ``fetch``; ``run()`` serves it on standard streams."""
    fields = ", ".join(f"{field} ({kind})" for field, kind in sorted(index.passages.record.fields.items()))
    about = f"{len(index):,} documents. Fields for filters: {fields or 'none'}."
    server = MCPServer(name, instructions=f"Search the documents of {name}: {about}", log_level="WARNING")

    @server.tool(
        description=f"Search {name} by meaning and by words. {about} "
        'where: filters such as "year >= 2020". mode: hybrid, vector or text.'
    )
    async def search(
        query: str, top: int = 5, where: list[str] | None = None, mode: Mode = "hybrid"
    ) -> dict[str, Any]:
        try:
            hits = await index.asearch(query, top=min(top, MOST_HITS), where=where or (), mode=mode)
        except NvembedError as error:
            raise ToolError(str(error)) from error
        return {
            "results": [
                {
                    "id": hit.id,
                    "document": hit.document,
                    "title": hit.metadata.get("title") or hit.document,
                    "text": hit.text,
                    "metadata": hit.metadata,
                    "score": hit.score,
                }
                for hit in hits
            ]
        }

    @server.tool(description="Return the whole text of a document, by the id of a search result or document.")
    async def fetch(id: str) -> dict[str, Any]:
        try:
            text, metadata = await index.adocument(id)
        except NvembedError as error:
            raise ToolError(str(error)) from error
        return {"id": id, "title": metadata.get("title") or id, "text": text, "metadata": metadata}

    return server
