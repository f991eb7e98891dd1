"""A headless Chromium for tests of pages, where one is installed."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest

SIZES = {"desktop": (1280, 900), "phone": (390, 844)}


@contextmanager
def browsing(size: str) -> Iterator[tuple[Any, list[str]]]:
    """A page of a Chromium of a size, and what it complains of or asks of other hosts; skips where there is none."""
    playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    program = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if program is None:
        pytest.skip("no Chromium is installed (apt-get install chromium)")
    width, height = SIZES[size]
    with playwright.sync_playwright() as started:
        chromium = started.chromium.launch(executable_path=program, args=["--no-sandbox"])
        context = chromium.new_context(
            viewport={"width": width, "height": height}, has_touch=size == "phone", is_mobile=size == "phone"
        )
        page, complaints = context.new_page(), list[str]()
        page.on("console", lambda said: complaints.append(said.text) if said.type in ("error", "warning") else None)
        page.on("pageerror", lambda error: complaints.append(str(error)))
        page.on("request", lambda asked: None if _is_local(asked.url) else complaints.append(asked.url))
        try:
            yield page, complaints
        finally:
            chromium.close()


def _is_local(address: str) -> bool:
    return address.startswith(("data:", "blob:", "file:", "http://127.0.0.1", "http://localhost", "ws://"))


def swipe(tab: Any, x: float, first: float, last: float) -> float:
    """How far a finger that moves from one height to another scrolls a page."""
    session, steps = tab.context.new_cdp_session(tab), 12
    session.send("Input.dispatchTouchEvent", {"type": "touchStart", "touchPoints": [{"x": x, "y": first}]})
    for step in range(1, steps + 1):
        point = {"x": x, "y": first + (last - first) * step / steps}
        session.send("Input.dispatchTouchEvent", {"type": "touchMove", "touchPoints": [point]})
        tab.wait_for_timeout(16)
    session.send("Input.dispatchTouchEvent", {"type": "touchEnd", "touchPoints": []})
    tab.wait_for_timeout(500)
    return float(tab.evaluate("scrollY"))
