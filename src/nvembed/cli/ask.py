"""``nvembed ask``: an answer from the passages of an index, with citations that are checked."""

import json as json_lines
import os
import sys
from pathlib import Path
from typing import Annotated

from cyclopts import Parameter
from rich.text import Text

from nvembed.cli.options import Dtype
from nvembed.cli.screen import printable, results, say, waiting
from nvembed.errors import InputError
from nvembed.search.retrieve import Hit, Mode


def ask(
    index: Path,
    question: str,
    /,
    *,
    endpoint: str | None = None,
    chat_model: str | None = None,
    top: int = 5,
    mode: Mode = "hybrid",
    where: tuple[str, ...] = (),
    model: str | None = None,
    json: Annotated[bool, Parameter(negative=())] = False,
    timeout: float = 120,
    device: str | None = None,
    dtype: Dtype | None = None,
) -> None:
    """Answer a question from an index, with numbered citations.

    The best passages go to a chat model, which must cite them by number; numbers of passages that are not
    there are sent back once, and marked if they come again. Without an endpoint the prompt is printed.
    The endpoint's key is read from NVEMBED_CHAT_KEY, or OPENAI_API_KEY.

    Examples:

        nvembed ask OUT "which tokens are pooled?"

        nvembed ask OUT "who may use it?" --endpoint http://localhost:8000/v1 --chat-model qwen3

    Parameters
    ----------
    index
        What "nvembed index" has made: its folder, or the embedded corpus it lies in.
    question
        The question, in quotes.
    endpoint
        The base URL of an OpenAI-compatible chat API.
    chat_model
        The name of the model there.
    top
        How many passages the model is given.
    mode
        How passages are found: hybrid, vector or text.
    where
        A filter on metadata, such as "year >= 2020". May be repeated.
    model
        The model that embedded the passages, if it does not lie where it did.
    json
        Print one JSON object: question, answer, citations, absent; or messages, without an endpoint.
    timeout
        How many seconds to wait for the chat model, up to a day.
    device
        What embeds the question: cpu, cuda, cuda:1.
    dtype
        What to compute in; bfloat16 on CUDA and float32 on CPU unless given.
    """
    from nvembed.cli.chat import chat_with
    from nvembed.cli.search_index import SearchOptions, find, load_for, opened
    from nvembed.search.answer import answer, grounded_prompt

    if (endpoint is None) != (chat_model is None):
        raise InputError("expected --endpoint and --chat-model together, or neither to print the prompt")
    key = os.environ.get("NVEMBED_CHAT_KEY") or os.environ.get("OPENAI_API_KEY")
    chat = chat_with(endpoint, chat_model, key=key, timeout_s=timeout) if endpoint and chat_model else None
    with opened(index) as found:
        encoder = None if mode == "text" else load_for(found, model, device=device, dtype=dtype)
        (result,) = find(found, encoder, [question], SearchOptions(mode=mode, where=where, top=top))
    hits = result.hits
    if chat is None:
        messages = grounded_prompt(question, hits)
        text = "\n\n".join(message["content"] for message in messages)
        _write(json_lines.dumps({"messages": messages}, ensure_ascii=False) if json else text)
        return
    with waiting("asking"):
        said = answer(question, hits, chat)
    cited = [{"number": n, **_passage(hits[n - 1])} for n in said.cited]
    if json:
        record = {"question": question, "answer": said.text, "citations": cited, "absent": said.absent}
        _write(json_lines.dumps(record, ensure_ascii=False))
    else:
        console = results()
        console.print(Text(printable(said.text)))
        console.print()
        for n in said.cited:
            hit = hits[n - 1]
            place = f"[{n}] {hit.document}, characters {hit.start:,}-{hit.end:,}"
            console.print(Text(printable(place)))
    if said.absent or not said.cited:
        absent = f"passages that are not there ({', '.join(map(str, said.absent))})"
        say(
            f"the model cited {absent if said.absent else 'no passage'}, asked twice: do not rely on this",
            label="warning: ",
            style="bold yellow",
        )


def _passage(hit: Hit) -> dict[str, object]:
    return {"id": hit.id, "document": hit.document, "start": hit.start, "end": hit.end, "text": hit.text}


def _write(text: str) -> None:
    sys.stdout.buffer.write(f"{text}\n".encode())
