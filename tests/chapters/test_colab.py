"""A bare machine like Colab's runs the chapters; the set-up cell installs the library, not torch or numpy.

"Like Colab's" is: a fresh environment with torch, numpy, matplotlib, ipykernel and ipywidgets, the latter four at
other versions than ours; the notebook alone in an empty folder; the book's public address, redirected by git to a
clone of this working tree, so that what is installed is what is tested.

The set-up cell is the same in every chapter (`anatomy` asks for it letter by letter), so a chapter of each kind runs
here, and of all the others the exercises, in one kernel; with `--every-chapter`, as in the public weekly run, all run
whole. `COLAB_PYTHON` names the Python of the machine, which is else the book's own: the weekly run takes Colab's.
"""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import nbformat
import pytest

from book.tools import address, execute, notebooks

PYTHON = os.environ.get("COLAB_PYTHON") or sys.executable
# Colab's own versions, torch's where the Python is Colab's: no other part of the book's tests loads a second torch.
BARE = [
    "torch=={torch}; python_version != '3.13'",
    "torch==2.11.*; python_version == '3.13'",
    "numpy==2.1.3",
    "matplotlib==3.10.0",
    "ipykernel==6.17.1",
    "ipython==7.34.0",
    "ipywidgets==7.7.1",
]
UNTOUCHED = ("torch", "numpy")  # to the last file: they are loaded, and reinstalling them breaks the session
KEPT = (*UNTOUCHED, "matplotlib", "ipykernel", "ipywidgets")  # Colab's page works with the widgets that Colab ships
PROBE = "print(attn_lib.__file__)"


def run(*command, **options):
    """Run a command; a failure shows what it said."""
    done = subprocess.run([str(part) for part in command], capture_output=True, text=True, **options)
    assert done.returncode == 0, f"{' '.join(map(str, command))}\n{done.stdout}\n{done.stderr}"
    return done.stdout


def clone_of_working_tree(folder: Path) -> Path:
    """A git repository with one commit: the working tree as it is, committed or not, without what git ignores."""
    folder.mkdir()
    names = run("git", "ls-files", "-z", "--cached", "--others", "--exclude-standard", cwd=notebooks.ROOT)
    for name in filter(None, names.split("\0")):
        source = notebooks.ROOT / name
        if source.is_file():  # a deleted file is listed until its deletion is staged
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(source, folder / name)
    here = address.read_address()
    run("git", "init", "--quiet", "--initial-branch", here.branch, cwd=folder)
    run("git", "add", "--all", cwd=folder)
    who = ("-c", "user.name=test", "-c", "user.email=test@example.org")
    run("git", *who, "commit", "--quiet", "--message", "working tree", cwd=folder)
    run("git", "tag", f"v{here.version}", cwd=folder)  # from which a release's chapters install
    return folder


def fingerprint(python: Path) -> dict[str, tuple[int, int]]:
    """Size and time of every installed file of the packages that must not be touched."""
    site = Path(run(python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))").strip())
    return {
        str(file): (file.stat().st_size, file.stat().st_mtime_ns)
        for package in UNTOUCHED
        for folder in (site / package, *site.glob(f"{package}-*.dist-info"))
        for file in folder.rglob("*")
        if file.is_file() and "__pycache__" not in file.parts
    }


def versions(python: Path) -> dict[str, str]:
    """The installed versions of what the machine came with."""
    listed = dict(line.split("==") for line in run(python, "-m", "pip", "freeze", "--all").splitlines() if "==" in line)
    return {name: listed[name] for name in KEPT}


