"""A process for one student's answers: so much time, memory and output, and nothing else of this machine.

With bubblewrap (`bwrap`, Debian's package `bubblewrap`) the process sees the system's programs and libraries, the
Python environment and `attn_lib`, all read-only; a small `/tmp` that vanishes with it; no network, no other process, no
file of yours. Without it only the limits and the kernel's filter of `inside/fence.py` remain.

What comes out of the process is text that a student may have forged: it is taken in with a limit, and believed for
nothing but its form (`Verdict`).
"""

from __future__ import annotations

import functools
import hashlib
import json
import os
import re
import selectors
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass, field
from importlib import metadata
from pathlib import Path
from typing import Any

from .. import notebooks

INSIDE = Path(__file__).parent / "inside"
LIBRARY = notebooks.ROOT / "attn_lib"
HEARD = 4_000_000  # bytes of verdicts that a student's process may send; an honest one sends some kilobytes
SYSTEM = ("/usr", "/bin", "/sbin", "/lib", "/lib32", "/lib64", "/libx32")
# Of /etc: where libraries lie, fonts, the clock.
SETTINGS = ("ld.so.cache", "ld.so.conf", "ld.so.conf.d", "alternatives", "fonts", "localtime")
TMP_MEGABYTES = 256
INSTALL = "apt-get install bubblewrap (Debian, Ubuntu), dnf install bubblewrap (Fedora); on Windows in WSL"
# Settings of the kernel with which Ubuntu (from 24.04 on) and Debian (once) keep bubblewrap from working.
NAMESPACES = {"kernel.apparmor_restrict_unprivileged_userns": "1", "kernel.unprivileged_userns_clone": "0"}


@dataclass(frozen=True)
class Limits:
    """What one student's process may take.

    Args:
        seconds: for one exercise, its answer and its checks together.
        megabytes: of memory for one exercise, on top of what torch and the library need.
        kilobytes: of printed output for one exercise.
        start: seconds for the start, which imports torch.
    """

    seconds: float = 60
    megabytes: int = 2048
    kilobytes: int = 1000
    start: float = 180


@dataclass(frozen=True)
class Verdict:
    """What came of one check.

    Args:
        passed: whether the check ran to its end.
        value: the number that the check ended with, if it ended with one.
        output: what answer and check printed.
        error: the name of the exception, if there was one, or of what stopped the answer.
        message: the exception's message.
        traceback: the lines that led there.
        seconds: how long answer and checks took.
    """

    passed: bool
    value: float | None = None
    output: str = ""
    error: str = ""
    message: str = ""
    traceback: str = ""
    seconds: float = 0.0

    def as_dict(self) -> dict[str, Any]:
        """The verdict for a JSON file."""
        return asdict(self)


@dataclass
class Outcome:
    """What came of one student's process: a verdict for each check it reported, and what went wrong with the rest."""

    verdicts: dict[str, Verdict] = field(default_factory=dict)
    imported: list[str] = field(default_factory=list)
    fatal: str = ""


class SandboxError(Exception):
    """The sandbox itself, or the chapter's set-up, did not work; the message says why."""


@functools.cache
def unavailable() -> str | None:
    """Why there is no sandbox here, in a sentence; None where there is one."""
    program = shutil.which("bwrap")
    if sys.platform != "linux":
        return f"the sandbox needs Linux (here: {sys.platform}); on Windows it runs in WSL"
    if program is None:
        return f"the program bwrap is missing: {INSTALL}"
    with tempfile.TemporaryDirectory() as folder:
        probe = [*_bubblewrap(Path(folder)), sys.executable, "-c", "print('inside')"]
        try:
            done = subprocess.run(probe, capture_output=True, text=True, timeout=60)
        except (OSError, subprocess.TimeoutExpired) as error:
            return f"bwrap does not run here: {error}"
    if done.returncode == 0 and done.stdout.strip() == "inside":
        return None
    said = (done.stderr or done.stdout).strip().splitlines()
    reason = f"bwrap does not run here: {said[-1] if said else f'exit status {done.returncode}'}"
    for setting, forbids in NAMESPACES.items():
        path = Path("/proc/sys", setting.replace(".", "/"))
        if path.exists() and path.read_text(encoding="ascii").strip() == forbids:
            return f"{reason}. This system allows no namespaces; to allow them: sysctl -w {setting}={1 - int(forbids)}"
    return f"{reason}. The system may forbid user namespaces, as containers often do"


