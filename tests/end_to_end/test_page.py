"""The server's page in headless Chromium: figures, heat maps, key, keyboard; it needs no other host."""

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from browser import chromium
from selenium.webdriver import Chrome, Keys
from selenium.webdriver.common.by import By
from selenium.webdriver.support.ui import WebDriverWait
from serving import Fake, ask, fake_model, served, tokenise, vector

from nvembed.serve.run import Server
from nvembed.text.prompt import format_prompt

QUERIES = ["are <b>throws</b> allowed?", "how do I train?"]
PASSAGES = ["Throws are allowed.", "Train for years.", "Shoes"]


@pytest.fixture(scope="module")
def browser() -> Iterator[Chrome]:
    with chromium() as browser:
        yield browser


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    with served(fake_model(Fake(touchy=False)), api_key=("secret",), max_items=5) as server:
        yield server


def until(browser: Chrome, what: Any) -> Any:
    return WebDriverWait(browser, 120, 0.05).until(what)


def entered(browser: Chrome, url: str) -> None:
    """Open the page and give it the key, on the keyboard alone."""
    browser.get(url)
    until(browser, lambda b: b.find_elements(By.CSS_SELECTOR, "dialog[open]"))
    browser.switch_to.active_element.send_keys("wrong", Keys.ENTER)
    until(browser, lambda b: "Unknown API key" in b.find_element(By.CSS_SELECTOR, "dialog").text)
    browser.switch_to.active_element.send_keys("secret", Keys.ENTER)
    until(browser, lambda b: b.find_element(By.ID, "status").text == "ready")


def fill(browser: Chrome, name: str, text: str) -> None:
    field = browser.find_element(By.ID, name)
    field.clear()
    field.send_keys(text)


def numbers(browser: Chrome, place: int) -> np.ndarray:
    table = browser.find_elements(By.CSS_SELECTOR, ".heat")[place]
    rows = table.find_elements(By.CSS_SELECTOR, "tbody tr")
    return np.array([[float(c.text) for c in row.find_elements(By.TAG_NAME, "td")] for row in rows])


def unit(texts: list[str], prompt: str = "") -> np.ndarray:
    return np.stack([vector(item.input_ids) for item in tokenise(texts, prompt=prompt)])


def cosines(queries: list[str], passages: list[str], prompt: str = "") -> np.ndarray:
    return unit(queries, prompt) @ unit(passages).T


def test_key_status_and_heat_map(browser: Chrome, server: Server) -> None:
    entered(browser, server.url)
    assert browser.find_element(By.ID, "model").text == "fake"
    assert "8 dimensions, float32" in browser.find_element(By.ID, "facts").text
    assert not browser.find_element(By.ID, "to-search").is_displayed()

    fill(browser, "queries", "\n".join(QUERIES))
    fill(browser, "passages", "\n".join(PASSAGES))
    fill(browser, "instruction", "Find it")
    browser.switch_to.active_element.send_keys(Keys.CONTROL, Keys.ENTER)
    until(browser, lambda b: len(b.find_elements(By.CSS_SELECTOR, ".heat")) == 2)
    prompted = cosines(QUERIES, PASSAGES, format_prompt("Find it"))
    np.testing.assert_allclose(numbers(browser, 0), prompted, atol=6e-4)
    np.testing.assert_allclose(numbers(browser, 1), cosines(QUERIES, PASSAGES), atol=6e-4)
    assert browser.find_element(By.CSS_SELECTOR, ".heat tbody th").text == QUERIES[0], "markup stays text"
    for shown in ("#queries", "#passages", "#instruction", ".heat thead th span", ".heat tbody th span"):
        # from right to left where the text is
        assert browser.find_element(By.CSS_SELECTOR, shown).get_attribute("dir") == "auto", shown
    until(browser, lambda b: b.find_element(By.ID, "total-texts").text == "7 texts")

    fill(browser, "passages", "")
    fill(browser, "instruction", "")
    browser.find_element(By.ID, "go").send_keys(Keys.ENTER)
    until(browser, lambda b: len(b.find_elements(By.CSS_SELECTOR, ".heat")) == 1)
    np.testing.assert_allclose(numbers(browser, 0), cosines(QUERIES, QUERIES), atol=6e-4)

    fill(browser, "queries", "\n".join("abcdef"))
    browser.find_element(By.ID, "go").send_keys(Keys.ENTER)
    until(browser, lambda b: "bad" in b.find_element(By.ID, "message").get_attribute("class"))
    assert "max_items" in browser.find_element(By.ID, "message").text

    kept = "return [localStorage.length, sessionStorage.length, document.cookie]"
    assert browser.execute_script(kept) == [0, 0, ""]
    hosts = "return [...new Set(performance.getEntriesByType('resource').map((e) => new URL(e.name).origin))]"
    assert browser.execute_script(hosts) == [server.url]
    messages = [line["message"] for line in browser.get_log("browser")]
    assert all("status of 401" in line or "status of 413" in line for line in messages), (
        "no breach of the policy"
    )


def test_narrow_screens_do_not_scroll_sideways(browser: Chrome, server: Server) -> None:
    size = {"width": 360, "height": 800, "deviceScaleFactor": 1, "mobile": True}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
    entered(browser, server.url)
    browser.find_element(By.ID, "go").send_keys(Keys.ENTER)
    until(browser, lambda b: len(b.find_elements(By.CSS_SELECTOR, ".heat")) == 2)
    assert browser.execute_script("return document.documentElement.scrollWidth") == 360
    browser.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})


def test_a_server_that_has_gone(browser: Chrome) -> None:
    with served(fake_model()) as server:
        browser.get(server.url)
        until(browser, lambda b: b.find_element(By.ID, "status").text == "ready")
    until(browser, lambda b: b.find_element(By.ID, "status").text == "no answer")
    browser.find_element(By.ID, "go").send_keys(Keys.ENTER)
    until(browser, lambda b: "server does not answer" in b.find_element(By.ID, "message").text)


def test_files_need_no_key_and_forbid_other_hosts(server: Server) -> None:
    for path in ("/", "/page/status.js", "/page/style.css", "/page/icon.svg"):
        got = ask(server, path)
        assert got.status == 200
        policy = got.headers["content-security-policy"]
        assert policy.startswith("default-src 'none'")
        assert "unsafe" not in policy
        assert "http" not in policy
        assert got.headers["x-content-type-options"] == "nosniff"
        assert b"//" not in got.body.replace(b"// ", b"").replace(b"http://www.w3.org/2000/svg", b"")
    assert ask(server, "/page/../pages.py").status == 401
    assert ask(server, "/stats").status == 401
