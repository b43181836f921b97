"""The search page in headless Chromium: every state, with hits that are made up."""

import asyncio
import json
import threading
from collections.abc import AsyncGenerator, Awaitable, Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any
from urllib.parse import quote

import numpy as np
import pytest
from browser import chromium
from selenium.webdriver import ActionChains, Keys
from selenium.webdriver.common.by import By
from serving import Fake, fake_model, served
from shown_page import Page

from nvembed.errors import InputError
from nvembed.serve.model import (
    ChatEvent,
    IndexFacts,
    SearchQuery,
    ServedChat,
    ServedIndex,
    ServedIndexes,
    ServedModel,
)
from nvembed.serve.refusal import RefusedError
from nvembed.serve.run import Server
from nvembed.serve.settings import ServerSettings

LONG = (
    "Something about mats. " * 30
    + "Judo throws are allowed in freestyle wrestling. "
    + "More about mats. " * 30
)
HOSTILE = {
    "markup": (
        "<script>window.hacked = 1</script>", "<img src=x onerror='window.hacked = 1'>",
        {"title": "<b>bold</b>", "url": "javascript:hacked=1"},
    ),
    "huge": (
        "W" * 30_000, "x" * 3_000 + ".md", {"title": "T" * 500, "headings": ["H" * 400], "note": "n" * 400},
    ),
    "reversed": ("\u202eevil", "invoice\u202egnp.exe", {"title": "Report\u202efdp.exe"}),
    "unseen": ("\u200b\u2060" * 50, "\u200b.md", {"title": "\u200b"}),
    "arabic": ("هل رميات الجودو مسموح بها؟", "عربي.md", {"title": "قواعد المصارعة"}),
    "stacked": ("o" + "\u0301" * 400, "zalgo.md", {}),
    "lines": ("a\n" * 5_000, "lines.md", {f"field {i}": i for i in range(40)}),
}  # fmt: skip


def hit(id_: str, document: str, text: str, metadata: dict[str, Any], *marks: str) -> dict[str, Any]:
    places = [[text.index(word), text.index(word) + len(word)] for word in marks]
    place = {"start": 0, "end": len(text), "text": text, "metadata": metadata, "marks": places}
    return {"score": 0.5, "ranks": {}, "id": id_, "document": document, **place}


HITS = [
    hit(
        "judo#0", "sports/judo.pdf", LONG,
        {"title": "Rules of <i>judo</i>", "page": 3, "headings": ["Rules", "Throws"], "year": 2019,
         "lang": "en", "url": "https://example.org/judo.pdf"}, "Judo throws",
    ),
    hit("radio#0", "radio.md", "🦴 Radiologists train for years.", {"tags": ["a", "b"]}, "train"),
    hit("cat#0", "cat.md", "A cat sleeps.\n\nAll day.", {}),
]  # fmt: skip
HITS += [hit(f"{name}#0", path, text, metadata) for name, (text, path, metadata) in HOSTILE.items()]
BY_ID = {one["id"]: one for one in HITS}
MAP = {
    "format": 1,
    "clusters": [
        {"cluster": 0, "name": "sport, judo", "size": 2, "x": 0.2, "y": 0.5, "color": "#c2544b"},
        {"cluster": 1, "name": "<b>pets</b>" + "x" * 2000, "size": 1, "x": 0.9, "y": 0.9, "color": "#0a7f55"},
    ],
    "points": [
        {"id": "judo#0", "x": 0.1, "y": 0.5, "cluster": 0, "snippet": "Judo"},
        {"id": "radio#0", "x": 0.3, "y": 0.5, "cluster": 0, "snippet": "Radio"},
        {"id": "cat#0", "x": 1.0, "y": 1.0, "cluster": 1, "snippet": "<u>A cat</u>"},
        {"id": "lines#0", "x": 0.5, "y": 0.0, "cluster": -1, "snippet": "a a a"},
    ],
}  # fmt: skip


