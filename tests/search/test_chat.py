"""A chat endpoint on a real socket: its answers in every shape, and its faults."""

import json
import time

import pytest
from chat_server import chat_server, chunk, stream

from nvembed.errors import InputError
from nvembed.search.chat import REPLY_BYTES, ChatError, ChatModel, CutShort, iterate

MESSAGES = [{"role": "user", "content": "is it?"}]


def replied(chat: ChatModel) -> list[str | CutShort]:
    return list(iterate(chat(MESSAGES)))


def text(chat: ChatModel) -> str:
    return "".join(piece for piece in replied(chat) if isinstance(piece, str))


def chunked(body: bytes, *, whole: bool = True) -> bytes:
    """An answer of server-sent events in chunked encoding; without its end if not ``whole``."""
    head = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n"
    return head + b"%x\r\n%b\r\n" % (len(body), body) + (b"0\r\n\r\n" if whole else b"")


def test_requests() -> None:
    with chat_server("It is so.") as endpoint:
        chat = ChatModel(endpoint=endpoint.url + "/", model="small", key="secret")
        assert replied(chat) == ["It", " is", " so."]
        assert endpoint.requests[0] == {"model": "small", "messages": MESSAGES, "stream": True}
        chat = ChatModel(
            endpoint=endpoint.url,
            model="small",
            parameters={"temperature": 0, "stop": ["x"]},
            headers={"X-Team": "search"},
            stream=False,
        )
        assert replied(chat) == ["It is so."]
        request = endpoint.requests[1]
        assert (request["temperature"], request["stop"], request.get("stream")) == (0, ["x"], None)
        assert endpoint.keys == ["Bearer secret", None]
        assert endpoint.headers[1]["X-Team"] == "search"


@pytest.mark.parametrize(
    ("body", "pieces"),
    [
        (stream("a b").replace(b"\n", b"\r\n"), ["a", " b"]),
        (b": ping\n\nevent: x\nid: 1\n" + stream("a"), ["a"]),
        (chunk({"content": "a"}) + chunk({}, "stop"), ["a"]),  # without [DONE]
        (chunk({"content": "a"}) + b"data: [DONE]\n\n", ["a"]),  # without a reason
        (chunk({"reasoning_content": "hm", "content": None}) + chunk({"content": "a"}, "stop"), ["a"]),
        (chunk({"content": "a"}) + chunk({}, "length"), ["a", CutShort("length")]),
        (chunk({"content": [{"type": "text", "text": "a"}]}, "stop"), ["a"]),
        (chunk({"content": "\ud83d"}) + chunk({"content": "\ude00"}, "stop"), ["\U0001f600"]),
        (chunk({"content": "a\u2028b\x85c"}, "stop"), ["a\u2028b\x85c"]),
        (b'data: {"choices": [{"delta":\ndata: {"content": "a"}, "finish_reason": "stop"}]}\n\n', ["a"]),
        (chunk({"refusal": "I cannot"}, "stop"), ["I cannot"]),
    ],
)
def test_streams(body: bytes, pieces: list[str | CutShort]) -> None:
    assert stream_of(chunked(body)) == pieces
    parts = b"".join(b"1\r\n%c\r\n" % byte for byte in body)  # byte by byte
    head = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"
    assert stream_of(head + parts + b"0\r\n\r\n") == pieces


def stream_of(reply: bytes) -> list[str | CutShort]:
    with chat_server(reply) as endpoint:
        return [piece for piece in replied(ChatModel(endpoint=endpoint.url, model="m")) if piece != ""]


def test_an_endpoint_that_does_not_stream() -> None:
    body = json.dumps({"choices": [{"message": {"content": "a"}, "finish_reason": "length"}]}).encode()
    with chat_server((200, body)) as endpoint:
        assert replied(ChatModel(endpoint=endpoint.url, model="m")) == ["a", CutShort("length")]


