"""What a page fetches: nothing that it does not show.

- the theme's icon library (1.9 MB) gives way to a font of the icons that the theme and the pages use;
- MathJax comes without its menu, only to pages with formulas, and only the part that is used is published;
- scripts and styles of extensions come only to pages that hold what they are for;
- a picture waits until it is needed, in the room that it will fill.
"""

import re
import shutil
from functools import partial
from pathlib import Path

import pydata_sphinx_theme
from docutils import nodes
from fontTools import subset
from fontTools.ttLib import TTFont
from PIL import Image
from sphinx.application import Sphinx
from sphinx.config import Config

THEME = Path(pydata_sphinx_theme.__file__).parent / "theme" / "pydata_sphinx_theme" / "static"
# Loaded one by one, without the menu, which is 40 % of the whole; what is for screen readers is kept.
MATHJAX = ("input/tex", "output/chtml", "a11y/assistive-mml")
# Published: the start, what it loads, its fonts, and the packages that a macro may ask for.
MATHJAX_KEPT = ("startup.js", "core.js", "input/tex.js", "input/tex/extensions/*", "output/chtml.js",
                "output/chtml/fonts/tex.js", "output/chtml/fonts/woff-v2/*", "a11y/assistive-mml.js")
# Files of extensions, and what a page holds that needs them.
NEEDED = {
    "mathjax": r'class="math\b',
    "sphinx-design": r'class="[^"]*\bsd-',
    "design-tabs": r'class="[^"]*\bsd-tab-',
    "toggle": r'class="[^"]*\b(toggle|dropdown)\b',
    "copybutton": r'class="highlight',
    "clipboard": r'class="highlight',
    "mystnb": r'class="[^"]*\bcell\b',
    "translations": "$.",  # thebe's, which is not here
}


def mathjax_without_menu(app: Sphinx, config: Config) -> None:
    """Load MathJax by its parts."""
    config.mathjax_path = "mathjax/startup.js"
    settings = dict(config.mathjax3_config or {})
    settings["loader"] = {"load": list(MATHJAX)} | settings.get("loader", {})
    config.mathjax3_config = settings


def only_what_is_needed(app: Sphinx, page: str, template: str, context: dict, doctree: nodes.document | None) -> None:
    """Take the files of extensions off a page that has nothing for them to do."""
    body = context.get("body", "")

    def needed(file: object) -> bool:
        name = str(getattr(file, "filename", file) or "") or getattr(file, "attributes", {}).get("body", "")
        return all(re.search(pattern, body) for part, pattern in NEEDED.items() if part in name.lower())

    for key in ("script_files", "css_files"):
        context[key] = [file for file in context[key] if needed(file)]


# --- the finished pages -----------------------------------------------------------------------------------------------


def lighten(app: Sphinx, exception: Exception | None) -> None:
    """Rewrite what the theme's templates say, and publish no file that no page asks for."""
    if exception is not None:
        return
    out = Path(app.outdir)
    used: set[str] = set(re.findall(r"\bfa-[a-z-]+", _text(THEME / "scripts", "*.js")))
    for page in sorted(out.rglob("*.html")):
        if "_static" in page.relative_to(out).parts:
            continue
        text = page.read_text(encoding="utf-8")
        lighter = re.sub(r'<link rel="preload" as="font"[^>]*>\n?', "", text)
        lighter = re.sub(r'[ \t]*<script src="[^"]*fontawesome[^"]*"></script>\n?', "", lighter)
        lighter = re.sub(r'(<link href="[^"]*?_static/)vendor/fontawesome/[^"]*"', r'\1icons.css"', lighter)
        lighter = re.sub(r"<img\b[^>]*>", partial(_waiting, page), lighter)
        used.update(name for names in re.findall(r'class="([^"]*\bfa-[^"]*)"', lighter) for name in names.split())
        if lighter != text:
            page.write_text(lighter, encoding="utf-8")
    _icons(out / "_static", used)
    shutil.rmtree(out / "_static" / "vendor", ignore_errors=True)
    shutil.rmtree(out / "_static" / "locales", ignore_errors=True)
    mathjax = out / "_static" / "mathjax"
    kept = {path for pattern in MATHJAX_KEPT for path in mathjax.glob(pattern)}
    for path in mathjax.rglob("*"):
        if path.is_file() and path not in kept:
            path.unlink()


