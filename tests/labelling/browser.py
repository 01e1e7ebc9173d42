"""Real browsers: Debian's Chromium, driven by Playwright."""

import contextlib

from playwright.sync_api import sync_playwright

from tests.support.chromium import WHERE

ARGUMENTS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]


@contextlib.contextmanager
def chromium():
    """Run a browser for the length of a block."""
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(
            executable_path=WHERE, headless=True, args=ARGUMENTS, chromium_sandbox=False
        )
        try:
            yield browser
        finally:
            browser.close()


def join(context, link):
    """Open an invitation in a window and return its page, with the first task on it."""
    page = context.new_page()
    page.goto(link)
    page.keyboard.press("Enter")  # the button has the focus
    page.wait_for_url(lambda url: "/join" not in url)
    return page