def run(
    job: dict[str, Any], limits: Limits, *, protected: bool = True, stop: threading.Event | None = None,
    heard: Callable[[], object] = lambda: None,
) -> Outcome:
    """Runs the answers of one student.

    Args:
        job: as `inside/judge.py` describes it, without the limits.
        limits: what the process may take.
        protected: in bubblewrap; otherwise with the limits alone.
        stop: ends it early when set.
        heard: called whenever a verdict has come.

    Raises:
        SandboxError: if the process does not start, or the chapter's own set-up fails in it.
    """
    job = {**job, "seconds": limits.seconds, "megabytes": limits.megabytes, "kilobytes": limits.kilobytes}
    known = {check["id"] for exercise in job["exercises"] for check in exercise["checks"]}
    outcome = Outcome()
    with tempfile.TemporaryDirectory(prefix="grading-") as folder:
        home = Path(folder)
        (home / "job.json").write_text(json.dumps(job), encoding="utf-8")
        (home / "work").mkdir()
        command = [sys.executable, "-s", "-B", str(INSIDE / "judge.py")]
        if protected:
            command = [*_bubblewrap(home), *command]
        with open(home / "job.json", "rb") as task, open(home / "complaints", "w+b") as complaints:
            process = subprocess.Popen(
                command, stdin=task, stdout=subprocess.PIPE, stderr=complaints, cwd=home / "work",
                env=environment(home / "work"), start_new_session=True,
            )
            try:
                _listen(process, known, outcome, limits, len(job["exercises"]), stop, heard)
            finally:
                _kill(process)
            complaints.seek(0)
            said = complaints.read(20_000).decode("utf-8", "replace").strip()
    if outcome.fatal == "silent":
        raise SandboxError(f"the process that judges answers did not start. It said:\n{said or 'nothing'}")
    if outcome.fatal:
        raise SandboxError(f"the chapter's own set-up fails:\n{outcome.fatal}")
    return outcome


def environment(home: Path) -> dict[str, str]:
    """The variables that a student's process has; nothing of yours is among them."""
    variables = notebooks.kernel_environment(notebooks.ROOT)
    return {
        **variables,
        "PYTHONPATH": str(notebooks.ROOT),
        "PATH": "/usr/bin:/bin",
        "HOME": str(home),
        "TMPDIR": str(home),
        "USER": "student",
        "LANG": "C.UTF-8",
        "MPLBACKEND": "Agg",
        "MPLCONFIGDIR": str(home),
    }


def _bubblewrap(home: Path) -> list[str]:
    """The command that puts what follows it into the sandbox; `home` is what /tmp stands for outside."""
    command = [
        "bwrap", "--unshare-all", "--unshare-user", "--die-with-parent", "--new-session", "--cap-drop", "ALL",
        "--clearenv", "--proc", "/proc",
        "--dev", "/dev", "--size", str(16 << 20), "--tmpfs", "/dev/shm", "--remount-ro", "/dev",
        "--size", str(TMP_MEGABYTES << 20), "--tmpfs", "/tmp",
    ]
    for path in SYSTEM:
        if os.path.islink(path):
            command += ["--symlink", os.readlink(path), path]
        elif os.path.isdir(path):
            command += ["--ro-bind", path, path]
    for name in SETTINGS:
        command += ["--ro-bind-try", f"/etc/{name}", f"/etc/{name}"]
    command += ["--ro-bind-try", "/sys/devices/system/cpu", "/sys/devices/system/cpu"]
    for path in (*_environment_folders(), str(LIBRARY), str(INSIDE)):
        command += ["--ro-bind", path, path]
    command += ["--chdir", "/tmp", "--remount-ro", "/"]
    for name, value in environment(Path("/tmp")).items():
        command += ["--setenv", name, value]
    return command


