"""``nvembed ask``: an answer from the passages of an index, with citations that are checked."""

from collections.abc import Iterator, Sequence
from contextlib import ExitStack
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
from nvembed.search.answer import GroundedAnswer, Restart, answer, grounded_prompt
from nvembed.search.chat import iterate
from nvembed.search.retrieve import Hit, Mode


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
    grounded = receive(iterate(answer(question, result.hits, chat_model)), live=live)
    if json:
        print_json_line({"question": question, **answer_fields(grounded, result.hits)})
    else:
        show(grounded, result.hits, live=live)
    warn_of(grounded)


def receive(events: Iterator[str | Restart | GroundedAnswer], *, live: bool) -> GroundedAnswer:
    """Return an answer; ``live``: print its pieces as they arrive."""
    begun = False
    with ExitStack() as spinner:
        spinner.enter_context(waiting("asking"))
        for event in events:
            if isinstance(event, GroundedAnswer):
                if begun:
                    print()
                return event
            if live:
                spinner.close()
                if isinstance(event, Restart):
                    print()
                    say(event.reason)
                else:
                    print(printable(event), end="", flush=True)
                    begun = True
    raise AssertionError("the last event is the answer")


def show(grounded: GroundedAnswer, hits: Sequence[Hit], *, live: bool) -> None:
    """Print an answer, unless it came live, and its sources."""
    cited = [(number, hits[number - 1]) for number in grounded.cited]
    sources = [f"[{number}] {hit.document}, {place_of(hit)}" for number, hit in cited]
    lines = [*([] if live else [grounded.text]), *(["", *sources] if sources else [])]
    if lines:
        results().print(Text(printable("\n".join(lines))))


def warn_of(grounded: GroundedAnswer) -> None:
    for reason in grounded.warnings:
        warn(f"{reason}: do not rely on it")


def answer_fields(grounded: GroundedAnswer, hits: Sequence[Hit]) -> dict[str, object]:
    """Return an answer and the passages that it cites, for JSON output."""
    citations = []
    for number in grounded.cited:
        hit = hits[number - 1]
        places = {name: hit.metadata[name] for name in PLACES if name in hit.metadata}
        citations.append({"number": number, **passage_fields(hit), **places})
    return {**grounded.fields(), "citations": citations}
