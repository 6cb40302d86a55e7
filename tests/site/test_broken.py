"""The checks can fail: a page broken on purpose is told from a sound one by each of them."""

import re
import shutil
import subprocess
from types import SimpleNamespace

import pytest

from tests.site import browser as browsers
from tests.site import explorers, static_checks

PAGE = "book/notation.html"
SHORT, CHAPTER = "chapters/channel/se.html", "chapters/spatial/ccnet.html"


@pytest.fixture
def broken(site, tmp_path):
    """Returns a function that makes a copy of the site in which one page is changed."""

    def change(old: str, new: str, name: str = CHAPTER):
        copy = tmp_path / "site"
        (copy / name).parent.mkdir(parents=True)
        for part in ((), *[tuple(name.split("/")[:depth]) for depth in range(1, name.count("/") + 1)]):
            for entry in site.joinpath(*part).iterdir():
                target = copy.joinpath(*part, entry.name)
                if not target.exists():
                    target.symlink_to(entry, target_is_directory=entry.is_dir())
        target = copy / name
        target.unlink()
        shutil.copyfile(site / name, target)
        text = target.read_text(encoding="utf-8")
        changed = re.sub(old, new, text, count=1)
        assert changed != text, f"{old!r} does not occur in {name}"
        target.write_text(changed, encoding="utf-8")
        return target

    return change


def test_the_copy_itself_is_sound(broken):
    path = broken("</body>", " </body>")
    assert [problem for check in static_checks.CHECKS for problem in check(path)] == []


@pytest.mark.parametrize(
    ("check", "old", "new", "said"),
    [
        (static_checks.hosts, "</body>", '<script src="https://cdn.example.org/x.js"></script></body>', "example.org"),
        (static_checks.hosts, "</body>", '<link rel="stylesheet" href="missing.css"></body>', "missing.css"),
        (static_checks.alternative_texts, r'(<img [^>]*?)alt="[^"]+"', r'\1alt=""', "no alternative text"),
        (static_checks.links, "</body>", '<a href="gone.html">x</a></body>', "gone.html"),
        (static_checks.links, "</body>", '<a href="#nowhere">x</a></body>', "#nowhere"),
        (static_checks.size, "</body>", "x" * static_checks.PAGE_BYTES + "</body>", "more than"),
    ],
    ids=["foreign script", "missing file", "missing text", "broken link", "broken anchor", "too large"],
)
def test_file_check_fails(broken, check, old, new, said):
    problems = check(broken(old, new))
    assert len(problems) == 1 and said in problems[0]


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ("</body>", '<script src="http://127.0.0.1:9/x.js"></script></body>', "foreign request"),
        ("</body>", "<script>nonsense()</script></body>", "nonsense is not defined"),
        ("</body>", "<script>console.error('oh')</script></body>", "console: oh"),
        ("</body>", '<img src="missing.png" alt="x"></body>', "failed request"),
    ],
    ids=["foreign", "script error", "console error", "missing picture"],
)
def test_opening_notices(browser, broken, old, new, said):
    problems = []
    with browsers.opened(browser, broken(old, new, PAGE).as_uri(), problems) as page:
        page.wait_for_timeout(300)
    assert any(said in problem for problem in problems), problems


@pytest.mark.parametrize(
    ("check", "old", "new", "said"),
    [
        (browsers.formulas, "</article>", r'<p class="math notranslate">\\(x</p></article>', "not set"),
        (browsers.formulas, "</article>", r'<p class="math notranslate">\\(\\frac{1}\\)</p></article>', "has an error"),
        (browsers.formulas, "</article>", "<p>so $x_1$ is</p></article>", "shown as its source"),
        (browsers.overflow, "</article>", '<div style="width: 3000px">x</div></article>', "wider than"),
        (browsers.distorted, "</article>",
         '<img src="../_static/logo.svg" style="width: 90px; height: 30px" alt="x"></article>', "distorted"),
        (browsers.pictures, "</article>", '<img src="missing.png" alt="x"></article>', "cannot be shown"),
    ],
    ids=["unset formula", "wrong formula", "raw formula", "too wide", "distorted", "missing picture"],
)
def test_browser_check_fails(browser, broken, check, old, new, said):
    with browsers.opened(browser, broken(old, new, PAGE).as_uri(), []) as page:
        problems = check(page)
    assert len(problems) == 1 and said in problems[0], problems


@pytest.mark.parametrize(
    ("check", "old", "new", "said"),
    [
        (browsers.folds, r"(?s)(tag_setup.*?)Set-up", r"\1Code", "set-up cell says"),
        (browsers.folds, "tag_solution", "tag_other", "there are"),
        (browsers.folds, "Show the solution", "Open", "the fold of solution 1 says"),
        (browsers.folds, r"(?s)(tag_solution.*?<details)", r"\1 open", "solution 1 is shown"),
        (browsers.focus, "</head>", "<style>* { outline: none !important; box-shadow: none !important }</style></head>",
         "shows no focus"),
        (browsers.focus, "</head>", "<style>a { display: none !important }</style></head>", "Tab reaches no a"),
    ],
    ids=["set-up", "too few", "says", "open", "no focus", "no links"],
)
def test_chapter_check_fails(browser, broken, check, old, new, said):
    with browsers.opened(browser, broken(old, new, SHORT).as_uri(), []) as page:
        problems = check(page)
    assert any(said in problem for problem in problems), problems


def test_dead_explorer_is_noticed(browser, broken):
    """Keys and mouse no longer reach the first explorer."""
    dead = """<script>addEventListener("load", () => {
        for (const kind of ["keydown", "pointermove", "pointerdown", "click", "input"])
            window.addEventListener(kind, event => event.stopImmediatePropagation(), true);
    })</script></body>"""
    with browsers.opened(browser, broken("</body>", dead).as_uri(), []) as page:
        page.wait_for_timeout(100)
        assert any("stays the same" in problem for problem in explorers.problems_of(explorers.started(page)[0]))


def test_dimmed_figure_is_noticed(browser, broken):
    dim = "<style>html[data-theme] .bd-content .cell_output img { filter: brightness(.8) !important }</style></head>"
    path = broken("</head>", dim)
    with browsers.opened(browser, path.as_uri(), [], color_scheme="dark") as page:
        assert browsers.dark_figures(page)


def test_without_any_browser_the_tests_say_how_to_get_one(monkeypatch, tmp_path):
    monkeypatch.setattr(shutil, "which", lambda name: None)
    monkeypatch.setattr(subprocess, "run", lambda command, **_: subprocess.CompletedProcess(command, 1))
    playwright = SimpleNamespace(chromium=SimpleNamespace(executable_path=str(tmp_path / "none")))
    with pytest.raises(browsers.NoBrowser, match="apt-get install chromium"):
        browsers.launch(playwright)