def find(query: SearchQuery, vectors: Mapping[str, np.ndarray | None]) -> list[dict[str, Any]]:
    """The hits whose id the query names, from each index in turn; 'all' are all; one passage has 0.618."""
    if any("colour" in text for text in query.where):
        raise InputError("no field 'colour' to filter on; this index has <lang>, year")
    if query.id is not None:
        return (
            [{**BY_ID[query.id], "score": 0.618, "index": next(iter(vectors))}] if query.id in BY_ID else []
        )
    chosen = [one for one in HITS if "all" in query.query or one["id"].split("#")[0] in query.query]
    ranks = {"hybrid": ("vector", "text"), "vector": ("vector",), "text": ("text",)}[query.mode]
    if "nothing" in query.query:
        chosen, ranks = ([] if query.mode == "text" or query.where else HITS[:2]), ("vector",)
    names = list(vectors)
    return [
        {**one, "index": names[i % len(names)], "ranks": {name: 2 - i for i, name in enumerate(ranks)}}
        for i, one in enumerate(chosen[: query.top])
    ]


FIELDS = {"lang": "string", "year": "int", "tags": "string[]", 'odd "name"': "date"}


def served_index(name: str, map_json: Any, fields: dict[str, str]) -> ServedIndex:
    facts = IndexFacts("", 512, fields)
    return ServedIndex(name, lambda: facts, lambda: None, json.dumps(map_json).encode())


def index() -> ServedIndexes:
    return ServedIndexes([served_index("manuals", MAP, FIELDS)], find)


@pytest.fixture(scope="module")
def page() -> Iterator[Page]:
    with chromium() as browser:
        yield Page(browser)


def chat() -> ServedChat:
    """A chat model whose answers depend on words of the question."""

    async def answer(
        question: str,
        history: list[dict[str, str]],
        search: Callable[[str], Awaitable[Sequence[dict[str, Any]]]],
    ) -> AsyncGenerator[ChatEvent]:
        query = f"judo radio {question} after {len(history)} messages" if history else question
        if history:
            yield "query", {"query": query}
        hits = await search(query)
        yield "passages", {"hits": [{"number": n, **hit} for n, hit in enumerate(hits, start=1)]}
        if not hits:
            nothing = {"cited": [], "places": [], "absent": [], "unanswered": True}
            yield "answer", {"answer": "", **nothing, "warnings": ["no passage matches the question"]}
            return
        if "fails" in question:
            raise RefusedError(502, "chat_failed", "the chat model cannot be reached")
        yield "text", {"text": "void"}
        yield "restart", {}
        yield "text", {"text": "**Yes** [1"}
        if "slow" in question:
            await asyncio.sleep(600)
        text = "🥋 **Yes** [1], [2].\n\n- `a[1]`\n- <b>no</b> [x](https://example.org)\n\n```\ncode\n```"
        places = [[text.index(f"[{n}]"), text.index(f"[{n}]") + 3, n] for n in (1, 2)]
        facts = {"cited": [1, 2], "places": places, "absent": []}
        yield "text", {"text": "]"}
        yield "answer", {"answer": text, **facts, "unanswered": False, "warnings": ["Check it."]}

    return ServedChat("chat", answer)


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    with served(fake_model(Fake(touchy=False)), index_of=index(), chat=chat()) as server:
        yield server


def opened(page: Page, server: Server, address: str = "") -> None:
    """Open the page at 1280 pixels and wait until it has drawn the map and the hits."""
    page.resize(1280, 900)
    page.open("about:blank")
    page.open(f"{server.url}/page/search{address}")
    page.until(lambda: page.texts("#clusters button"))
    if "q=" in address:
        page.until(lambda: page.text("#message") not in ("", "Searching …"))


def expand_all(page: Page, opening: bool) -> None:
    script = "for (const one of document.querySelectorAll('#hits > li')) one.expand(arguments[0])"
    page.js(script, opening)


def titles(page: Page) -> list[str]:
    return page.texts("#hits h3")


