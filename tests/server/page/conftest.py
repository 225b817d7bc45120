"""A real browser at the page of a real server."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from playwright.sync_api import Browser, BrowserContext, Page

HERE = Path(__file__).parent

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
FLAGS = (
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
)
DESK = {"width": 1280, "height": 900}
PHONE = {"width": 390, "height": 844}
# A browser reports every answer that is no success; pages that are refused something see these.
REFUSALS = "Failed to load resource"
RULES = ["wcag2a", "wcag2aa", "wcag21a", "wcag21aa", "wcag22aa", "best-practice"]


@dataclass
class Chromium:
    """One browser for all tests of this folder.

    Playwright's driver runs an event loop on the thread of the tests, beside which tests of other
    folders could run none of their own. So it ends with the last test here, and not with the
    session; a fixture has no such scope in a folder that is no package.

    To make a browser context costs as much as to open our page in it. So those who ask for nothing
    special get the same one, `usual`, of which `forget` clears all that a page can leave.
    """

    driver: Any = None
    browser: Browser | None = None
    usual: BrowserContext | None = None

    def get(self) -> Browser:
        """The browser, started if it is not."""
        if CHROMIUM is None:
            pytest.skip("no Chromium on this machine: apt-get install chromium")
        playwright = pytest.importorskip("playwright.sync_api", reason="no Playwright")
        if self.browser is None:
            self.driver = playwright.sync_playwright()
            launch = self.driver.__enter__().chromium.launch
            self.browser = launch(executable_path=CHROMIUM, args=FLAGS)
        return self.browser

    def context(self, options: dict[str, Any]) -> tuple[BrowserContext, bool]:
        """A context, and whether it is the usual one, which others use after."""
        if options:
            return self._new_context(options), False
        if self.usual is None:
            self.usual = self._new_context({})
            self.usual.new_page()  # while it is open the next page has a process to run in
        return self.usual, True

    def _new_context(self, options: dict[str, Any]) -> BrowserContext:
        options = {"viewport": DESK, "reduced_motion": "reduce"} | options
        context = self.get().new_context(**options)
        context.set_default_timeout(60_000)
        return context

    def forget(self, urls: list[str]) -> None:
        """Leave the usual context as it was, without what pages at some addresses kept."""
        assert self.usual is not None
        self.usual.set_offline(False)
        self.usual.clear_cookies()
        self.usual.clear_permissions()
        session = self.usual.new_cdp_session(self.usual.pages[0])
        for url in urls:
            what = {"origin": url, "storageTypes": "all"}
            session.send("Storage.clearDataForOrigin", what)
        session.detach()

    def close(self) -> None:
        """End it. May be called when there is none."""
        if self.browser is not None:
            self.browser.close()
        if self.driver is not None:
            self.driver.__exit__()
        self.browser = self.driver = self.usual = None


_chromium = Chromium()


@pytest.hookimpl(wrapper=True)
def pytest_runtest_teardown(item: pytest.Item, nextitem: pytest.Item | None) -> Iterator[None]:
    """Close the browser after the last test of this folder, when its fixtures are gone."""
    try:
        return (yield)
    finally:
        if nextitem is None or not nextitem.path.is_relative_to(HERE):
            _chromium.close()


@pytest.fixture
def browser() -> Browser:
    """Chromium, without a window."""
    return _chromium.get()


@dataclass
class Visit:
    """A page that is open, and what it complained of."""

    page: Page
    complaints: list[str] = field(default_factory=list)

    @property
    def state(self) -> str:
        """Of the stage: `empty`, `drawing`, `live`, `done` or `failed`."""
        return self.page.locator("#stage").get_attribute("data-state") or ""

    def wait_for(self, state: str) -> None:
        """Until the stage is in a state."""
        self.page.wait_for_selector(f"#stage[data-state={state}]")

    def wait_for_pictures(self, count: int) -> None:
        """Until so many are in the gallery, and nothing is being drawn."""
        self.page.wait_for_function(
            "count => document.querySelectorAll('#pictures li').length === count", arg=count
        )
        self.wait_for("done")

    def draw(self, prompt: str = "", **settings: object) -> None:
        """Fill the form and press the button."""
        if prompt:
            self.page.fill("#prompt", prompt)
        self.set(**settings)
        self.page.click("#draw")

    def draw_at_once(self, **fields: object) -> None:
        """Fill fields and press the button within the page, before a quick engine has drawn."""
        self.page.evaluate(
            """fields => {
                for (const [name, value] of Object.entries(fields)) {
                    const field = document.getElementById(name);
                    field.value = value;
                    field.dispatchEvent(new Event("input", { bubbles: true }));
                    field.dispatchEvent(new Event("change", { bubbles: true }));
                }
                document.getElementById("draw").click();
            }""",
            {name: str(value) for name, value in fields.items()},
        )

    def set(self, **settings: object) -> None:
        """Fill fields of the settings."""
        if settings:
            self.page.locator("#settings").evaluate("node => { node.open = true; }")
        for name, value in settings.items():
            control = self.page.locator(f"#{name}")
            if control.evaluate("node => node.tagName") == "SELECT":
                control.select_option(str(value))
            else:
                control.fill(str(value))

    def choose(self, name: str, value: str) -> None:
        """Press one of a group of choices: `mode`, `source` or `language`."""
        self.page.locator(f"[name={name}][value={value}]").check()

    def kept(self) -> list[dict[str, Any]]:
        """Parameters of the pictures in the gallery's database, newest first."""
        parameters: list[dict[str, Any]] = self.page.evaluate(
            """async () => {
              const { allPictures } = await import("./page/js/pictures.js");
              return (await allPictures()).map((one) => one.parameters);
            }"""
        )
        return parameters

    def violations(self) -> list[str]:
        """What axe finds wrong with the page as it is."""
        if self.page.evaluate("typeof axe === 'undefined'"):
            script = resources.files("axe_playwright_python").joinpath("axe.min.js").read_text()
            self.page.evaluate(script)
        found: list[str] = self.page.evaluate(
            """async (tags) => {
              const options = { runOnly: tags, resultTypes: ["violations"] };
              const { violations } = await axe.run(options);
              return violations.flatMap(({ id, nodes }) =>
                nodes.map((node) => `${id}: ${node.target}: ${node.failureSummary}`));
            }""",
            RULES,
        )
        return found


