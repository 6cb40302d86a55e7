"""What the chapter opens with, that it has all its parts, and that each holds what it is for."""

from __future__ import annotations

import re

import yaml

from .. import address, notebooks
from .chapter import ASSERTS, LINK, Chapter, check

H1 = re.compile(r"^# ", re.MULTILINE)


# What a part holds, as patterns in the sources of its cells.
SIGNS = {
    "problem": [(r"\b(toys|tasks)\b", "real data from toys or tasks"), (r"viz\.\w+\(", "a figure")],
    "ideas": [(rf"(?s)(?:{ASSERTS.pattern}).*(?:{ASSERTS.pattern})", "at least two asserted claims")],
    "mechanism": [
        (r"(?s)\$\$.+?\$\$\s*\(eq-", "a labelled equation"),
        (r"(?m)^\|.*[Ss]hape.*\|$", "a table of symbols with a Shape column"),
    ],
    "by-hand": [(r"viz\.drawing\(", "viz.drawing, the mechanism drawn on numbers small enough for paper")],
    "steps": [(r"(?s)\.check\(.*\.check\(", "at least two t.check(…)")],
    "assembled": [
        (r"class \w+\(.*Module\)", "the module's class"),
        (ASSERTS.pattern, "equality with the library"),
        (r"viz\.flow\(", "viz.flow, the flow drawn from the module's trace"),
    ],
    "limits": [
        (r"card\(.+\blimits\b", 'the card\'s limits: attn_lib.card(…, part="limits")'),
        (rf"(?s)(?:{ASSERTS.pattern}).*(?:{ASSERTS.pattern})", "at least two asserted limit cases"),
        (r"symmetries\(|\bflip|\broll\(|perm|\.mT|transpose", "a symmetry, tried out"),
    ],
    "inside": [
        (r"viz\.(curves|compare)\(", "the ablated model's learning beside the module's"),
        (ASSERTS.pattern, "an assertion of what learning made of it"),
    ],
    "cost": [
        (r"measure\.(cost|saved_bytes)\(", "measure.cost or measure.saved_bytes"),
        (r"fit_exponent\(|viz\.scaling\(", "growth: viz.scaling or measure.fit_exponent"),
        (r"viz\.timing\(", "viz.timing, recorded beside measured here"),
    ],
    "pitfalls": [(rf"{ASSERTS.pattern}|except |print\(", "a cell in which a pitfall fails")],
    "use": [
        (r"plug\.(insert|replace)\(", "plug.insert or plug.replace"),
        (r"\]\(|\{\w+[:\w]*\}`", "links to relatives"),
    ],
    "take-away": [(r"(?m)^#{2,3} .*$(?s:.{400,})", "five to eight lines of prose"), (r"\?", "an open question")],
}


@check
def listed(chapter: Chapter) -> list[str]:
    """The site is built from _toc.yml: a chapter that does not stand there is left out without a word."""
    name = chapter.path.relative_to(chapter.root).with_suffix("").as_posix()
    toc = yaml.safe_load((chapter.root / "_toc.yml").read_text(encoding="utf-8"))
    if name in {entry["file"] for part in toc["parts"] for entry in part["chapters"]}:
        return []
    return [f"the chapter is not in _toc.yml: add '- file: {name}' under its family"]


@check
def opening(chapter: Chapter) -> list[str]:
    """Title with its answer, the set-up cell that all chapters share, the card."""
    if len(chapter.cells) < 3:
        return ["the chapter has fewer than three cells"]
    title, setup, card = chapter.cells[:3]
    found = []
    lines = [line for line in title.source.splitlines() if line.strip()]
    if title.cell_type != "markdown" or not lines or not lines[0].startswith("# "):
        found.append("cell 1 must be markdown that starts with the chapter's H1")
    elif len(lines) < 2:
        found.append("cell 1: under the H1 stands one sentence, what the mechanism does that the previous could not")
    found += [f"cell {number}: a chapter has one H1" for number, cell in chapter.prose[1:] if H1.search(cell.source)]
    here = address.read_address(chapter.root)
    if setup.source != notebooks.setup_cell(here.source, here.version):
        found.append("cell 2 must be the set-up cell of book/tools/notebooks.py, letter by letter")
    if not {"setup", "hide-input"} <= set(notebooks.tags(setup)):
        found.append('cell 2 must have the tags "setup" and "hide-input"')
    if not chapter.is_foundation and card.source.strip() != f'attn_lib.card("{chapter.id}")':
        found.append(f'cell 3 must be attn_lib.card("{chapter.id}")')
    return found


@check
def promises(chapter: Chapter) -> list[str]:
    """Objectives, prerequisites and minutes stand before the problem."""
    text = chapter.text("title", "markdown")
    found = []
    objectives = re.search(r"[Aa]fter this chapter you can.*?\n((?:\s*\n|\s*(?:[-*]|\d\.) .*\n?|[ \t]+\S.*\n?)+)", text)
    count = len(re.findall(r"^\s*(?:[-*]|\d\.) ", objectives.group(1), re.MULTILINE)) if objectives else 0
    if not 3 <= count <= 5:
        found.append(f'"After this chapter you can" must be followed by a list of 3 to 5 items; it has {count}')
    prerequisites = re.search(r"Prerequisites?(.{1,600})", text, re.DOTALL)
    if not prerequisites or not (LINK.search(prerequisites.group(1)) or "`" in prerequisites.group(1)):
        found.append('"Prerequisites" must be named before the first part, with at least one link')
    minutes = [int(number) for number in re.findall(r"(\d+)\s+minutes", text)]
    if not any(20 <= number <= 40 for number in minutes):
        found.append('the reading time must be given before the first part, as "30 minutes" (20 to 40)')
    return found


@check
def parts_in_order(chapter: Chapter) -> list[str]:
    """Every part is there, in its order."""
    found = [f'no cell has the tag "part:{part}"' for part in chapter.parts if part not in chapter.starts]
    found += [
        f'the tag "part:{part}" names no part' for part in chapter.starts if part not in ("title", *chapter.parts)
    ]
    order = [chapter.starts[part] for part in chapter.parts if part in chapter.starts]
    if order != sorted(order):
        found.append("the parts are not in the order " + ", ".join(chapter.parts))
    return found


@check
def substance(chapter: Chapter) -> list[str]:
    """Each part holds what it is for."""
    everything = "\n".join(cell.source for _, cell in chapter.code)
    found = [
        f'part "{part}" lacks {what}'
        for part, signs in SIGNS.items()
        if part in chapter.starts
        for sign, what in signs
        if not re.search(sign, chapter.text(part))
    ]
    openings = [cell for _, cell in chapter.code if "opening" in notebooks.tags(cell)]
    if not chapter.is_foundation and (len(openings) != 1 or "viz.drawing(" not in openings[0].source):
        found.append('one cell, with the viz.drawing of the mechanism, has the tag "opening"')
    if not re.search(r"viz\.explore_\w+\(", everything):
        found.append("the chapter has no explorer (viz.explore_…)")
    return found
