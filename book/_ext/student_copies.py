"""Every chapter without its solutions, beside the whole one: built with the site, offered by rocket and download arrow.

The copies lie in the site's folder `students/`. Colab and Binder open notebooks of a GitHub repository, not of a site:
the workflow that publishes the site also puts that folder on the branch `students`. It says what Binder is to install.
"""

from pathlib import Path

from sphinx.application import Sphinx

from book.tools import address, assignment, notebooks

FOLDER = "students"
BRANCH = "students"
BOTH = (("without solutions", "with the exercises to do"), ("with solutions", "the whole chapter"))
README = """\
The chapters of [Visual attention]({site}) without their solutions, as they are handed to students: open one in Colab or
download it. They are made with the site and replaced whenever it is; the book's own files are on the branch `{branch}`.
"""


def is_chapter(app: Sphinx, pagename: str) -> bool:
    return pagename.startswith("chapters/") and Path(app.env.doc2path(pagename)).suffix == ".ipynb"


def copy_of(pagename: str) -> str:
    """Where the student copy lies in the site's folder, and on the branch: students/channel/se.ipynb."""
    return f"{FOLDER}/{pagename.removeprefix('chapters/')}.ipynb"


def offer(app: Sphinx, pagename: str, templatename: str, context: dict, doctree: object) -> None:
    """Doubles the buttons that open or download a chapter: first the copy to work in, then the whole chapter."""
    if not is_chapter(app, pagename):
        return
    branch, copy, whole = address.read_address(Path(app.srcdir)).branch, copy_of(pagename), f"{pagename}.ipynb"

    def to_copy(url: str) -> str:
        """The address of the same button for the copy."""
        if "_sources/" in url:
            return context["pathto"](copy, 1)
        start = url.removesuffix(whole)
        for end in ("/", "?urlpath=lab/tree/"):  # Colab, Binder
            if start.endswith(f"/{branch}{end}"):
                return start.removesuffix(f"{branch}{end}") + BRANCH + end + copy.removeprefix(f"{FOLDER}/")
        raise ValueError(f"the theme's button leads to {url!r}, not to {whole!r} on the branch {branch!r}")

    for group in context["header_buttons"]:
        if group.get("label") not in ("launch-buttons", "download-buttons"):  # "Suggest edit" has one notebook
            continue
        buttons = []
        for button in group["buttons"]:
            if not button.get("url", "").endswith(".ipynb"):
                buttons.append(button)
                continue
            name, tip = button["text"].removeprefix("."), button["tooltip"]
            for k, (title, what) in enumerate(BOTH):
                url = button["url"] if k else to_copy(button["url"])
                buttons.append({**button, "url": url, "text": f"{name}, {title}", "tooltip": f"{tip}, {what}"})
        group["buttons"] = buttons


def write(app: Sphinx, exception: Exception | None) -> None:
    """Writes the copies once the site stands, and what a branch of their own needs beside them."""
    if exception is not None or app.builder.name != "html":
        return
    here, folder = address.read_address(Path(app.srcdir)), Path(app.outdir, FOLDER)
    wanted = {Path(app.outdir, copy_of(page)): page for page in app.env.found_docs if is_chapter(app, page)}
    folder.mkdir(exist_ok=True)
    for path, page in wanted.items():
        path.parent.mkdir(parents=True, exist_ok=True)
        notebooks.write(assignment.students_version(Path(app.env.doc2path(page))), path)
    for path in folder.rglob("*.ipynb"):
        if path not in wanted:  # of a chapter that was renamed
            path.unlink()
    binder = Path(app.srcdir, ".binder")
    for name, text in {
        "README.md": README.format(site=here.site, branch=here.branch),
        "requirements.txt": f"attn_lib[chapters] @ git+{assignment.source_of_copies()}\n",
        "runtime.txt": (binder / "runtime.txt").read_text(encoding="utf-8"),
    }.items():
        (folder / name).write_text(text, encoding="utf-8")


def setup(app: Sphinx) -> dict[str, object]:
    app.connect("html-page-context", offer, priority=900)  # after the theme has set up its buttons
    app.connect("build-finished", write)
    return {"version": "1", "parallel_read_safe": True, "parallel_write_safe": True}
