"""A browser for tests, as a person has it."""

from __future__ import annotations

from collections.abc import Sequence

from playwright.sync_api import Page, Playwright, expect

_FLAGS = ("--no-sandbox", "--disable-gpu", "--disable-quic", "--disable-background-networking", "--disable-component-update")

#: Texts whose contrast with what is below them is less than WCAG's AA asks for.
PALE = """() => {
  const linear = one => one <= 0.03928 ? one / 12.92 : ((one + 0.055) / 1.055) ** 2.4;
  const light = paint => {
    const [r, g, b] = paint.match(/[0-9]+/g).map(one => linear(one / 255));
    return 0.2126 * r + 0.7152 * g + 0.0722 * b;
  };
  const below = one => {
    for (; one; one = one.parentElement) {
      const paint = getComputedStyle(one).backgroundColor;
      if (paint !== "rgba(0, 0, 0, 0)") return paint;
    }
    return "rgb(255, 255, 255)";
  };
  const contrast = one => {
    const [dark, bright] = [light(getComputedStyle(one).color), light(below(one))];
    return (Math.max(dark, bright) + 0.05) / (Math.min(dark, bright) + 0.05);
  };
  const says = one => [...one.childNodes].some(node => node.nodeType === 3 && node.textContent.trim());
  return [...document.querySelectorAll("body *")].filter(one => one.checkVisibility() && says(one) && contrast(one) < 4.5)
    .map(one => one.textContent);
}"""


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