def _waiting(page: Path, match: re.Match[str]) -> str:
    """An `<img>` that loads when it comes near, with the proportions of its file.

    The logo is always in sight, and a picture that stands in the page itself is there already: were it to wait, its
    place would have no height.
    """
    tag = match[0]
    source = re.search(r'\bsrc="([^"]*)"', tag)
    if not source or source[1].startswith("data:") or "logo" in tag or "loading=" in tag:
        return tag
    added = 'loading="lazy" decoding="async"'
    file = page.parent / source[1].split("?")[0]
    if not re.search(r"\bwidth=|[; \"]aspect-ratio", tag) and file.is_file():
        if file.suffix in (".png", ".jpg"):
            with Image.open(file) as picture:
                added += f' width="{picture.width}" height="{picture.height}"'
    return tag.replace("<img", f"<img {added}", 1)


def _text(folder: Path, pattern: str) -> str:
    return "".join(path.read_text(encoding="utf-8") for path in sorted(folder.glob(pattern)))


def _icons(static: Path, used: set[str]) -> None:
    """Write the icons that are used: the library's own style sheet and fonts, cut down to them."""
    library = next((THEME / "vendor" / "fontawesome").iterdir())
    kept: list[str] = []
    points: set[int] = set()
    sheet = re.sub(r"/\*.*?\*/", "", (library / "css" / "all.min.css").read_text(encoding="utf-8"), flags=re.DOTALL)
    for selectors, rule in re.findall(r"([^{}@]+)\{([^{}]*)\}", sheet):
        wanted = [one for one in selectors.split(",")
                  if ((names := re.findall(r"\.(fa[\w-]*)", one)) and used.issuperset(names)) or ":root" in one]
        if wanted:
            kept.append(f"{','.join(wanted)}{{{rule}}}")
            points.update(int(point, 16) for point in re.findall(r"\\([0-9a-f]{4})", rule))
    # The theme's own style sheets write icons as characters.
    points.update(ord(char) for char in _text(THEME / "styles", "*.css") if 0xF000 <= ord(char) < 0xF900)
    faces = []
    for name, weight, family in (("solid-900", 900, "Free"), ("brands-400", 400, "Brands")):
        font = TTFont(library / "webfonts" / f"fa-{name}.ttf")
        cutter = subset.Subsetter(subset.Options(layout_features=[], hinting=False, notdef_outline=True))
        cutter.populate(unicodes=points)
        cutter.subset(font)
        font.flavor = "woff"
        font.save(static / f"icons-{name}.woff")
        families = {f"Font Awesome 6 {family}", f"Font Awesome 5 {family}"}
        faces += [f'@font-face{{font-family:"{one}";font-weight:{weight};font-display:block;'
                  f'src:url("icons-{name}.woff") format("woff")}}' for one in sorted(families)]
    licence = "/* Icons of Font Awesome Free (fontawesome.com): icons CC BY 4.0, fonts SIL OFL 1.1, code MIT. */"
    (static / "icons.css").write_text("\n".join([licence, *faces, *kept]) + "\n", encoding="utf-8")


def setup(app: Sphinx) -> dict[str, object]:
    app.connect("config-inited", mathjax_without_menu, priority=900)
    app.connect("html-page-context", only_what_is_needed, priority=900)
    app.connect("build-finished", lighten, priority=900)  # after the theme and MathJax have put their files there
    return {"version": "1", "parallel_read_safe": True, "parallel_write_safe": True}
