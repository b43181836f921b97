"""A page in a browser, driven as a person would; axe-core checks its accessibility."""

from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from selenium.webdriver import Chrome
from selenium.webdriver.common.by import By
from selenium.webdriver.support.ui import WebDriverWait

PATIENCE_S = 120


class Page:
    """An open browser. Elements are named by CSS selectors."""

    def __init__(self, browser: Chrome) -> None:
        self.browser = browser

    def open(self, url: str) -> None:
        self.browser.get(url)

    def until(self, condition: Callable[[], object]) -> None:
        WebDriverWait(self.browser, PATIENCE_S, 0.02).until(lambda _: condition())

    def js(self, script: str, *arguments: Any) -> Any:
        return self.browser.execute_script(script, *arguments)

    def texts(self, selector: str) -> list[str]:
        """Return the texts of visible elements, read at once: they may be replaced meanwhile."""
        script = (
            "return [...document.querySelectorAll(arguments[0])].filter((e) => e.checkVisibility())"
            ".map((e) => e.textContent.trim())"
        )
        return self.js(script, selector)

    def text(self, selector: str) -> str:
        return "".join(self.texts(selector)[:1])

    def value(self, selector: str) -> str:
        return self.js("return document.querySelector(arguments[0]).value", selector)

    def attribute(self, selector: str, name: str) -> str | None:
        return self.js(
            "return document.querySelector(arguments[0]).getAttribute(arguments[1])", selector, name
        )

    def click(self, selector: str, text: str = "") -> None:
        """Click the first visible element, or the first with this text."""
        for element in self.browser.find_elements(By.CSS_SELECTOR, selector):
            if element.is_displayed() and text in element.text:
                self.js("arguments[0].scrollIntoView({block: 'center'})", element)
                element.click()
                return
        raise AssertionError(f"no {selector} with {text!r}")

    def fill(self, selector: str, text: str, *keys: str) -> None:
        self.js("document.querySelector(arguments[0]).value = ''", selector)
        self.browser.find_element(By.CSS_SELECTOR, selector).send_keys(text, *keys)

    def press(self, *keys: str) -> None:
        self.browser.switch_to.active_element.send_keys(*keys)

    def focused(self) -> str:
        """Return the id of the focused element, or its tag and text."""
        return self.js("const e = document.activeElement; return e.id || e.localName + ' ' + e.textContent")

    def address(self) -> str:
        return self.js("return decodeURIComponent(location.search.replaceAll('+', ' '))")

    def resize(self, width: int, height: int, *, scheme: str = "light") -> None:
        size = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": width < 500}
        self.browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
        media = {"features": [{"name": "prefers-color-scheme", "value": scheme}]}
        self.browser.execute_cdp_cmd("Emulation.setEmulatedMedia", media)

    def scrolls_sideways(self) -> bool:
        return self.js("return document.documentElement.scrollWidth > innerWidth")

    def breaches(self) -> list[str]:
        """Return messages of the console, without those of refused requests."""
        lines = [line["message"] for line in self.browser.get_log("browser")]
        return [line for line in lines if "Failed to load resource" not in line]

    def accessibility_faults(self) -> list[str] | None:
        """Return what axe-core finds, or None if it is not installed."""
        package = find_spec("axe_playwright_python")
        if package is None or package.origin is None:
            return None
        script = (Path(package.origin).parent / "axe.min.js").read_text(encoding="utf-8")
        self.js(f"{script}; window.axe = axe;")
        run = (
            "const done = arguments[arguments.length - 1]; axe.run().then((all) => "
            "done(all.violations.flatMap((v) => v.nodes.map((n) => v.id + ' ' + n.html))))"
        )
        return self.browser.execute_async_script(run)
