"""Building: a warning stops it, twice if need be, and a reader's site is replaced only by a sound one."""

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from book._ext import attention_book
from book.tools import build as tool

ROOT = tool.ROOT


@pytest.fixture
def clone(tmp_path):
    """A clone whose pages can be changed."""
    for name in (".binder", "attn_lib", "chapters"):
        (tmp_path / name).symlink_to(ROOT / name, target_is_directory=True)
    for name in ("_config.yml", "requirements.txt"):
        shutil.copyfile(ROOT / name, tmp_path / name)
    # Two pages, which are enough to be warned of: the test builds three times.
    toc = {"format": "jb-book", "root": "book/notation", "chapters": [{"file": "book/bibliography"}]}
    (tmp_path / "_toc.yml").write_text(yaml.safe_dump(toc), encoding="utf-8")
    shutil.copytree(ROOT / "book", tmp_path / "book", ignore=shutil.ignore_patterns("__pycache__"))
    return tmp_path


def build(clone: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-m", "book.tools.build"], cwd=clone, capture_output=True, text=True)


def test_a_warning_stops_the_build_and_leaves_the_old_site(clone):
    page = clone / "book" / "notation.md"
    sound = page.read_text(encoding="utf-8")
    site = clone / "_build" / "html"
    site.mkdir(parents=True)
    (site / "index.html").write_text("the old site", encoding="utf-8")

    page.write_text(f"{sound}\n{{py:class}}`attn_lib.NoSuchClass`\n", encoding="utf-8")
    for _ in range(2):  # Sphinx itself would be silent about a page that it has cached
        result = build(clone)
        assert result.returncode != 0 and "attn_lib.NoSuchClass" in result.stderr, result.stderr[-2000:]
        assert (site / "index.html").read_text(encoding="utf-8") == "the old site"

    page.write_text(sound, encoding="utf-8")
    result = build(clone)
    assert result.returncode == 0, result.stderr[-2000:]
    assert result.stdout.strip().endswith(f"The site is at {(site / 'index.html').as_uri()}")
    assert (site / "book" / "notation.html").exists()
    assert {path.name for path in (clone / "_build").iterdir()} == {"html", "work"}


def test_a_half_copied_site_is_never_published(tmp_path, monkeypatch):
    new, site = tmp_path / "work", tmp_path / "html"
    for folder, text in ((new, "new"), (site, "old")):
        folder.mkdir()
        (folder / "index.html").write_text(text, encoding="utf-8")

    def interrupted(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(shutil, "copytree", interrupted)
        with pytest.raises(KeyboardInterrupt):
            tool.publish(new, site)
    assert (site / "index.html").read_text(encoding="utf-8") == "old"
    tool.publish(new, site)
    assert (site / "index.html").read_text(encoding="utf-8") == "new"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["html", "work"]


DOCSTRING = """\
Sums.

What it computes, as written:

    y = a  +  b
    z = y  -  1

```python
with sums():
    pass
```

:param a, b: the terms |a| and `|b|`,
    (B, *S) on two lines, *not* three.

- an item

  that goes on
"""

SHOWN = """\
Sums.

What it computes, as written:

::

    y = a  +  b
    z = y  -  1

.. code-block:: python

    with sums():
        pass

:param a,b: the terms \\|a\\| and `|b|`,
    (B, \\*S) on two lines, *not* three.

- an item

  that goes on
"""


def test_docstrings_keep_their_blocks():
    lines = DOCSTRING.splitlines()
    attention_book.keep_blocks(None, "function", "sums", None, None, lines)
    assert re.sub(r"\n{3,}", "\n\n", "\n".join(lines)).strip() == SHOWN.strip()
