"""Version, changelog, tag and citation agree, and the workflow of a release is what it says."""

import re
import subprocess

import pytest
import yaml

import attn_lib
from book.tools import release

ROOT = release.ROOT
WORKFLOWS = ROOT / ".github" / "workflows"


def tags_here() -> list[str]:
    """Tags of versions on the commit that is checked out; none in a copy without its history."""
    done = subprocess.run(["git", "tag", "--points-at", "HEAD", "v*"], cwd=ROOT, capture_output=True, text=True)
    return done.stdout.split()


def test_version_changelog_and_tags_agree():
    assert release.version() == attn_lib.__version__
    assert [line for tag in [None, *tags_here()] for line in release.disagreements(tag)] == []


def test_the_version_stands_in_one_place():
    number = re.escape(attn_lib.__version__.removesuffix(".dev0"))
    files = [*(ROOT / "attn_lib").rglob("*.py"), *(ROOT / "book").rglob("*.py"),
             *(ROOT / name for name in ("pyproject.toml", "CITATION.cff", "_config.yml", "Makefile"))]
    holding = [file.relative_to(ROOT).as_posix() for file in files
               if re.search(rf"^\W*version\W+{number}\b", file.read_text("utf-8").replace("_", ""), re.MULTILINE)]
    assert holding == ["attn_lib/__init__.py"]


@pytest.fixture
def clone(tmp_path):
    """A folder that holds a version and a changelog; returns a function that writes them."""
    def write(version: str, changelog: str):
        (tmp_path / "attn_lib").mkdir(exist_ok=True)
        (tmp_path / "attn_lib" / "__init__.py").write_text(f'x = 1\n__version__ = "{version}"\n', encoding="utf-8")
        (tmp_path / "CHANGELOG.md").write_text(changelog, encoding="utf-8")
        return tmp_path

    return write


BETWEEN = "# Changelog\n\n## [Unreleased]\n\n- New.\n\n## [0.1.0] - 2026-01-02\n\n- First.\n\n[0.1.0]: https://x.y\n"
AT = ("# Changelog\n\n## [Unreleased]\n\n## [0.2.0] - 2026-03-04\n\n### Added\n\n- New.\n\n"
      "## [0.1.0] - 2026-01-02\n\n- First.\n")


def test_what_agrees(clone):
    assert release.disagreements(root=clone("0.2.0.dev0", BETWEEN)) == []
    root = clone("0.2.0", AT)
    assert release.disagreements("v0.2.0", root) == release.disagreements(root=root) == []
    assert release.notes("v0.2.0", root) == "### Added\n\n- New."
    assert release.notes("v0.1.0", clone("0.2.0.dev0", BETWEEN)) == "- First.", "without the links"
    with pytest.raises(ValueError, match=r"'v0\.3\.0' has no section"):
        release.notes("v0.3.0", root)


@pytest.mark.parametrize(("version", "changelog", "tag", "said"), [
    ("0.2.0", AT, "v0.2.1", "tag 'v0.2.1' must be 'v' and the version"),
    ("0.2.0", AT, "0.2.0", "tag '0.2.0' must be 'v'"),
    ("0.2.0.dev0", BETWEEN, "v0.2.0", "without .dev0 in a release"),
    ("0.3.0", AT, None, r"the newest version must be \[0.3.0\]"),
    ("0.2.0", BETWEEN, None, r"the newest version must be \[0.2.0\]"),
    ("0.1.0", BETWEEN, None, r"what is under \[Unreleased\] belongs under \[0.1.0\]"),
    ("0.1.0.dev0", BETWEEN, None, "must be above the newest release"),
    ("0.2.0.dev0", BETWEEN.replace("## [Unreleased]", "text"), None, r"must begin with \[Unreleased\]"),
    ("0.2", AT, None, "__version__='0.2' must be three numbers"),
    ("0.2.0", AT.replace(" - 2026-03-04", ""), None, r"\[0.2.0\] must have its day"),
    ("0.2.0", AT.replace("- New.", "").replace("### Added", ""), None, r"\[0.2.0\] must say what changed"),
    ("0.2.0", AT.replace("[0.1.0]", "[0.2.1]"), None, "the newest version must come first"),
])
def test_what_does_not_agree_is_named(clone, version, changelog, tag, said):
    found = release.disagreements(tag, clone(version, changelog))
    assert any(re.search(said, line) for line in found), found


