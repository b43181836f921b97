"""nvembed chat in pipes and in a terminal, and the same from Python, with a stand-in chat endpoint."""

import asyncio
import io
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from chat_server import Endpoint, chat_server

from conftest import TINY_A
from nvembed import ChatModel, Index
from nvembed.cli.main import app_for
from nvembed.errors import InputError, NvembedError
from nvembed.search.answer import Evidence, GroundedAnswer, Rewritten
from nvembed.search.chat import ChatError, CutShort

PROGRAM = "import sys; from nvembed.cli.main import main; main(sys.argv[1:])"


@pytest.fixture(scope="module")
def notes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("chat") / "notes"
    folder.mkdir()
    (folder / "judo.txt").write_text("Judo throws are allowed in freestyle wrestling.", encoding="utf-8")
    (folder / "locks.txt").write_text("Leg locks are not allowed.", encoding="utf-8")
    Index.build(folder, str(TINY_A)).close()
    return folder


def run(*arguments: Any) -> None:
    argv = [str(argument) for argument in arguments]
    app_for(argv)(argv)


def options(endpoint: Endpoint) -> tuple[str, ...]:
    return ("--endpoint", endpoint.url, "--chat-model", "small")


def test_a_conversation_in_a_pipe(
    notes: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    replies = ("Yes [1].", "Are leg locks allowed?", "No (1).", "It is so.", "So it is.")
    with chat_server(*replies) as endpoint:
        monkeypatch.setattr("sys.stdin", io.StringIO("are throws allowed?\n\nand leg locks?\n/new\nthrows"))
        run("chat", notes, "--json", "--mode", "text", *options(endpoint))
        first, second, third = map(json.loads, capfd.readouterr().out.splitlines())
        assert (first["question"], first["query"]) == ("are throws allowed?", "are throws allowed?")
        assert (first["answer"], first["cited"]) == ("Yes [1].", [1])
        assert first["citations"][0]["document"] == "judo.txt"
        assert (second["question"], second["query"]) == ("and leg locks?", "Are leg locks allowed?")
        assert (second["answer"], second["cited"]) == ("No [1].", [1])
        assert third["query"] == "throws", "a new conversation has no history"
        assert third["warnings"] == ["the answer cites no passage"]
        assert "are throws allowed?" in endpoint.requests[1]["messages"][1]["content"]


def test_what_a_pipe_prints(
    notes: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    with chat_server("Yes \u30101\u3011.") as endpoint:
        monkeypatch.setattr("sys.stdin", io.StringIO("are throws allowed?\n"))
        run("chat", notes, "--mode", "text", *options(endpoint))
        lines = capfd.readouterr().out.splitlines()
        assert (lines[0], lines[1]) == ("Yes [1].", "")
        assert lines[2].startswith("[1] judo.txt")
        monkeypatch.setattr("sys.stdin", io.StringIO(""))
        run("chat", notes, *options(endpoint))
        assert capfd.readouterr().out == ""
    monkeypatch.setattr("sys.stdin", io.StringIO("x\n"))
    with pytest.raises(ChatError, match="cannot be reached"):
        run("chat", notes, *options(endpoint))
    with pytest.raises(InputError, match="needs a chat model"):
        run("chat", notes)


def test_parameters_of_the_request(notes: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "k")
    more = ("--temperature", 0, "--max-tokens", 9, "--top-p", 0.5, "--seed", 3, "--stop", "x")
    more = (*more, "--param", "user=me")
    with chat_server("Yes [1].") as endpoint:
        run("ask", notes, "throws", *options(endpoint), *more, "--body", '{"top_k": 4}', "--header", "X-A: b")
        sent = {
            name: value for name, value in endpoint.requests[0].items() if name not in ("model", "messages")
        }
        assert sent == {
            "temperature": 0.0, "max_tokens": 9, "top_p": 0.5, "seed": 3, "stop": ["x"], "user": "me",
            "top_k": 4, "stream": True,
        }  # fmt: skip
        assert (endpoint.headers[0]["X-A"], endpoint.keys[0]) == ("b", "Bearer k")
        run("ask", notes, "throws", *options(endpoint), "--no-chat-stream")
        assert "stream" not in endpoint.requests[1]
        run("ask", notes, "throws", *options(endpoint), "--show-prompt")
        assert len(endpoint.requests) == 2
        for bad, message in (
            (("--param", "x"), "KEY=VALUE"),
            (("--param", "stream=true"), "'stream'"),
            (("--seed", "1", "--param", "seed=2"), "set twice"),
            (("--body", "[1]"), "one JSON object"),
            (("--body", "{"), "one JSON object"),
            (("--header", "x"), "NAME: VALUE"),
            (("--timeout", "0"), "expected seconds"),
        ):
            with pytest.raises(NvembedError, match=message):
                run("ask", notes, "throws", *options(endpoint), *bad)


class Terminal:
    """The program in a pseudo-terminal, and everything that it has printed."""

    def __init__(self, *arguments: str) -> None:
        import pty

        self.main, side = pty.openpty()
        environment = {**os.environ, "TERM": "dumb", "COLUMNS": "200"}
        self.running = subprocess.Popen(
            [sys.executable, "-c", PROGRAM, *arguments],
            stdin=side, stdout=side, stderr=side, env=environment, start_new_session=True,
        )  # fmt: skip
        os.close(side)
        self.text = ""

    def until(self, text: str) -> None:
        """Read until the text has been printed; "" waits for the end."""
        end = time.monotonic() + 120
        while time.monotonic() < end and (not text or text not in self.text):
            try:
                part = os.read(self.main, 4096)
            except OSError:  # the program has ended
                part = b""
            if not part:
                break
            self.text += part.decode(errors="replace")
        assert text in self.text, self.text

    def type(self, text: str) -> None:
        self.text = ""
        os.write(self.main, text.encode())


@pytest.fixture
def endpoint() -> Iterator[Endpoint]:
    with chat_server("Throws are allowed [1].") as endpoint:
        yield endpoint


def test_a_terminal(notes: Path, endpoint: Endpoint) -> None:
    terminal = Terminal("chat", str(notes), "--mode", "text", *options(endpoint))
    terminal.until("> ")
    terminal.type("throws\n")
    terminal.until("[1] judo.txt")
    assert terminal.text.count("Throws are allowed [1].") == 1
    terminal.until("> ")
    endpoint.replies[:] = [(500, b"broken")]
    terminal.type("throws\n")
    terminal.until("answered 500")  # the conversation goes on
    terminal.until("> ")
    terminal.type("\x04")
    terminal.until("")
    assert terminal.running.wait(120) == 0
    assert "Traceback" not in terminal.text


@pytest.mark.parametrize("reply", [None, "slow"])
def test_ctrl_c_ends_it(notes: Path, endpoint: Endpoint, reply: str | None) -> None:
    import threading

    hold, begun = threading.Event(), threading.Event()

    def slow(_request: object) -> str:
        begun.set()
        hold.wait(120)
        return "late"

    terminal = Terminal("chat", str(notes), "--mode", "text", *options(endpoint))
    terminal.until("> ")
    if reply:
        endpoint.replies[:] = [slow]
        terminal.type("throws\n")
        assert begun.wait(120)
    stat = Path(f"/proc/{terminal.running.pid}/stat")
    while stat.read_text().rpartition(")")[2].split()[0] != "S":  # a signal before the read would wait for it
        time.sleep(0.01)
    terminal.running.send_signal(signal.SIGINT)
    assert terminal.running.wait(120) == 130
    hold.set()
    terminal.until("interrupted")
    assert "Traceback" not in terminal.text


def test_python(notes: Path) -> None:
    replies = ("Yes [1].", "Are leg locks allowed?", "No [1].")
    with chat_server(*replies) as endpoint, Index.open(notes) as index:
        chat = ChatModel(endpoint=endpoint.url, model="small")
        first = index.ask("are throws allowed?", chat, mode="text")
        assert (first.text, first.query, first.warnings) == ("Yes [1].", "are throws allowed?", [])
        assert first.sources == {1: first.hits[0]}
        assert "judo.txt" in str(first)
        assert "<table>" in first._repr_html_()
        second = asyncio.run(index.aask("and leg locks?", chat, history=first.history, top=1, mode="text"))
        assert (second.query, len(second.hits)) == ("Are leg locks allowed?", 1)
        assert [message["content"] for message in second.history] == [
            "are throws allowed?", "Yes [1].", "and leg locks?", "No [1].",
        ]  # fmt: skip
        endpoint.replies[:] = ["Are locks allowed?", "No [1]."]
        endpoint.requests.clear()
        kinds = [type(event) for event in index.ask_events("and locks?", chat, history=first.history)]
        assert kinds == [Rewritten, Evidence, str, str, GroundedAnswer]
        nothing = index.ask("xyz", chat, mode="text")
        assert (nothing.text, nothing.grounded.unanswered) == ("", True)
        assert "no passage" in nothing.warnings[0]


def test_any_function_is_a_chat_model(notes: Path) -> None:
    async def parrot(messages: list[dict[str, str]]) -> Any:
        yield "Polly says [2]"
        yield CutShort("length")

    with Index.open(notes) as index:
        answer = index.ask("throws", parrot)
        assert answer.grounded.cited == (2,)
        assert "limit of tokens" in answer.warnings[0]
