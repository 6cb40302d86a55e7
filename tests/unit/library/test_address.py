"""The public address stands in `_config.yml`; everything derived from it agrees, and a change reaches every place."""

import shutil
from pathlib import Path

import pytest

from book.tools import address

ROOT = address.ROOT


@pytest.fixture
def copy(tmp_path):
    """The files that may name the address, apart from everything else."""
    for patterns in ("_config.yml",), ("pyproject.toml",), address.TEXT:
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