def _environment_folders() -> list[str]:
    """The folders of this Python and its packages that do not belong to the system's, each once."""
    wanted = [
        os.path.join(prefix, part)
        for prefix in (sys.prefix, sys.base_prefix, os.path.realpath(sys.base_prefix))
        for part in ("bin", "lib", "lib64", "pyvenv.cfg")
    ]
    wanted += [entry for entry in sys.path if re.search(r"(site|dist)-packages$", entry)]
    wanted.append(os.path.dirname(os.path.realpath(sys.executable)))
    found: list[str] = []
    for path in wanted:
        under = any(path == other or path.startswith(f"{other}/") for other in (*found, *SYSTEM))
        if os.path.exists(path) and not under:
            found.append(path)
    return found


def _listen(
    process: subprocess.Popen[bytes], known: set[str], outcome: Outcome, limits: Limits, exercises: int,
    stop: threading.Event | None, heard: Callable[[], object],
) -> None:
    """Takes in what the process says until it ends, is late, says too much, or is no longer wanted."""
    assert process.stdout is not None
    deadline = time.monotonic() + limits.start
    rest, total, ready = b"", 0, False
    with selectors.DefaultSelector() as selector:
        selector.register(process.stdout, selectors.EVENT_READ)
        while time.monotonic() < deadline and not (stop is not None and stop.is_set()):
            if not selector.select(timeout=0.2):
                continue
            piece = os.read(process.stdout.fileno(), 65_536)
            total += len(piece)
            if not piece or total > HEARD:
                break
            *lines, rest = (rest + piece).split(b"\n")
            for line in lines:
                message = _message(line)
                if message.get("ready") is True and not ready:
                    ready = True
                    # The judge watches over each exercise itself; this is the last resort.
                    deadline = time.monotonic() + exercises * (limits.seconds + 5) + 5
                elif not ready and isinstance(message.get("fatal"), dict):
                    outcome.fatal = str(message["fatal"].get("traceback") or message["fatal"])
                elif ready and message.get("check") in known and message["check"] not in outcome.verdicts:
                    outcome.verdicts[message["check"]] = _verdict(message)
                    heard()
                elif ready and isinstance(message.get("imported"), list):
                    outcome.imported += [name for name in message["imported"] if isinstance(name, str)]
                if message.get("done") is True:
                    return
    if not ready and not outcome.fatal and not (stop is not None and stop.is_set()):
        outcome.fatal = "silent"


def _message(line: bytes) -> dict[str, Any]:
    try:
        message = json.loads(line)
    except (ValueError, RecursionError):
        return {}
    if not isinstance(message, dict) or not isinstance(message.get("check", ""), str):
        return {}
    return message


def _verdict(message: dict[str, Any]) -> Verdict:
    """A verdict with everything in it of the kind it should be, whatever was sent."""

    def text(value: object, most: int = 10_000) -> str:
        return value[:most] if isinstance(value, str) else ""

    def number(value: object) -> float | None:
        return float(value) if isinstance(value, int | float) and abs(value) < 1e6 else None

    error = message.get("error")
    error = error if isinstance(error, dict) else {}
    return Verdict(
        passed=message.get("passed") is True and not error,
        value=number(message.get("value")),
        output=text(message.get("output")),
        error=text(error.get("ename"), 200),
        message=text(error.get("evalue"), 2000),
        traceback=text(error.get("traceback")),
        seconds=number(message.get("seconds")) or 0.0,
    )


def _kill(process: subprocess.Popen[bytes]) -> None:
    """Ends the process and all it started: in bubblewrap, they end with the first process of their namespace."""
    try:
        os.killpg(process.pid, signal.SIGKILL)
    except OSError:
        process.kill()
    process.wait()
    if process.stdout is not None:
        process.stdout.close()


def fingerprint() -> list[str]:
    """What a verdict depends on beyond answers and checks: versions of Python and torch, the library, the judge."""
    files: Iterable[Path] = sorted([*LIBRARY.rglob("*.py"), *INSIDE.glob("*.py")])
    total = hashlib.sha256()
    for file in files:
        total.update(str(file.relative_to(notebooks.ROOT)).encode() + b"\x00" + file.read_bytes())
    versions = [f"{name} {metadata.version(name)}" for name in ("torch", "numpy", "einops")]
    return [sys.version, *versions, total.hexdigest()]
