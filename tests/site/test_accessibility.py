"""Every page for the keyboard and the screen reader, in the light, in the dark, and at phone width."""

import pytest
from playwright.sync_api import expect

from tests.site import accessibility
from tests.site import browser as browsers
from tests.site.static_checks import is_chapter


def test_axe_finds_nothing_serious(browser, path):
    """All rules in the light; at phone width all but those on colours, in the dark those on colours.

    One load serves all, and the stops of a chapter before anything is unfolded.
    """
    with browsers.opened(browser, path.as_uri(), []) as page:
        problems = accessibility.stops(page) if is_chapter(path) else []
        problems += accessibility.spoken_formulas(page) + accessibility.language(page)
        accessibility.prepare(page)
        problems += accessibility.axe(page)
        page.emulate_media(color_scheme="dark")
        if page.locator("html[data-theme]").count():  # the page for wrong addresses has a style of its own
            expect(page.locator("html")).to_have_attribute("data-theme", "dark")
        problems += [f"in the dark: {problem}" for problem in accessibility.axe(page, colours=True)]
        page.set_viewport_size(browsers.PHONE)
        accessibility.settle(page)
        problems += [f"at phone width: {problem}" for problem in accessibility.axe(page, colours=False)]
    assert problems == []


@pytest.mark.parametrize(
    ("script", "said"),
    [
        ("article.insertAdjacentHTML('beforeend', '<button></button>')", "button-name"),
        ("article.insertAdjacentHTML('beforeend', '<p style=\"color: #777; background: #666\">pale words</p>')",
         "color-contrast"),
        ("article.insertAdjacentHTML('beforeend', '<p id=twice>a</p><p id=twice>b</p>')", "duplicate-id"),
        ("article.insertAdjacentHTML('beforeend', '<button aria-label=Save>Open the fold</button>')",
         "label-content-name-mismatch"),
    ],
)
def test_axe_can_fail(browser, site, script, said):
    with browsers.opened(browser, (site / "book" / "notation.html").as_uri(), []) as page:
        page.evaluate(f"() => {{ const article = document.querySelector('article'); {script} }}")
        accessibility.prepare(page)
        found = accessibility.axe(page)
    assert len(found) == 1 and found[0].startswith(said), found


@pytest.mark.parametrize(
    ("check", "script", "said"),
    [
        (accessibility.stops, "for (let k = 0; k < 81; k++) article.prepend(document.createElement('button'))",
         "more than 80 stops"),
        (accessibility.stops, "for (let k = 0; k < 41; k++) article.prepend(document.createElement('button'))",
         "the first explorer is stop"),
        (accessibility.stops, "document.querySelector('#pst-skip-link').remove()", "no skip link"),
        (accessibility.spoken_formulas, "article.querySelector('mjx-assistive-mml').remove()", "1 formulas"),
        (accessibility.spoken_formulas, "article.querySelector('mjx-container').tabIndex = 0", "1 formulas"),
        (accessibility.language, "document.documentElement.removeAttribute('lang')", "language"),
    ],
)
def test_a_check_can_fail(browser, site, check, script, said):
    with browsers.opened(browser, (site / "chapters" / "channel" / "se.html").as_uri(), []) as page:
        page.evaluate(f"() => {{ const article = document.querySelector('article'); {script} }}")
        found = check(page)
    assert any(said in problem for problem in found), found