def test_a_search_is_in_the_address(page: Page, server: Server) -> None:
    opened(page, server)
    assert page.focused() == "query"
    page.press("judo radio", Keys.ENTER)
    page.until(lambda: titles(page) == ["Rules of <i>judo</i>", "radio.md"])
    assert page.address() == "?q=judo radio"
    page.click("input[value=text]")
    page.until(lambda: "words 2nd" in page.text("#hits .facts"))
    assert page.address() == "?q=judo radio&mode=text"
    page.click("#hits .facts button", "year: 2019")
    page.until(lambda: page.address() == "?q=judo radio&mode=text&where=year = 2019")
    page.click("#hits h3 a")
    page.until(lambda: page.address().endswith("&hit=judo#0"))

    page.browser.back()
    page.until(lambda: not page.texts("#hits .chosen"))
    page.browser.back()
    page.until(lambda: page.value("#where") == "" and page.address() == "?q=judo radio&mode=text")
    page.browser.back()
    page.until(lambda: page.text("#hits .facts").startswith("meaning 2nd, words 1st"))
    page.browser.back()
    page.until(lambda: page.value("#query") == "" and not titles(page))
    page.browser.forward()
    page.until(lambda: len(titles(page)) == 2 and page.value("#query") == "judo radio")


def test_a_link_opens_a_passage(page: Page, server: Server) -> None:
    opened(page, server, f"?q=judo&hit={quote('judo#0')}")
    page.until(lambda: page.texts("#hits .chosen"))
    assert page.text("#hits .chosen .text") == LONG.strip()
    opened(page, server, f"?q=judo&hit={quote('cat#0')}")  # it is not one of the hits
    page.until(lambda: page.texts("#picked h3") == ["cat.md"])
    page.click("#unpick")
    assert page.address() == "?q=judo"
    assert not page.texts("#picked h3")
    opened(page, server, "?hit=gone")
    page.until(lambda: "not in the index" in page.text("#message"))


def test_a_passage(page: Page, server: Server) -> None:
    opened(page, server, "?q=judo+radio")
    first = "#hits > li:first-child"
    assert page.texts(f"{first} .place bdi") == ["sports/judo.pdf", "page 3", "Rules › Throws"]
    assert page.texts(f"{first} mark") == ["Judo throws"]
    assert page.texts("#hits > li:last-child mark") == ["train"], "marks count code points"
    text = page.text(f"{first} .text")
    assert text.startswith("… ")
    assert text.endswith(" …")
    assert 200 < len(text) < 500
    page.click(f"{first} .actions button", "more")
    assert page.text(f"{first} .text") == LONG.strip()
    assert page.attribute(f"{first} .actions button", "aria-expanded") == "true"
    page.click(f"{first} .actions button", "less")
    assert page.text(f"{first} .text") == text

    page.click(f"{first} .facts button", "cosine")
    page.until(lambda: "cosine 0.618" in page.text(f"{first} .facts"))
    links = f"{first} .actions a"
    assert page.attribute(links, "href") == "https://example.org/judo.pdf"
    assert "noreferrer" in (page.attribute(links, "rel") or "")

    permissions = {"permissions": ["clipboardReadWrite", "clipboardSanitizedWrite"], "origin": server.url}
    page.browser.execute_cdp_cmd("Browser.grantPermissions", permissions)
    clipboard = "const done = arguments[0]; navigator.clipboard.readText().then(done, (e) => done(String(e)))"
    page.click(f"{first} .actions button", "Copy text")
    page.until(lambda: page.texts(f"{first} .actions button")[1] == "Copied")
    assert page.browser.execute_async_script(clipboard) == LONG
    page.click(f"{first} .actions button", "Copy link")
    page.until(lambda: page.texts(f"{first} .actions button")[2] == "Copied")
    assert page.browser.execute_async_script(clipboard).endswith("?q=judo+radio&hit=judo%230")


