"""A browser for tests, as a person has it."""

from __future__ import annotations

from collections.abc import Sequence

from playwright.sync_api import Page, Playwright, expect

_FLAGS = ("--no-sandbox", "--disable-gpu", "--disable-quic", "--disable-background-networking", "--disable-component-update")


def open_page(playwright: Playwright, chromium: str, *, patience: float, flags: Sequence[str] = ()) -> Page:
    """An empty page of a new browser; the browser ends with Playwright.

    Args:
        playwright: drives it.
        chromium: path of the program.
        patience: seconds that a busy machine has. A page that is right is never waited for this long.
        flags: more arguments of the program.
    """
    browser = playwright.chromium.launch(executable_path=chromium, args=[*_FLAGS, *flags])
    page = browser.new_page(viewport={"width": 1400, "height": 1000})
    page.set_default_timeout(1_000 * patience)
    expect.set_options(timeout=1_000 * patience)
    return page
