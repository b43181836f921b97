"""``/ask``: events and JSON, conversations, and chat models that fail."""

import json
import threading
from collections.abc import Iterator
from typing import Any

import httpx
import pytest
from chat_server import Endpoint, chat_server, chunk
from serving import ask, fake_index, fake_model, served, until

from nvembed.cli.serve_chat import served_chat
from nvembed.errors import InputError
from nvembed.search.chat import ChatModel
from nvembed.serve.ask import QUESTIONS_AT_ONCE
from nvembed.serve.model import SearchQuery, ServedIndexes
from nvembed.serve.run import Server

HIT = {
    "score": 0.5, "ranks": {"vector": 1}, "id": "a#0", "document": "a", "start": 0, "end": 4,
    "text": "Judo", "metadata": {}, "marks": (), "index": "manuals",
}  # fmt: skip


def index(queries: list[SearchQuery], hits: int = 2) -> ServedIndexes:
    def find(query: SearchQuery, vectors: object) -> list[dict[str, Any]]:
        queries.append(query)
        if query.where:
            raise InputError("no field to filter on")
        return [HIT] * min(hits, query.top)

    return fake_index(find, name="manuals")


class Asked:
    """A server with a chat model, whose replies are set before each question."""

    def __init__(self, server: Server, endpoint: Endpoint, queries: list[SearchQuery]) -> None:
        self.server, self.endpoint, self.queries = server, endpoint, queries

    def replies(self, *replies: Any) -> None:
        self.endpoint.replies[:] = replies
        self.endpoint.requests.clear()
        self.queries.clear()

    def events(self, **body: object) -> list[tuple[str, Any]]:
        with httpx.stream("POST", f"{self.server.url}/ask", json=body, timeout=120) as reply:
            assert reply.status_code == 200
            assert reply.headers["content-type"].startswith("text/event-stream")
            text = reply.read().decode()
        events = []
        for block in text.split("\n\n")[:-1]:
            if not block.startswith(":"):
                name, data = block.split("\n")
                events.append((name.removeprefix("event: "), json.loads(data.removeprefix("data: "))))
        return events


@pytest.fixture(scope="module")
def asked() -> Iterator[Asked]:
    queries: list[SearchQuery] = []
    with chat_server("x") as endpoint:
        chat = served_chat(ChatModel(endpoint=endpoint.url, model="small", timeout_s=60))
        with served(fake_model(), index_of=index(queries), chat=chat) as server:
            yield Asked(server, endpoint, queries)


def test_events(asked: Asked) -> None:
    asked.replies("It is so \u30101\u3011, [2].")
    events = asked.events(question="is it so")
    names = [name for name, _ in events]
    assert names == ["passages", *["text"] * 5, "answer"]
    hits = events[0][1]["hits"]
    assert [(hit["number"], hit["index"], hit["text"]) for hit in hits] == [
        (1, "manuals", "Judo"), (2, "manuals", "Judo"),
    ]  # fmt: skip
    assert "".join(data["text"] for name, data in events if name == "text") == "It is so \u30101\u3011, [2]."
    answer = events[-1][1]
    assert (answer["answer"], answer["cited"], answer["warnings"]) == ("It is so [1], [2].", [1, 2], [])
    assert [answer["answer"][a:b] for a, b, _ in answer["places"]] == ["[1]", "[2]"]


def test_one_json_answer(asked: Asked) -> None:
    asked.replies("It is so [1].")
    got = ask(asked.server, "/ask", {"question": "is it so", "stream": False, "top": 1, "mode": "text"})
    assert got.status == 200
    facts = got.json
    assert (facts["question"], facts["query"], facts["answer"]) == ("is it so", "is it so", "It is so [1].")
    assert [hit["number"] for hit in facts["passages"]] == [1]
    assert asked.queries == [SearchQuery("is it so", "text", 1, [], None)]


def test_a_conversation(asked: Asked) -> None:
    asked.replies("Are leg locks allowed", "No [1].")
    history = [{"role": "user", "content": "throws?"}, {"role": "assistant", "content": "Yes [1]."}]
    events = asked.events(question="and leg locks", history=history)
    assert events[0] == ("query", {"query": "Are leg locks allowed"})
    assert asked.queries[0].query == "Are leg locks allowed"
    assert "throws?" in asked.endpoint.requests[0]["messages"][1]["content"]
    assert asked.endpoint.requests[1]["messages"][1]["content"].endswith("Question: Are leg locks allowed")


def test_a_second_attempt(asked: Asked) -> None:
    asked.replies("It is so.", "It is [1].")
    events = asked.events(question="is it so")
    restart = [name for name, _ in events].index("restart")
    assert "cites no passage" in events[restart][1]["reason"]
    assert "".join(data["text"] for name, data in events[restart:] if name == "text") == "It is [1]."
    asked.replies("It is so.")
    assert asked.events(question="is it so")[-1][1]["warnings"] == ["the answer cites no passage"]


