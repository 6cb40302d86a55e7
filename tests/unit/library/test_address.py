"""The public address stands in `_config.yml`; everything derived from it agrees, and a change reaches every place."""

import shutil
from pathlib import Path

import pytest

from book.tools import address

ROOT = address.ROOT


@pytest.fixture
def copy(tmp_path):
    """The files that may name the address, apart from everything else."""
    for patterns in ("_config.yml",), ("pyproject.toml",), ("attn_lib/__init__.py",), address.TEXT:
        for path in address.files(ROOT, patterns):
            target = tmp_path / path.relative_to(ROOT)
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(path, target)
    return tmp_path


def move(root: Path, url: str) -> None:
    config = root / "_config.yml"
    old = address.read_address(root).repository
    config.write_text(config.read_text(encoding="utf-8").replace(old, url), encoding="utf-8")


def test_everything_agrees_with_the_configured_address():
    assert address.disagreements() == []


def test_the_address_stands_where_readers_meet_it():
    """An agreement over nothing would be empty: the places must be there (in chapters: see `anatomy`)."""
    here = address.read_address()
    for name, text in {
        "pyproject.toml": f'Repository = "{here.repository}"',
        "README.md": f"git clone {here.repository}",
    }.items():
        assert text in (ROOT / name).read_text(encoding="utf-8"), name


def test_a_move_is_noticed_and_written_everywhere(copy):
    old = address.read_address(copy)
    move(copy, "https://github.com/Somebody/else.where")
    assert len(address.disagreements(copy)) >= 4
    changed = address.write(copy)
    assert "pyproject.toml" in changed and "README.md" in changed
    assert address.disagreements(copy) == []
    for path in address.files(copy, ("**/*.*",)):
        if path.is_file():
            text = path.read_text(encoding="utf-8")
            assert old.slug not in text and old.site not in text, path
    assert 'Homepage = "https://somebody.github.io/else.where"' in (copy / "pyproject.toml").read_text(encoding="utf-8")
    assert address.write(copy) == []


def test_a_single_wrong_place_is_named(copy):
    readme = copy / "README.md"
    with readme.open("a", encoding="utf-8") as file:
        file.write("\ngit clone https://github.com/wrong/place\n")
    (problem,) = address.disagreements(copy)
    assert problem.startswith("README.md:") and "https://github.com/wrong/place" in problem


@pytest.mark.parametrize("url", ["https://gitlab.com/a/b", "https://github.com/a", "github.com/a/b"])
def test_an_address_that_nothing_can_be_derived_from_is_refused(copy, url):
    move(copy, url)
    with pytest.raises(ValueError, match=r"repository\.url"):
        address.disagreements(copy)


def test_a_release_is_what_its_chapters_install(copy):
    """Tag and version reach the set-up cells, and the next version's `.dev0` takes them back to the branch."""
    chapter = copy / "chapters" / "channel" / "se.ipynb"
    init = copy / "attn_lib" / "__init__.py"
    between = chapter.read_text(encoding="utf-8")
    old = address.read_address(copy)
    init.write_text(init.read_text(encoding="utf-8").replace(old.version, "7.1.0"), encoding="utf-8")
    assert f"chapters/channel/se.ipynb:{line(between, old.source)}: is {old.source}, must be {old.repository}@v7.1.0" \
        in address.disagreements(copy)
    assert "chapters/channel/se.ipynb" in address.write(copy)
    text = chapter.read_text(encoding="utf-8")
    assert f"git+{old.repository}@v7.1.0" in text and '__version__ != \\"7.1.0\\"' in text
    assert address.disagreements(copy) == []
    init.write_text(init.read_text(encoding="utf-8").replace("7.1.0", old.version), encoding="utf-8")
    address.write(copy)
    assert chapter.read_text(encoding="utf-8") == between


def line(text: str, what: str) -> int:
    return text.count("\n", 0, text.index(what)) + 1
