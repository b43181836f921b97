"""``nvembed ask``: an answer from the passages of an index, with citations that are checked."""

import os
from dataclasses import dataclass
from pathlib import Path

from cyclopts import Group, Parameter
from rich.text import Text

from nvembed.cli.chat import chat_with, parse_parameters
from nvembed.cli.options import Compute, Count, Flag, IndexServer
from nvembed.cli.screen import print_json_line, printable, results, waiting, warn, write_line
from nvembed.cli.search_index import (
    PLACES,
    SearchOptions,
    find,
    load_for,
    note_without_words,
    open_index,
    passage_fields,
    place_of,
)
from nvembed.errors import InputError
from nvembed.search.answer import answer, grounded_prompt
from nvembed.search.retrieve import Hit, Mode


@Parameter(name="*", group=Group("Chat model", sort_key=5))
@dataclass(frozen=True, kw_only=True)
class ChatModel:
    """The model that answers."""

    endpoint: str | None = None
    """Base URL of an OpenAI-compatible chat API."""
    chat_model: str | None = None
    """Name of the model there."""
    temperature: float | None = None
    """Temperature of sampling. Default: the endpoint's."""
    param: tuple[str, ...] = ()
    """Further parameter of the request, such as top_p=0.9. May be repeated."""
    timeout: float = 120
    """Seconds to wait for the chat model, up to a day."""


def ask(
    index: Path,
    question: str,
    /,
    *,
    top: Count = 5,
    mode: Mode = "hybrid",
    where: tuple[str, ...] = (),
    model: str | None = None,
    server: IndexServer = "",
    json: Flag = False,
    chat: ChatModel = ChatModel(),  # frozen
    compute: Compute = Compute(),
) -> None:
    """Answer a question from an index, with numbered citations.

    A chat model gets the best passages and must cite them by number. If it cites a passage that does not
    exist, it is asked once more. Without an endpoint the prompt is printed. The key of the endpoint is read
    from NVEMBED_CHAT_KEY or OPENAI_API_KEY.

    Examples:

        nvembed ask OUT "which tokens are pooled?"

        nvembed ask OUT "who may use it?" \\
            --endpoint http://localhost:8000/v1 --chat-model qwen3

    Parameters
    ----------
    index
        Folder of an index, or of the embedded corpus that contains it.
    question
        The question, in quotes.
    top
        Number of passages that the model gets.
    mode
        Search by meaning and words (hybrid), by meaning (vector), or by words (text).
    where
        Filter on metadata, such as "year >= 2020". May be repeated.
    model
        The model that embedded the passages, if it has moved. Default: the one that the index names.
    server
        postgresql://USER@HOST/DATABASE, if the passages are stored there. Default: NVEMBED_INDEX_SERVER.
    json
        Print one JSON object: question, answer, citations, absent, unanswered; without an endpoint, messages.
    """
    if (chat.endpoint is None) != (chat.chat_model is None):
        raise InputError("expected --endpoint and --chat-model together, or neither to print the prompt")
    parameters = parse_parameters(chat.param)
    if chat.temperature is not None:
        parameters["temperature"] = chat.temperature
    key = os.environ.get("NVEMBED_CHAT_KEY") or os.environ.get("OPENAI_API_KEY")
    reply = None
    if chat.endpoint and chat.chat_model:
        reply = chat_with(
            chat.endpoint, chat.chat_model, key=key, timeout_s=chat.timeout, parameters=parameters
        )
    with open_index(index, server) as passages:
        encoder = None if mode == "text" else load_for(passages, model, compute)
        (result,) = find(passages, encoder, [question], SearchOptions(mode=mode, where=where, top=top))
    hits = result.hits
    note_without_words(result, question, mode)
    if reply is None:
        messages = grounded_prompt(question, hits)
        if json:
            print_json_line({"messages": messages})
        else:
            write_line("\n\n".join(message["content"] for message in messages))
        return
    with waiting("asking"):
        grounded = answer(question, hits, reply)
    citations = [(number, hits[number - 1]) for number in grounded.cited]
    if json:
        print_json_line(
            {
                "question": question,
                "answer": grounded.text,
                "citations": [{"number": number, **_fields(hit)} for number, hit in citations],
                "absent": grounded.absent,
                "unanswered": grounded.unanswered,
            }
        )
    else:
        sources = [f"[{number}] {hit.document}, {place_of(hit)}" for number, hit in citations]
        results().print(Text(printable("\n".join([grounded.text, "", *sources]))))
    if grounded.absent or not (grounded.cited or grounded.unanswered):
        numbers = ", ".join(map(str, grounded.absent))
        fault = f"passages that do not exist ({numbers})" if grounded.absent else "no passage"
        warn(f"the model cited {fault}, also when it was asked again: do not rely on this answer")


def _fields(hit: Hit) -> dict[str, object]:
    page = {name: hit.metadata[name] for name in PLACES if name in hit.metadata}
    return passage_fields(hit) | page