@pytest.mark.parametrize(
    ("reply", "reason", "message"),
    [
        ((401, b"no key"), "answered 401 Unauthorized", r"\(no key\): check the key"),
        ((404, b"no model"), "answered 404 Not Found", "name of the model"),
        ((500, b""), "answered 500", "see its log"),
        ((302, b""), "answered 302 Found", ""),
        ((200, b"<html>"), "not a chat completion", "'<html>'"),
        ((200, b""), "not a chat completion", ""),
        ((200, b'{"choices": []}'), "not a chat completion", ""),
        ((200, b"[" * 100_000), "not a chat completion", ""),
        ((200, b'{"choices": [{"message": {"content": ["x"]}}]}'), "not a chat completion", ""),
        (chunked(b"data: {nonsense\n\n"), "not a chat completion", "nonsense"),
        (chunked(b"data: " + b"[" * 100_000 + b"\n\n"), "not a chat completion", ""),
        (chunked(b"data: 3\n\n"), "not a chat completion", ""),
        (chunked(b'data: {"choices": [3]}\n\n'), "not a chat completion", ""),
        (chunked(b'data: {"error": {"message": "overloaded"}}\n\n'), "reported an error", "overloaded"),
        (chunked(b'data: {"object": "error", "message": "broke"}\n\n'), "reported an error", "broke"),
        (chunked(chunk({"content": "a"})), "before its reply was complete", ""),
        (chunked(chunk({"content": "a"}), whole=False), "before its reply was complete", ""),
        (b"no HTTP at all\r\n", "before its reply was complete", ""),
        (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nz\r\n", "before its reply was complete", ""),
        (b"HTTP/1.1 500 No\r\nTransfer-Encoding: chunked\r\n\r\nz\r\n", "answered 500 No", ""),
    ],
)
def test_endpoints_that_fail(reply: object, reason: str, message: str) -> None:
    with chat_server(reply) as endpoint:
        chat = ChatModel(endpoint=endpoint.url, model="small")
        with pytest.raises(ChatError, match=message or "chat model") as caught:
            replied(chat)
        assert reason in caught.value.reason
        assert endpoint.url in str(caught.value)
        assert "127.0.0.1" not in caught.value.reason
        assert endpoint.keys == [None]
    with pytest.raises(ChatError, match="cannot be reached"):  # it is gone now
        replied(chat)


def test_a_reply_without_end() -> None:
    body = chunk({"content": "x" * 1_000_000}) * (REPLY_BYTES // 1_000_000 + 1)
    with chat_server(chunked(body)) as endpoint, pytest.raises(ChatError, match="more than 8 MiB"):
        replied(ChatModel(endpoint=endpoint.url, model="m"))
    start = time.process_time()
    pieces = b"".join(b"1\r\nx\r\n" for _ in range(200_000))
    head = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"
    with chat_server(head + pieces + b"0\r\n\r\n") as endpoint, pytest.raises(ChatError):
        replied(ChatModel(endpoint=endpoint.url, model="m"))
    assert time.process_time() - start < 20  # quadratic takes minutes


def test_a_silent_endpoint() -> None:
    import threading

    hold = threading.Event()

    def silent(_request: object) -> str:
        hold.wait(120)
        return "late"

    with chat_server(silent) as endpoint:
        with pytest.raises(ChatError, match=r"sent nothing for 0\.2 s"):
            replied(ChatModel(endpoint=endpoint.url, model="m", timeout_s=0.2))
        hold.set()


def test_half_a_pair_can_be_written() -> None:
    with chat_server("half a pair: \ud800 [1]") as endpoint:
        assert text(ChatModel(endpoint=endpoint.url, model="m")) == "half a pair: \ufffd [1]"


@pytest.mark.parametrize(
    "endpoint",
    ["file:///etc/passwd", "http://localhost:abc/v1", "http://[::1/v1", "http://local host/v1", "http://:80"],
)
def test_no_endpoint(endpoint: str) -> None:
    with pytest.raises(InputError, match="expected a base URL"):
        ChatModel(endpoint=endpoint, model="small")


@pytest.mark.parametrize("timeout_s", [0, -1, float("nan"), 1e20])
def test_no_time(timeout_s: float) -> None:
    with pytest.raises(InputError, match="expected seconds, above 0 and up to 86,400"):
        ChatModel(endpoint="http://localhost/v1", model="small", timeout_s=timeout_s)


@pytest.mark.parametrize("key", ["a\n", "\u043a\u043b\u044e\u0447"])
def test_a_key_that_cannot_be_sent_is_not_shown(key: str) -> None:
    with pytest.raises(InputError, match="has a line end or another character") as caught:
        ChatModel(endpoint="http://localhost/v1", model="small", key=key)
    assert key not in str(caught.value)
    assert "secret" not in repr(ChatModel(endpoint="http://localhost/v1", model="m", key="secret"))


@pytest.mark.parametrize("headers", [{"a b": "x"}, {"a": "x\ny"}, {"": "x"}, {"a": "\u00e9"}])
def test_headers_that_cannot_be_sent(headers: dict[str, str]) -> None:
    with pytest.raises(InputError, match="cannot be sent"):
        ChatModel(endpoint="http://localhost/v1", model="m", headers=headers)


def test_parameters_of_its_own() -> None:
    with pytest.raises(InputError, match="'stream'"):
        ChatModel(endpoint="http://localhost/v1", model="m", parameters={"stream": True})
