"""The live page in a real Chromium: chat, stop, and charts that move while streams run."""

from __future__ import annotations

import shutil
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from served import Server

playwright = pytest.importorskip("playwright.sync_api")
pytestmark = pytest.mark.browser


@pytest.fixture
def page(server: Server) -> Iterator[playwright.Page]:
    path = shutil.which("chromium")
    assert path, "there is no chromium: apt-get install chromium"
    with playwright.sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=path, args=["--no-sandbox"])
        page = browser.new_page(viewport={"width": 1180, "height": 860})
        faults: list[str] = []
        page.on("pageerror", lambda error: faults.append(str(error)))
        page.on("console", lambda message: faults.append(message.text) if message.type == "error" else None)
        page.goto(server.url)
        yield page
        assert faults == []
        browser.close()


def until(page: playwright.Page, expression: str) -> None:
    """Waits; playwright's own way needs `eval`, which the page's content security policy forbids."""
    for _ in range(600):
        if page.evaluate(expression):
            return
        page.wait_for_timeout(50)
    raise AssertionError(expression)


def ask(page: playwright.Page, text: str) -> None:
    page.fill("#text", text)
    page.press("#text", "Enter")


def painted(page: playwright.Page, canvas: str) -> str:
    return str(page.evaluate(f"document.getElementById('{canvas}').toDataURL()"))


def test_chat_and_stop(page: playwright.Page) -> None:
    ask(page, "Tell me a tale of a dog")
    until(page, "document.querySelector('.message.assistant')?.textContent.length > 20")
    page.click("#stop")
    until(page, "document.querySelector('#stop').disabled")
    text = page.text_content(".message.assistant")
    page.wait_for_timeout(500)
    assert page.text_content(".message.assistant") == text
    # The conversation goes on.
    ask(page, "And then?")
    until(page, "document.querySelectorAll('.message.assistant')[1]?.textContent.length > 5")
    page.click("#clear")
    assert page.query_selector_all(".message") == []


def test_charts_move(page: playwright.Page, server: Server, pytestconfig: pytest.Config) -> None:
    until(page, "document.querySelector('#state').textContent === 'ready'")
    still = {canvas: painted(page, canvas) for canvas in ("lanes", "tokens", "batch", "pages")}
    enough = threading.Event()

    def stream(seed: int) -> None:
        while not enough.is_set():
            body = {"prompt": "Once upon a time", "max_tokens": 300, "seed": seed, "ignore_eos": True}
            for _ in server.stream("/v1/completions", body):
                if enough.is_set():
                    return

    threads = [threading.Thread(target=stream, args=(seed,)) for seed in range(8)]
    for thread in threads:
        thread.start()
    try:
        until(page, "document.querySelector('#running').textContent.startsWith('8 of 16')")
        until(page, "+document.querySelector('#speed').textContent > 8")
        until(page, "document.querySelector('#memory').textContent.includes('MiB')")
        before = {canvas: painted(page, canvas) for canvas in still}
        folder = pytestconfig.getoption("--screenshots")
        if folder:
            ask(page, "Tell me a tale of a dog")
            page.wait_for_timeout(4000)
            page.screenshot(path=Path(folder) / "live-page.png")
        page.wait_for_timeout(500)
        for canvas, picture in before.items():
            assert picture != still[canvas], f"{canvas} shows nothing of the work"
            assert picture != painted(page, canvas), f"{canvas} stands still"
    finally:
        enough.set()
        for thread in threads:
            thread.join()
