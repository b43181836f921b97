"""``nvembed mcp``: an index as tools for agents."""

from pathlib import Path

from nvembed.cli.options import Compute, IndexServer
from nvembed.cli.search_index import open_index


def mcp(
    index: Path,
    /,
    *,
    model: str | None = None,
    server: IndexServer = "",
    compute: Compute = Compute(),
) -> None:
    """Serve an index to agents by the Model Context Protocol, on standard input and output.

    Tools: search (by meaning and by words, with filters) and fetch (the text of a document). The agent starts
    the command; needs the extra "mcp".

    Examples:

        nvembed mcp notes/

        claude mcp add notes -- nvembed mcp /home/me/notes

    Parameters
    ----------
    index
        An index, a folder that "nvembed index" has indexed, or an embedded corpus with an index.
    model
        Model: a folder or a hub id. Default: the recorded one.
    server
        postgresql://USER@HOST/DATABASE, if the passages are stored there.
    """
    from nvembed.indexing.index import Index, Model
    from nvembed.integrations.mcp import mcp_server

    passages = open_index(index, server)
    name = model or passages.record.model
    with Index(passages, Model(name, compute.device)) as opened:
        mcp_server(opened, index.resolve().name).run()
