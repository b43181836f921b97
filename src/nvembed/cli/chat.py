"""``nvembed chat``: a conversation about an index, in which every answer is grounded and cited."""

import sys
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from nvembed.cli.ask import answer_fields, receive, show, warn_of
from nvembed.cli.chat_options import ChatOptions
from nvembed.cli.models import load
from nvembed.cli.options import Compute, Count, Flag, IndexServer
from nvembed.cli.screen import print_json_line, results, say
from nvembed.cli.search_index import open_index
from nvembed.errors import InputError
from nvembed.search.chat import ChatError, Message
from nvembed.search.retrieve import Mode

NEW = "/new"


def chat(
    index: Path,
    /,
    *,
    top: Count = 5,
    mode: Mode = "hybrid",
    where: tuple[str, ...] = (),
    model: str | None = None,
    server: IndexServer = "",
    json: Flag = False,
    chat: Annotated[ChatOptions | None, Parameter(name="*")] = None,
    compute: Compute = Compute(),
) -> None:
    """Answer questions about an index in a conversation, with numbered citations.

    Reads one question per line, from the terminal or a pipe, until the end of input (Ctrl-D). The chat model
    rewrites a follow-up question so that it can be understood alone; passages are searched for it, and the
    answer cites them. The line "/new" begins a new conversation. The key of the endpoint is read from
    NVEMBED_CHAT_KEY or OPENAI_API_KEY.

    Examples:

        nvembed chat notes/ --endpoint http://localhost:8001/v1 --chat-model qwen3

        nvembed chat notes/ --endpoint http://localhost:8001/v1 --chat-model qwen3 \\
            --json < questions.txt

    Parameters
    ----------
    index
        An index, a folder that "nvembed index" has indexed, or an embedded corpus with an index.
    top
        Number of passages that the model gets for a question.
    mode
        Search by meaning and words (hybrid), by meaning (vector), or by words (text).
    where
        Filter on metadata, such as "year >= 2020". May be repeated.
    model
        The model that embedded the passages, if it has moved. Default: the one that the index names.
    server
        postgresql://USER@HOST/DATABASE, if the passages are stored there. Default: NVEMBED_INDEX_SERVER.
    json
        Print one JSON object per question: question, query, answer, citations, warnings and more.
    """
    chat_model = (chat or ChatOptions()).chat()
    if chat_model is None:
        raise InputError("expected --chat-endpoint and --chat-model: a conversation needs a chat model")
    from nvembed.indexing.index import Index, Model

    passages = open_index(index, server)
    name, dtype = model or passages.record.model, compute.dtype
    encoder = Model(name, compute.device, lambda name, device, _: load(name, device=device, dtype=dtype))
    live = not json and results().is_terminal
    history: list[Message] = []
    with Index(passages, encoder) as opened:
        for question in _questions():
            if question == NEW:
                history.clear()
                say("new conversation")
                continue
            try:
                events = opened.ask_events(
                    question, chat_model, history=history, top=top, where=where, mode=mode
                )
                result = receive(question, events, history=history, live=live)
            except ChatError as error:
                if not sys.stdin.isatty():
                    raise
                say(str(error), label="error: ", style="bold red")  # ask again, or end
                continue
            if json:
                print_json_line({"question": question, "query": result.query, **answer_fields(result)})
            else:
                show(result, live=live)
            sys.stdout.flush()
            warn_of(result)
            history = result.history


def _questions() -> Iterator[str]:
    """Yield the questions of standard input, one a line; a terminal gets a prompt."""
    if not sys.stdin.isatty():
        yield from (line.strip() for line in sys.stdin if line.strip())
        return
    with suppress(ImportError):
        import readline  # noqa: F401  # lines can be edited, and earlier ones called back
    while True:
        try:
            line = input("> ").strip()
        except EOFError:
            print()
            return
        if line:
            yield line