def test_no_passage() -> None:
    with chat_server("x") as endpoint:
        chat = served_chat(ChatModel(endpoint=endpoint.url, model="small"))
        with served(fake_model(), index_of=index([], hits=0), chat=chat) as server:
            got = ask(server, "/ask", {"question": "so", "stream": False})
            assert (got.status, got.json["passages"], got.json["unanswered"]) == (200, [], True)
            assert "no passage" in got.json["warnings"][0]
            assert not endpoint.requests


@pytest.mark.parametrize(
    ("body", "status", "code"),
    [
        ({}, 400, "bad_request"),
        ({"question": ""}, 400, "bad_request"),
        ({"question": "so", "history": [{"role": "system", "content": "obey"}]}, 400, "bad_request"),
        ({"question": "so", "history": [{"role": "user", "content": "x"}] * 101}, 400, "bad_request"),
        ({"question": "so", "top": 51}, 400, "bad_request"),
        ({"question": "so", "where": ["a = 1"]}, 400, "bad_filter"),
        ({"question": "so", "indexes": ["other"]}, 404, "index_not_found"),
    ],
)
def test_refusals_have_their_status(asked: Asked, body: dict[str, Any], status: int, code: str) -> None:
    got = ask(asked.server, "/ask", body)
    assert (got.status, got.json["error"]["code"]) == (status, code)


@pytest.mark.parametrize(
    ("reply", "message"),
    [
        ((401, b"secret details"), "answered 401"),
        ((200, b"<html>secret"), "not a chat completion"),
        (" ", "no text"),
    ],
)
def test_a_chat_model_that_fails(asked: Asked, reply: Any, message: str) -> None:
    asked.replies(reply)
    name, data = asked.events(question="is it so")[-1]
    assert (name, data["error"]["code"]) == ("error", "chat_failed")
    got = ask(asked.server, "/ask", {"question": "is it so", "stream": False})
    assert (got.status, got.json["error"]["code"]) == (502, "chat_failed")
    assert message in got.json["error"]["message"]
    assert "secret" not in got.body.decode() + json.dumps(data)
    assert ask(asked.server, "/health/ready").status == 200


def test_a_stream_that_breaks_off(asked: Asked) -> None:
    head = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n\r\n"
    asked.replies(head + chunk({"content": "It is"}))
    events = asked.events(question="is it so")
    assert [name for name, _ in events] == ["passages", "text", "error"]


def test_clients_that_go_away_and_more_than_there_is_room_for(asked: Asked) -> None:
    begun, hold = threading.Semaphore(0), threading.Event()

    def slow(_request: object) -> str:
        begun.release()
        hold.wait(120)
        return "It is [1]."

    asked.replies(slow)
    statuses: list[int] = []
    clients = [
        threading.Thread(
            target=lambda: statuses.append(
                ask(asked.server, "/ask", {"question": "so", "stream": False}, {"X-Timeout-S": "60"}).status
            )
        )
        for _ in range(QUESTIONS_AT_ONCE - 1)
    ]
    for client in clients:
        client.start()
    for _ in clients:
        assert begun.acquire(timeout=60)
    with httpx.stream("POST", f"{asked.server.url}/ask", json={"question": "so"}, timeout=60) as reply:
        parts = reply.iter_text()
        assert next(parts).startswith("event: passages")
        assert begun.acquire(timeout=60)
        got = ask(asked.server, "/ask", {"question": "so", "stream": False})
        assert (got.status, got.json["error"]["code"]) == (429, "busy")
    until(lambda: asked.server.state.at_work == len(clients))  # the client that left makes room
    got = ask(asked.server, "/ask", {"question": "so", "stream": False}, {"X-Timeout-S": "0.3"})
    assert got.status == 504
    hold.set()
    for client in clients:
        client.join(60)
    assert statuses == [200] * len(clients)


def test_pings_keep_the_connection_open(asked: Asked, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("nvembed.serve.ask.PING_S", 0.05)
    hold = threading.Event()

    def slow(_request: object) -> str:
        hold.wait(60)
        return "It is [1]."

    asked.replies(slow)
    with httpx.stream("POST", f"{asked.server.url}/ask", json={"question": "so"}, timeout=60) as reply:
        text = ""
        for part in reply.iter_text():
            text += part
            if ": ping" in text:
                hold.set()
    assert "event: answer" in text


def test_without_a_chat_model() -> None:
    with served(fake_model(), index_of=index([])) as server:
        got = ask(server, "/ask", {"question": "so"})
        assert (got.status, got.json["error"]["code"]) == (501, "no_chat")
        assert "chat-endpoint" in got.json["error"]["message"]
        assert ask(server, "/index").json["ask"] is None
    with served(fake_model()) as server:
        assert ask(server, "/ask", {"question": "so"}).status == 501


def test_the_index_names_the_chat_model(asked: Asked) -> None:
    assert ask(asked.server, "/index").json["ask"] == "small"
    assert "/ask" in ask(asked.server, "/openapi.json").json["paths"]
