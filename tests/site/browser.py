"""A real browser, and what can only be said of a page by opening it in one."""

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from playwright.sync_api import Browser, Error, Page, Playwright, Request

INSTALLED = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome",
             "/Applications/Google Chrome.app/Contents/MacOS/Google Chrome",
             "/Applications/Chromium.app/Contents/MacOS/Chromium")
HOW = ("The site's tests need a browser. Install Chromium (on Debian or Ubuntu: apt-get install chromium) or Google "
       "Chrome, or let Playwright fetch its own: .venv/bin/python -m playwright install --with-deps chromium")
ARGUMENTS = ["--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
             "--disable-component-update", "--disable-sync"]

WIDE, PHONE = {"width": 1280, "height": 900}, {"width": 390, "height": 844}


class NoBrowser(Exception):
    """No browser is installed and none could be fetched; the message says how to get one."""


def launch(playwright: Playwright) -> Browser:
    """Start an installed Chromium or Chrome, else Playwright's own, fetched if need be.

    Raises:
        NoBrowser: where neither can be had.
    """
    # In a container the tests run as root, where Chromium starts only without its own sandbox.
    arguments = ARGUMENTS + (["--no-sandbox"] if hasattr(os, "geteuid") and os.geteuid() == 0 else [])
    for name in INSTALLED:
        if path := shutil.which(name):
            return playwright.chromium.launch(executable_path=path, args=arguments)
    if not Path(playwright.chromium.executable_path).exists():
        print("Fetching Playwright's Chromium (once)", file=sys.stderr)
        if subprocess.run([sys.executable, "-m", "playwright", "install", "chromium"]).returncode:
            raise NoBrowser(HOW)
    try:
        return playwright.chromium.launch(args=arguments)
    except Error as error:
        raise NoBrowser(f"{HOW}\n{error}") from error


@contextmanager
def opened(browser: Browser, url: str, problems: list[str], **options: Any) -> Iterator[Page]:
    """A page, loaded and with its formulas set; whatever goes wrong while it is open is added to `problems`."""
    origin = urlsplit(url)

    def own(address: str) -> bool:
        parts = urlsplit(address)
        if parts.scheme in ("data", "blob", "about"):
            return True
        return (parts.scheme, parts.netloc) == (origin.scheme, origin.netloc)

    def refused(request: Request) -> bool:
        """Whether it is a script, asked for in a browser that runs none."""
        return not options.get("java_script_enabled", True) and request.resource_type == "script"

    context = browser.new_context(**{"viewport": WIDE, "color_scheme": "light", **options})
    page = context.new_page()
    page.on("console", lambda message: message.type == "error" and problems.append(f"console: {message.text}"))
    page.on("pageerror", lambda error: problems.append(f"script: {error}"))
    page.on("request", lambda request: own(request.url) or problems.append(f"foreign request: {request.url}"))
    page.on("requestfailed", lambda request: refused(request) or problems.append(
        f"failed request: {request.url} ({request.failure})"))
    page.on("response", lambda answer: answer.status >= 400 and problems.append(f"{answer.status}: {answer.url}"))
    try:
        page.goto(url, wait_until="load")
        if options.get("java_script_enabled", True):
            settle(page)
        yield page
    finally:
        context.close()


def settle(page: Page) -> None:
    """Wait until fonts are there and formulas are set."""
    ready = """async () => {
        // The site's root only forwards, and while the next page is being read it has no scripts to wait for yet.
        if (document.readyState !== "complete" || document.querySelector("meta[http-equiv=Refresh]")) return false;
        await document.fonts.ready;
        await globalThis.MathJax?.startup?.promise;
        return true;
    }"""
    for _ in range(300):  # half a minute and more: the machine may have other things to do
        try:
            if page.evaluate(ready):
                return
        except Error as error:
            if "context was destroyed" not in str(error):
                raise
        page.wait_for_timeout(100)
    raise TimeoutError(f"{page.url} does not settle")


def formulas(page: Page) -> list[str]:
    """Every formula of the source is set, and none holds an error."""
    unset = page.evaluate("""() => [...document.querySelectorAll(".math.notranslate")]
        .filter(math => !math.querySelector("mjx-container")).map(math => math.textContent.slice(0, 60))""")
    errors = page.locator("mjx-merror").all_inner_texts()
    raw = page.evaluate(r"""() => [...document.querySelectorAll("article p, article li, article td")]
        .map(node => node.innerText).filter(text => /(^|\s)\$[^$\n]+\$(\s|$)/.test(text) && !/`/.test(text))""")
    return ([f"a formula is not set: {text}" for text in unset]
            + [f"a formula has an error: {text}" for text in errors]
            + [f"a formula is shown as its source: {text[:60]}" for text in raw])


