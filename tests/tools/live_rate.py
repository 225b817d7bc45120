"""Pictures a second that live mode shows while somebody types: `python -m tests.tools.live_rate`.

Starts the server with the pairs inside the package, and Chromium, which must be on the machine.
"""

from __future__ import annotations

import time

from playwright.sync_api import sync_playwright

from tests.tools.screenshots import server

SECONDS = 10.0
DELAYS_MS = (15, 40, 80)
"""Between keys; the browser adds its own."""

TEXT = "a photo of a frog, in the middle of a sandy beach with green trees and a red house "
COUNT = """() => {
  window.shownCount = 0;
  const options = { attributes: true, attributeFilter: ["src"] };
  new MutationObserver(() => window.shownCount++)
    .observe(document.getElementById("shown"), options);
}"""


def main() -> None:
    """Type, and count."""
    with server() as url, sync_playwright() as playwright:
        browser = playwright.chromium.launch(
            executable_path="/usr/bin/chromium", args=["--no-sandbox", "--disable-gpu"]
        )
        for delay_ms in DELAYS_MS:
            page = browser.new_page()
            page.goto(url)
            page.click("#examples li:first-child button")
            page.evaluate("document.querySelector('input[name=mode][value=live]').click()")
            page.wait_for_timeout(2000)
            page.evaluate(COUNT)
            page.fill("#prompt", "")
            keys, begin_s = 0, time.perf_counter()
            while time.perf_counter() - begin_s < SECONDS:
                if keys % len(TEXT) == 0:
                    page.fill("#prompt", "")
                letter = TEXT[keys % len(TEXT)]
                page.locator("#prompt").press_sequentially(letter, delay=delay_ms)
                keys += 1
            took_s = time.perf_counter() - begin_s
            shown = page.evaluate("window.shownCount")
            print(f"{keys / took_s:.1f} keys a second: {shown / took_s:.1f} pictures a second")
            page.close()
        browser.close()


if __name__ == "__main__":
    main()
