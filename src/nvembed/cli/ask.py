"""``nvembed ask``: an answer from the passages of an index, with citations that are checked."""

from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack
from itertools import chain
from pathlib import Path
from typing import Annotated

from cyclopts import Parameter
from rich.text import Text

from nvembed.cli.chat_options import ChatOptions
from nvembed.cli.options import Compute, Count, Flag, IndexServer
from nvembed.cli.screen import print_json_line, printable, results, say, waiting, warn, write_line
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
from nvembed.indexing.hits import CitedAnswer, answer_of
from nvembed.search.answer import Event, Evidence, GroundedAnswer, Restart, answer, grounded_prompt
from nvembed.search.chat import Message, iterate
from nvembed.search.retrieve import Mode


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
    show_prompt: Flag = False,
    json: Flag = False,
    chat: Annotated[ChatOptions | None, Parameter(name="*")] = None,
    compute: Compute = Compute(),
) -> None:
    """Answer a question from an index, with numbered citations.

    A chat model gets the best passages and must cite them by number. If it cites a passage that does not
    exist, or none, it is asked once more. Without an endpoint the prompt is printed. The key of the endpoint
    is read from NVEMBED_CHAT_KEY or OPENAI_API_KEY.

    Examples:

        nvembed ask OUT "which tokens are pooled?"

        nvembed ask OUT "who may use it?" \\
            --endpoint http://localhost:8001/v1 --chat-model qwen3 --temperature 0

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
    show_prompt
        Print the prompt and do not ask.
    json
        Print one JSON object: question, answer, citations, warnings and more; of a prompt, messages.
    """
    chat_model = (chat or ChatOptions()).chat()
    with open_index(index, server) as passages:
        encoder = None if mode == "text" else load_for(passages, model, compute)
        (result,) = find(passages, encoder, [question], SearchOptions(mode=mode, where=where, top=top))
    note_without_words(result, question, mode)
    if show_prompt or chat_model is None:
        messages = grounded_prompt(question, result.hits)
        if json:
            print_json_line({"messages": messages})
        else:
            write_line("\n\n".join(message["content"] for message in messages))
        return
    live = not json and results().is_terminal
    events = chain([Evidence(result.hits)], iterate(answer(question, result.hits, chat_model)))
    answered = receive(question, events, live=live)
    if json:
        print_json_line({"question": question, **answer_fields(answered)})
    else:
        show(answered, live=live)
    warn_of(answered)


def receive(
    question: str, events: Iterable[Event], *, history: Sequence[Message] = (), live: bool = False
) -> CitedAnswer:
    """Return an answer from its events; ``live``: print its pieces as they arrive."""
    with ExitStack() as spinner:
        spinner.enter_context(waiting("asking"))
        return answer_of(question, history, _printed(events, spinner) if live else events)


def _printed(events: Iterable[Event], spinner: ExitStack) -> Iterator[Event]:
    begun = False
    for event in events:
        if isinstance(event, str):
            spinner.close()
            print(printable(event), end="", flush=True)
            begun = True
        elif begun and isinstance(event, Restart | GroundedAnswer):
            print()
        if isinstance(event, Restart):
            say(event.reason)
        yield event


def show(answered: CitedAnswer, *, live: bool) -> None:
    """Print an answer, unless it came live, and its sources."""
    sources = [f"[{number}] {hit.document}, {place_of(hit)}" for number, hit in answered.sources.items()]
    lines = [*([] if live else [answered.text]), *(["", *sources] if sources else [])]
    if lines:
        results().print(Text(printable("\n".join(lines))))


def warn_of(answered: CitedAnswer) -> None:
    for reason in answered.warnings:
        warn(f"{reason}: do not rely on it" if answered.text else reason)


def answer_fields(answered: CitedAnswer) -> dict[str, object]:
    """Return an answer and the passages that it cites, for JSON output."""
    citations = []
    for number, hit in answered.sources.items():
        places = {name: hit.metadata[name] for name in PLACES if name in hit.metadata}
        citations.append({"number": number, **passage_fields(hit), **places})
    return {**answered.grounded.fields(), "citations": citations}