def test_the_keyboard(page: Page, server: Server) -> None:
    opened(page, server, "?q=judo+radio")
    page.press(Keys.ARROW_DOWN)
    assert page.focused().startswith("li Rules")
    page.press(Keys.ARROW_DOWN)
    assert page.focused().startswith("li radio.md")
    page.press(Keys.ENTER)
    page.until(lambda: page.address().endswith("hit=radio#0"))
    page.press(Keys.ARROW_UP, Keys.ARROW_UP)
    assert page.focused() == "query"
    page.press(Keys.ARROW_DOWN, "/")
    assert page.focused() == "query"


def test_filters(page: Page, server: Server) -> None:
    opened(page, server, "?q=judo")
    page.click("summary")
    assert page.texts("#fields button") == ["lang", "year", "tags", 'odd "name"']
    page.click("#fields button", 'odd "name"')
    assert page.value("#where") == '"odd ""name""" = '
    page.fill("#where", "colour = red", Keys.ENTER)
    page.until(lambda: "no field 'colour' to filter on; this index has <lang>" in page.text("#where-error"))
    assert page.focused() == "where"
    assert page.attribute("#where", "aria-invalid") == "true"
    assert not titles(page)
    page.fill("#where", 'lang = "en"', Keys.ENTER)
    page.until(lambda: titles(page) and not page.text("#where-error"))
    page.click("#hits .facts button", "lang: en")
    page.until(lambda: "Searching" not in page.text("#message"))
    assert page.value("#where") == 'lang = "en"', "the condition is there already"


def test_no_hits(page: Page, server: Server) -> None:
    opened(page, server, "?q=nothing")
    assert "No passage has a word of the query" in page.text("#message")
    assert len(titles(page)) == 2
    opened(page, server, "?q=nothing&mode=text")
    assert "No passage has these words" in page.text("#message")
    page.click("#advice button", "meaning")
    page.until(lambda: len(titles(page)) == 2)
    assert page.address() == "?q=nothing&mode=vector"
    opened(page, server, "?q=nothing&where=year+%3D+1")
    page.click("#advice button", "without the filter")
    page.until(lambda: len(titles(page)) == 2)


def test_more_passages(page: Page, server: Server) -> None:
    opened(page, server, "?q=all&top=5")
    assert len(titles(page)) == 5
    page.click("#more-hits")
    page.until(lambda: len(titles(page)) == len(HITS))
    assert page.address() == "?q=all&top=15"
    assert page.focused().startswith("li ")