def overflow(page: Page) -> list[str]:
    """Nothing is wider than the window."""
    wide = page.evaluate("""() => {
        if (document.documentElement.scrollWidth <= window.innerWidth) return [];
        const scrolls = node => node && node !== document.body
            && (getComputedStyle(node).overflowX !== "visible" || scrolls(node.parentElement));
        return [...document.querySelectorAll("body *")]
            .filter(node => node.getBoundingClientRect().right > window.innerWidth + 1 && !scrolls(node.parentElement))
            .map(node => `${node.tagName}.${node.className}: ${node.textContent.trim().slice(0, 40)}`)
            .slice(0, 4);
    }""")
    return [f"wider than {page.viewport_size['width']} pixels: {', '.join(wide)}"] if wide else []


def pictures(page: Page) -> list[str]:
    """Every picture is there."""
    broken = page.evaluate("""async () => {
        const all = [...document.images];
        all.forEach(image => image.loading = "eager");
        await Promise.all(all.map(image => image.decode().catch(() => {})));
        return all.filter(image => !image.naturalWidth).map(image => image.src.slice(0, 80));
    }""")
    return [f"a picture cannot be shown: {address}" for address in broken]


def distorted(page: Page) -> list[str]:
    """Every picture keeps its proportions at the width it is shown."""
    found = page.evaluate("""() => [...document.querySelectorAll("article img")].filter(image => {
        const box = image.getBoundingClientRect(), style = getComputedStyle(image);
        const inner = side => parseFloat(style["padding" + side]) + parseFloat(style["border" + side + "Width"]);
        const width = box.width - inner("Left") - inner("Right"), height = box.height - inner("Top") - inner("Bottom");
        const expected = width * image.naturalHeight / image.naturalWidth;
        return box.width && Math.abs(height - expected) > 2 + 0.02 * expected;
    }).map(image => `${image.alt.slice(0, 60)} (${image.width} × ${image.height})`)""")
    return [f"at {page.viewport_size['width']} pixels this picture is distorted: {text}" for text in found]


def folds(page: Page) -> list[str]:
    """The set-up cell and the solutions of a chapter are folded, say what is inside, and open with the keyboard."""
    found = []
    setup = page.locator(".tag_setup details > summary").all_inner_texts()
    if [text.strip() for text in setup] != ["Set-up"]:
        found.append(f"the fold of the set-up cell says {setup}")
    solutions = page.locator(".tag_solution details").all()
    if len(solutions) < 3:
        found.append(f"there are {len(solutions)} folded solutions, fewer than three")
    for number, solution in enumerate(solutions, 1):
        summary, code = solution.locator("summary"), solution.locator("pre")
        said, shown = [summary.inner_text().strip()], [code.is_visible()]
        summary.press("Enter")
        said.append(summary.inner_text().strip())
        shown.append(code.is_visible())
        if said != ["Show the solution", "Hide the solution"]:
            found.append(f"the fold of solution {number} says {said}")
        if shown != [False, True]:
            found.append(f"solution {number} is shown before and after Enter: {shown}")
    return found


def focus(page: Page) -> list[str]:
    """Moving through a chapter by Tab alone reaches its links and folds, and each shows that it has the focus."""
    page.locator("article h1").click()
    seen = set()
    for _ in range(80):
        page.keyboard.press("Tab")
        kind, outline = page.evaluate("""() => {
            const node = document.activeElement, style = getComputedStyle(node);
            const outlined = style.outlineStyle !== "none" && parseFloat(style.outlineWidth) > 0;
            return [node.tagName.toLowerCase(), outlined || style.boxShadow !== "none"];
        }""")
        if kind == "body":
            break  # once round
        if not outline:
            return [f"{kind} shows no focus"]
        seen.add(kind)
    return [f"Tab reaches no {kind}" for kind in ("a", "summary") if kind not in seen]


def dark_figures(page: Page) -> list[str]:
    """In dark mode a stored picture keeps its own colours on an opaque ground."""
    changed = page.evaluate("""() => [...document.querySelectorAll(".cell_output img")].filter(image => {
        const style = getComputedStyle(image);
        return style.filter !== "none" || style.backgroundColor !== "rgb(255, 255, 255)";
    }).map(image => image.alt)""")
    return [f"in dark mode this picture is dimmed or see-through: {alt}" for alt in changed]