@pytest.fixture
def bare_machine(tmp_path_factory):
    """The interpreter of a fresh environment, and the environment variables of a kernel in it."""
    import torch

    home = tmp_path_factory.mktemp("colab")
    run(PYTHON, "-m", "venv", home / "venv")
    python = home / "venv" / "bin" / "python"
    torch_version = torch.__version__.split("+")[0]
    pip = [python, "-m", "pip", "install", "--quiet", *(spec.format(torch=torch_version) for spec in BARE)]
    done = subprocess.run([str(part) for part in pip], capture_output=True, text=True)
    if done.returncode:
        pytest.fail(
            f"this test needs pip and a package index to make a bare environment:\n{done.stderr}",
            pytrace=False,
        )
    clone = clone_of_working_tree(home / "clone")
    private = ("PYTHONPATH", "PYTHONHOME", "VIRTUAL_ENV", "TQDM_DISABLE")
    env = {name: value for name, value in os.environ.items() if name not in private}
    env |= {
        "IPYTHONDIR": str(home / "ipython"),
        "MPLCONFIGDIR": str(home / "matplotlib"),
        "PATH": os.pathsep.join([str(python.parent), os.environ["PATH"]]),
        "OMP_NUM_THREADS": "1",
        "GIT_CONFIG_COUNT": "1",
        "GIT_CONFIG_KEY_0": f"url.{clone.as_uri()}.insteadOf",
        "GIT_CONFIG_VALUE_0": address.read_address().repository,
    }
    return python, env


def pytest_generate_tests(metafunc):
    """One machine for a chapter of each kind; two for all of them, so that two workers share them."""
    if "chapters" in metafunc.fixturenames:
        every = notebooks.chapters()
        shares = [every[::2], every[1::2]] if metafunc.config.getoption("--every-chapter") else [notebooks.specimens()]
        metafunc.parametrize("chapters", shares, ids=[f"machine {number}" for number, _ in enumerate(shares, 1)])


def said_without_network(python: Path, env: dict[str, str], folder: Path) -> str:
    """The message in which the set-up cell ends where nothing can be fetched."""
    here = address.read_address()
    cell = nbformat.v4.new_code_cell(notebooks.setup_cell(here.source, here.version))
    nowhere = {"GIT_CONFIG_KEY_0": f"url.{(folder / 'nothing').as_uri()}.insteadOf", "PIP_NO_INDEX": "1"}
    ran, _ = execute.run(nbformat.v4.new_notebook(cells=[cell]), folder, python=str(python), env=env | nowhere,
                         allow_errors=True)
    error = ran.cells[0].outputs[-1]
    assert (error.output_type, error.ename) == ("error", "ModuleNotFoundError")
    return error.evalue


def exercises_of(paths: list[Path]) -> list[nbformat.NotebookNode]:
    """The cells of the chapters' exercises, which need the set-up cell alone."""
    found = []
    for path in paths:
        for cell in notebooks.read(path).cells:
            if "nbgrader" in cell.metadata:
                cell.id = f"{path.stem}-{cell.id}"[:64]
                found.append(cell)
    return found


def test_chapters_run_on_a_bare_machine(bare_machine, tmp_path, chapters):
    """Each to its end, the first one installing the library; behind the last, the exercises of all others."""
    python, env = bare_machine
    before, shipped = fingerprint(python), versions(python)
    assert any("numpy" in name for name in before)
    assert any("torch" in name for name in before)
    assert "attn_lib" not in run(python, "-m", "pip", "list", env=env)
    assert "It needs the internet (on Kaggle: " in said_without_network(python, env, tmp_path)
    for path in chapters:
        alone = tmp_path / path.stem
        alone.mkdir()
        shutil.copy(path, alone)
        notebook = notebooks.read(alone / path.name)
        if path == chapters[-1] and chapters == notebooks.specimens():
            notebook.cells += exercises_of([other for other in notebooks.chapters() if other not in chapters])
        notebook.cells.append(nbformat.v4.new_code_cell(PROBE))
        ran, _ = execute.run(notebook, alone, name=path.stem, python=str(python), env=env)
        library = Path(ran.cells[-1].outputs[0].text.strip())
        assert library.is_relative_to(python.parents[1]), "the library came from elsewhere"
        assert fingerprint(python) == before, f"{path.stem}'s set-up cell touched torch or numpy"
        assert versions(python) == shipped