def test_the_map(page: Page, server: Server) -> None:
    opened(page, server, "?q=judo")
    assert page.texts("#clusters bdi")[0] == "sport, judo"
    assert page.texts("#clusters bdi")[-1] == "in no cluster"
    dot = "return getComputedStyle(document.querySelector('#clusters i')).backgroundColor"
    assert page.js(dot) == "rgb(194, 84, 75)"
    drawn = (
        "const c = document.getElementById('map');"
        "const d = c.getContext('2d').getImageData(0, 0, c.width, c.height).data;"
        "let n = 0; for (let i = 0; i < d.length; i += 4) if (d[i] === 194 && d[i + 1] === 84) n++; return n"
    )
    assert page.js(drawn) > 0, "points have the colours of the legend"

    canvas = page.browser.find_element(By.ID, "map")
    side = min((canvas.size["width"] - 28), (canvas.size["height"] - 28))
    ActionChains(page.browser).move_to_element_with_offset(canvas, side // 2, -side // 2).click().perform()
    page.until(lambda: page.texts("#picked h3") == ["cat.md"])
    assert page.text("#map-message").endswith("<u>A cat</u>")
    assert page.value("#query") == "judo"
    assert page.address() == "?q=judo&hit=cat#0"

    page.js("document.getElementById('map').focus()")
    page.press(Keys.ESCAPE, Keys.ARROW_RIGHT)  # the open passage
    assert page.text("#map-message").endswith("<u>A cat</u>")
    page.press(Keys.ARROW_LEFT, Keys.ARROW_LEFT)
    page.until(lambda: page.text("#map-message") == "sport, judo: Judo")
    page.press(Keys.ENTER)
    page.until(lambda: page.texts("#hits .chosen h3") == ["Rules of <i>judo</i>"])

    assert page.js("return document.getElementById('zoom-out').disabled")
    page.click("#zoom-in")
    assert not page.js("return document.getElementById('zoom-out').disabled")
    page.click("#zoom-all")
    assert page.js("return document.getElementById('zoom-out').disabled")
    page.click("#clusters button")
    assert page.attribute("#clusters button", "aria-pressed") == "true"


@pytest.mark.parametrize("width", [1280, 390])
def test_files_from_strangers(page: Page, server: Server, width: int) -> None:
    opened(page, server, "?q=all")
    page.resize(width, 800)
    for opening in (False, True):
        page.js(
            "for (const one of document.querySelectorAll('#hits > li')) one.expand(arguments[0])", opening
        )
        assert not page.scrolls_sideways()
        inside = (
            "return [...document.querySelectorAll('#hits *')].filter((e) => e.checkVisibility() && "
            "e.getBoundingClientRect().right > innerWidth + 1).map((e) => e.className)"
        )
        assert page.js(inside) == []
    assert page.js(
        "return [window.hacked ?? null, document.querySelectorAll('main img, main script').length]"
    ) == [None, 0]
    assert page.js(
        "return [...document.querySelectorAll('#hits a')].every((a) => a.protocol.startsWith('http'))"
    )
    named = page.texts("#hits h3")
    assert "<b>bold</b>" in named
    assert "Report▯fdp.exe" in named, "characters that turn the direction are shown"
    assert all(named)
    assert "(no visible text)" in page.texts("#hits .text")
    for shown in ("#query", "#instruction", "#hits h3", "#hits .text", "#map-message"):
        assert page.attribute(shown, "dir") == "auto", shown
    assert page.breaches() == []


@pytest.mark.parametrize(("width", "scheme"), [(1280, "light"), (390, "dark")])
def test_accessibility(page: Page, server: Server, width: int, scheme: str) -> None:
    opened(page, server, "?q=all&where=year+%3D+1")
    page.resize(width, 800, scheme=scheme)
    expand_all(page, True)
    faults = page.accessibility_faults()
    if faults is None:
        pytest.skip("axe-core is not installed: pip install --no-deps axe-playwright-python")
    assert faults == []


def asked(page: Page, question: str) -> None:
    page.fill("#query", question, Keys.ENTER)
    page.until(lambda: page.texts(".turn h3")[:1] == [question])


def test_an_answer(page: Page, server: Server) -> None:
    opened(page, server, "?view=ask&q=judo+radio")
    page.until(lambda: "Press Ask" in page.text("#message"))
    assert not page.texts(".turn"), "a link asks nothing by itself"
    page.click("#go")
    page.until(lambda: page.texts(".turn .actions button"))
    assert page.text(".turn .answer p") == "🥋 Yes 1, 2."
    assert page.texts(".turn .answer :is(strong, code, pre)") == ["Yes", "a[1]", "code"]
    assert page.texts(".turn .answer li")[1] == "<b>no</b> [x](https://example.org)"
    assert page.text(".turn .message") == "Check it."
    assert titles(page) == ["Rules of <i>judo</i>", "radio.md"]
    assert page.texts("#hits .badge") == ["cited", "cited"]
    page.click(".cite", "2")
    page.until(lambda: page.texts("#hits .chosen h3") == ["radio.md"])
    assert page.address() == "?view=ask&q=judo radio&hit=radio#0"
    assert page.accessibility_faults() in ([], None)

    asked(page, "cat?")  # a follow-up question
    page.until(lambda: "judo radio cat? after 2 messages" in page.text(".turn .hint"))
    page.until(lambda: page.texts(".turn .actions button"))
    assert titles(page)[-1] == "cat.md"
    page.browser.back()
    page.browser.back()
    page.until(lambda: titles(page) == ["Rules of <i>judo</i>", "radio.md"])
    page.click("#new-talk")
    assert not page.texts(".turn")
    assert not titles(page)


def test_answers_that_fail_or_are_stopped(page: Page, server: Server) -> None:
    opened(page, server, "?view=ask")
    asked(page, "judo fails")
    page.until(lambda: "cannot be reached" in page.text(".turn .message"))
    assert page.texts(".turn .actions button") == ["Ask again"]
    asked(page, "judo slow")
    page.until(lambda: page.text(".turn .answer") == "Yes [1")
    page.click("#stop")
    page.until(lambda: page.text(".turn .message") == "Stopped.")
    assert not page.texts("#stop")
    asked(page, "nobody")
    page.until(lambda: "no passage" in page.text(".turn .message"))


def test_the_key(page: Page) -> None:
    with served(fake_model(), index_of=index(), api_key=("secret",)) as server:
        page.open(f"{server.url}/page/search?q=judo")
        page.until(lambda: page.texts("dialog"))
        page.press("ключ", Keys.ENTER)  # no header can hold it
        assert page.js("return document.getElementById('key').validity.valid") is False
        page.fill("#key", "wrong", Keys.ENTER)
        page.until(lambda: "Unknown API key" in page.text("dialog"))
        page.press("secret", Keys.ENTER)
        page.until(lambda: titles(page) == ["Rules of <i>judo</i>"])
        assert page.js("return [localStorage.length, sessionStorage.length, document.cookie]") == [0, 0, ""]
        hosts = (
            "return [...new Set(performance.getEntriesByType('resource').map((e) => new URL(e.name).origin))]"
        )
        assert page.js(hosts) == [server.url]


def test_a_model_that_loads_and_a_server_that_has_gone(page: Page) -> None:
    loaded = threading.Event()

    def load() -> ServedModel:
        assert loaded.wait(120)
        return replace(fake_model(), fingerprint="1" * 32)

    server = Server(ServerSettings(model="fake", port=0), load, index())
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        page.open(f"{server.url}/page/search?q=judo")
        page.until(lambda: "The model is loading" in page.text("#message"))
        loaded.set()
        page.until(lambda: titles(page) == ["Rules of <i>judo</i>"])
    finally:
        loaded.set()
        server.stop()
        thread.join(120)
    page.fill("#query", "radio", Keys.ENTER)
    page.until(lambda: "The server does not answer" in page.text("#message"))
    assert not titles(page)
    assert page.texts("#advice button") == ["Try again"]


def test_several_indexes(page: Page) -> None:
    more = {**MAP, "clusters": [{**MAP["clusters"][0], "name": "other"}]}  # type: ignore[index]
    both = [served_index("manuals", MAP, {"year": "int"}), served_index("<b>news", more, {"lang": "string"})]
    with served(fake_model(Fake(touchy=False)), index_of=ServedIndexes(both, find)) as server:
        opened(page, server, "?q=judo+radio")
        assert page.texts("#indexes label") == ["manuals", "<b>news"]
        assert page.texts("#fields button") == []
        assert [text.split(" · ")[0] for text in page.texts("#hits .place bdi:first-child")] == [
            "manuals",
            "<b>news",
        ]
        page.click("#hits > li:last-child h3 a")
        assert page.address() == "?q=judo radio&hit=radio#0&of=<b>news"
        page.click("#indexes input[value=manuals]")
        page.until(lambda: page.address() == "?q=judo radio&index=<b>news")
        page.until(lambda: page.texts("#hits .place bdi:first-child") == ["<b>news", "<b>news"])
        page.browser.back()
        page.until(lambda: page.js("return document.querySelector('#indexes input').checked"))

        assert page.js("return document.getElementById('map-index').textContent") == "manuals<b>news"
        choice = page.browser.find_element(By.ID, "map-index")
        choice.send_keys(Keys.ARROW_DOWN)
        page.until(lambda: page.texts("#clusters bdi")[0] == "other")
        page.click("summary")
        assert page.texts("#fields button") == ["year", "lang"]


def test_without_an_index(page: Page) -> None:
    with served(fake_model()) as server:
        page.open(f"{server.url}/page/search")
        page.until(lambda: "no index" in page.text("#message"))
        assert page.js("return document.getElementById('go').disabled")