def test_the_citation_is_one():
    cited = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    assert {"cff-version", "message", "title", "authors"} <= set(cited) and cited["cff-version"] == "1.2.0"
    assert cited["license"] == "MIT" and all(author["name"] for author in cited["authors"])
    assert "version" not in cited, "it stands in attn_lib alone"


def test_the_workflow_publishes_what_was_tested_and_keeps_no_secret():
    text = (WORKFLOWS / "release.yml").read_text(encoding="utf-8")
    workflow = yaml.safe_load(text)
    jobs = workflow["jobs"]
    assert workflow[True] == {"push": {"tags": ["v[0-9]+.[0-9]+.[0-9]+"]}}, "YAML reads `on` as true"
    assert "secrets." not in text and "password" not in text
    assert workflow["permissions"] == {"contents": "read"}
    assert [jobs[name].get("needs") for name in ("package", "tests", "pypi", "release")] == [
        None, "package", "tests", "pypi"]
    assert 'release --check "$GITHUB_REF_NAME"' in str(jobs["package"]["steps"])
    assert jobs["pypi"]["permissions"] == {"id-token": "write"} and jobs["pypi"]["environment"]["name"] == "pypi"
    called = yaml.safe_load((WORKFLOWS / "book.yml").read_text(encoding="utf-8"))
    assert "workflow_call" in called[True]
    asked = {permission for job in called["jobs"].values() for permission in job.get("permissions", {})}
    assert asked <= set(jobs["tests"]["permissions"]), "a called workflow may ask for no more than its caller has"
    assert called["jobs"]["publish"]["if"].startswith("github.ref == 'refs/heads/main'")
    assert {"name": "site", "path": "site"} in [step.get("with") for step in jobs["release"]["steps"]]


def test_actions_are_named_by_a_full_version():
    for file in WORKFLOWS.glob("*.yml"):
        for action, version in re.findall(r"uses: ([^./@][^@\s]*)@(\S+)", file.read_text(encoding="utf-8")):
            assert re.fullmatch(r"v\d+\.\d+\.\d+|[0-9a-f]{40}", version), f"{file.name}: {action}@{version}"


def test_every_python_and_the_oldest_and_newest_torch_that_are_claimed_are_tested():
    text = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    pythons = re.findall(r"Python :: (3\.\d+)", text)
    torch, = re.findall(r'"torch>=([\d.]+)"', text)
    assert f'requires-python = ">={pythons[0]}"' in text
    assert f'target-version = "py{pythons[0].replace(".", "")}"' in text, "ruff says what an older Python has not"
    jobs = yaml.safe_load((WORKFLOWS / "book.yml").read_text(encoding="utf-8"))["jobs"]
    everything, = [step["with"]["python-version"] for step in jobs["test"]["steps"]
                   if "python" in step.get("uses", "") and step.get("id") != "colab"]
    assert {everything, *jobs["unit"]["strategy"]["matrix"]["python"]} == set(pythons)
    assert jobs["library"]["strategy"]["matrix"]["include"] == [
        {"python": pythons[0], "torch": f"torch=={torch}.*"}, {"python": pythons[-1], "torch": "torch"}]
    assert any("test_contract.py" in step.get("run", "") for step in jobs["library"]["steps"])
    for page, sentence in {"using.md": "any from {} on will do", "api/index.md": "torch {}, the oldest"}.items():
        assert sentence.format(torch) in (ROOT / "book" / page).read_text(encoding="utf-8"), page


def test_the_weekly_run_spares_no_chapter_no_module_and_no_network():
    jobs = yaml.safe_load((WORKFLOWS / "book.yml").read_text(encoding="utf-8"))["jobs"]
    whole, = [step for step in jobs["test"]["steps"] if "EVERY=1" in step.get("run", "")]
    assert "COLAB_PYTHON" in whole["env"], "on Colab's own Python"
    said = subprocess.run(["make", "--dry-run", "test-unit", "test-chapters", "EVERY=1"], cwd=ROOT, capture_output=True,
                          text=True, check=True).stdout
    assert "--every-module" in said and "--every-chapter" in said
    assert any("ultralytics test-networks" in step.get("run", "") for step in jobs["networks"]["steps"])