Open = Callable[..., Visit]


@pytest.fixture
def open_page(browser: Browser) -> Iterator[Open]:
    """A function that opens an address in a browser that knows nothing, and looks for complaints.

    The complaints of the page are looked for after the test.
    """
    with _pages() as open_page:
        yield open_page


@pytest.fixture(scope="module")
def still_page(server: Any) -> Iterator[Page]:
    """The page of the shared server for tests that only call functions of its modules."""
    _chromium.get()
    with _pages() as open_page:
        yield open_page(server.url).page


@contextmanager
def _pages() -> Iterator[Open]:
    own: list[BrowserContext] = []
    urls: list[str] = []
    visits: list[Visit] = []

    def open_page(url: str, *, waits: bool = True, **options: Any) -> Visit:
        context, is_usual = _chromium.context(options)
        if is_usual:
            urls.append(url)
        else:
            own.append(context)
        page = context.new_page()
        visit = Visit(page)
        visits.append(visit)
        page.on("console", lambda message: _note(visit, message.type, message.text))
        page.on("pageerror", lambda error: visit.complaints.append(str(error)))
        page.goto(url)
        if waits:
            page.wait_for_selector("#starters li")
        return visit

    yield open_page
    for context in own:
        context.close()
    for visit in visits:
        visit.page.close()
    if urls:
        _chromium.forget(urls)
    assert [visit.complaints for visit in visits if visit.complaints] == []


def _note(visit: Visit, kind: str, text: str) -> None:
    if kind in ("error", "warning") and not text.startswith(REFUSALS):
        visit.complaints.append(text)
