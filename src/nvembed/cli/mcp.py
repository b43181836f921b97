"""``nvembed mcp``: indexes as tools for agents."""

from contextlib import ExitStack

from nvembed.cli.options import Compute, IndexServer
from nvembed.cli.serve_index import open_indexes


def mcp(
    *indexes: str,
    model: str | None = None,
    server: IndexServer = "",
    compute: Compute = Compute(),
) -> None:
    """Serve indexes to agents by the Model Context Protocol, on standard input and output.

    Tools: search (by meaning and by words, with filters) and fetch (the text of a document). The agent starts
    the command; needs the extra "mcp".

    Examples:

        nvembed mcp notes/

        nvembed mcp notes=/home/me/notes tickets=/srv/tickets

        claude mcp add notes -- nvembed mcp /home/me/notes

    Parameters
    ----------
    indexes
        Indexes, folders that "nvembed index" has indexed, or embedded corpora with an index: FOLDER, or
        NAME=FOLDER.
    model
        Model of the indexes: a folder or a hub id. Default: the recorded ones.
    server
        postgresql://USER@HOST/DATABASE, if the passages are stored there.
    """
    from nvembed.indexing.index import Index, Model
    from nvembed.integrations.mcp import mcp_server

    models: dict[str, Model] = {}
    with ExitStack() as closing:
        opened = {}
        for name, passages in open_indexes(indexes, server).items():
            its = model or passages.record.model
            models.setdefault(its, Model(its, compute.device))
            opened[name] = closing.enter_context(Index(passages, models[its]))
        mcp_server(opened).run()
