"""Runs one student's answers and the checks on them, inside the sandbox.

    python judge.py < job.json > verdicts.jsonl

Nothing of the book is here but `attn_lib`: this script and its two neighbours need the standard library alone.

The judge runs the set-up once, which imports torch and takes seconds. Then it forks for every exercise: the child runs
the answer and its checks and says what came of them, the judge waits no longer than it was told to and kills. So an
answer that hangs, exits, crashes the interpreter or eats memory costs its own exercise and no other. One line of JSON
leaves for each check as soon as it is known; whoever reads them must not believe more than their form.

The job: `{"setup": [[name, code]…], "exercises": [{"id", "before": [[name, code]…], "answer", "checks": [{"id",
"code"}…]}…], "imports": [module…], "seconds", "megabytes", "kilobytes"}`. With `"learning": true` the
answers are the book's own: nothing is suspected, and what they import is told.
"""

from __future__ import annotations

import ast
import builtins
import ctypes
import json
import linecache
import os
import re
import secrets
import select
import signal
import sys
import time
import traceback
import types
from typing import Any

import fence
import honesty

SHOWN = 8_000  # characters of what an exercise printed, or of a traceback, that the student gets to see
HERE = os.path.dirname(os.path.abspath(__file__))
PACKAGES = re.compile(r"^/.*(?:site-packages/|(?=attn_lib/)|lib/python[0-9.]+/)")  # where packages lie on this machine
READ = 65_536  # bytes taken from a pipe at once


class Magics:
    """Stands for IPython, which is not here: a magic in an answer does nothing, a shell command neither."""

    def __getattr__(self, name: str) -> Any:
        return lambda *arguments, **options: None


def compiled(name: str, code: str) -> types.CodeType:
    """The code of a cell; its lines appear in tracebacks."""
    file = f"<{name}>"
    linecache.cache[file] = (len(code), None, code.splitlines(keepends=True), file)
    return compile(code, file, "exec", dont_inherit=True)


class Check:
    """A check of the release: compiled before any answer has run, so that no answer changes what it says."""

    def __init__(self, id: str, code: str) -> None:
        self.id = id
        self.name = f"check {id}"
        compiled(self.name, code)
        tree = ast.parse(code, f"<{self.name}>")
        # As in a notebook, the value of a last expression is shown, and nbgrader takes a number for the points.
        last = tree.body.pop() if tree.body and isinstance(tree.body[-1], ast.Expr) else None
        self.body = compile(tree, f"<{self.name}>", "exec", dont_inherit=True)
        self.last = compile(ast.Expression(last.value), f"<{self.name}>", "eval", dont_inherit=True) if last else None
        self.imports = {alias.name for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names}
        self.imports |= {node.module for node in ast.walk(tree) if isinstance(node, ast.ImportFrom) and node.module}

    def run(self, world: dict[str, Any]) -> float | None:
        """Runs it on what `world` holds; returns the number it ends with, if it ends with one.

        Its own variables stay out of `world`: an answer that is called by the check finds there what the answer left,
        and not the numbers that the check expects.
        """
        names = dict(world)
        exec(self.body, names)
        value = eval(self.last, names) if self.last is not None else None
        return float(value) if type(value) in (int, float) else None


class Exercise:
    """An answer with what it needs of the student's own cells, and its checks."""

    def __init__(self, job: dict[str, Any]) -> None:
        self.id: str = job["id"]
        self.cells: list[tuple[str, str]] = [*map(tuple, job["before"]), (f"answer {self.id}", job["answer"])]
        self.checks = [Check(check["id"], check["code"]) for check in job["checks"]]

    def run(self, world: dict[str, Any], guard: honesty.Guard, say: Any) -> None:
        """Runs answer and checks; `say` is called with what came of each check. Runs in the child."""
        try:
            for name, code in self.cells:
                honesty.refuse_internals(code)
                exec(compiled(name, code), world)
        except BaseException as error:  # SystemExit and KeyboardInterrupt are an answer's error like any other
            for check in self.checks:
                say(check=check.id, passed=False, error=described(error))
            return
        for check in self.checks:
            value, error = None, None
            try:
                guard.compare()
                with guard:
                    value = check.run(world)
                guard.compare()
            except BaseException as raised:
                error = described(raised)
            say(check=check.id, passed=error is None, value=value, error=error)


def described(error: BaseException) -> dict[str, str]:
    """What the student gets to see of an error: its name, its message, the lines of cells, and the last line."""
    try:
        name, message = type(error).__name__, str(error)
        frames = traceback.extract_tb(error.__traceback__)
        frames = [frame for frame in frames if os.path.dirname(frame.filename) != HERE]
        cells = [frame for frame in frames[:-1] if frame.filename.startswith("<")]
        for frame in frames[-1:]:
            frame.filename = PACKAGES.sub("", frame.filename)
            cells.append(frame)
        lines = traceback.format_list(cells) + traceback.format_exception_only(type(error), error)
        text = "".join(lines)
    except BaseException:  # an exception may have a `__str__` of its own
        name, message, text = "Exception", "the answer raised an exception that cannot be shown", ""
    return {"ename": name[:200], "evalue": message[:2000], "traceback": text[-SHOWN:]}


def attempt(exercise: Exercise, world: dict[str, Any], guard: honesty.Guard, job: dict[str, Any]) -> None:
    """Runs one exercise in a child and reports it."""
    began = time.monotonic()
    word = secrets.token_hex(16)
    heard, told = os.pipe()
    seen, shown = os.pipe()
    pid = os.fork()
    if pid == 0:
        child(exercise, world, guard, job, word, told, shown)
    os.close(told)
    os.close(shown)
    lines, output, stopped = listen(pid, heard, seen, job["seconds"], job["kilobytes"] * 1000)
    said = {}
    for line in lines.split(b"\n"):
        if line.startswith(word.encode()):
            try:
                message = json.loads(line[len(word):])
                said[message.get("check", "")] = message
            except (ValueError, KeyError, TypeError):
                continue
    text = output.decode("utf-8", "replace")
    if len(text) > SHOWN:
        text = f"{text[: SHOWN // 2]}\n[…]\n{text[-SHOWN // 2 :]}"
    for check in exercise.checks:
        verdict = said.get(check.id) or {"check": check.id, "passed": False, "error": stopped}
        report(exercise=exercise.id, seconds=round(time.monotonic() - began, 2), output=text, **verdict)
        text = ""  # it is shown once
    report(imported=said.get("", {}).get("imported", []))


def child(
    exercise: Exercise, world: dict[str, Any], guard: honesty.Guard, job: dict[str, Any], word: str, told: int, shown: int
) -> None:
    """The child's life: it never returns."""
    try:
        os.dup2(shown, 1)
        os.dup2(shown, 2)
        told = os.dup2(told, 3)
        os.closerange(4, 1 << 16)  # nothing that belongs to the judge stays open
        os.setsid()
        write, dumps, newline, prefix = os.write, json.JSONEncoder().encode, b"\n", word.encode()

        def say(**message: Any) -> None:
            write(told, prefix + dumps(message).encode() + newline)

        fence.close(seconds=job["seconds"], megabytes=job["megabytes"])
        guard.forbid()
        before = set(sys.modules)
        exercise.run(world, guard, say)
        sys.stdout.flush()
        say(imported=sorted({*sys.modules} - before))
    finally:
        os._exit(0)


def listen(pid: int, heard: int, seen: int, seconds: float, most: int) -> tuple[bytes, bytes, dict[str, str]]:
    """Reads what the child says and prints until it ends, takes too long or prints too much; then kills it.

    Returns:
        what it said, what it printed, and why a check of which it said nothing has no verdict.
    """
    deadline = time.monotonic() + seconds
    lines, output, why = b"", b"", None
    open_ends = {heard, seen}
    while heard in open_ends and why is None:
        left = deadline - time.monotonic()
        if left <= 0:
            why = ("Timeout", f"it took longer than {seconds:g} seconds and was stopped")
            break
        for end in select.select(list(open_ends), [], [], min(left, 1.0))[0]:
            piece = os.read(end, READ)
            if not piece:
                open_ends.discard(end)
            elif end == heard:
                lines += piece
            else:
                output += piece
            if len(lines) + len(output) > most:
                why = ("TooMuchOutput", f"it printed more than {most // 1000} KB and was stopped")
    try:
        os.killpg(pid, signal.SIGKILL)
    except OSError:
        pass
    try:
        os.kill(pid, signal.SIGKILL)
    except OSError:
        pass
    _, status = os.waitpid(pid, 0)
    while seen in open_ends and select.select([seen], [], [], 0)[0]:  # what is still in the pipe
        piece = os.read(seen, READ)
        output += piece[: max(0, most - len(output))]
        if not piece:
            break
    os.close(heard)
    os.close(seen)
    if why is None:
        sent = os.WTERMSIG(status) if os.WIFSIGNALED(status) else 0
        how = f"signal {signal.Signals(sent).name}" if sent not in (0, signal.SIGKILL) else "without a word"
        why = ("Ended", f"the answer ended the interpreter ({how})")
    return lines, output, {"ename": why[0], "evalue": why[1], "traceback": ""}


def report(**message: Any) -> None:
    """One line for whoever reads the verdicts."""
    sys.__stdout__.write(json.dumps(message) + "\n")
    sys.__stdout__.flush()


def main() -> None:
    """Does the job on stdin."""
    job = json.loads(sys.stdin.read())
    sys.path[:] = [folder for folder in sys.path if folder != HERE]
    hide_from_children()
    # `__main__` is the student's notebook, not this script.
    notebook = types.ModuleType("__main__")
    sys.modules["__main__"] = notebook
    world = notebook.__dict__
    world["get_ipython"] = Magics
    try:
        exercises = [Exercise(exercise) for exercise in job["exercises"]]
        for name, code in job["setup"]:
            exec(compiled(name, code), world)
        imports = {name for exercise in exercises for check in exercise.checks for name in check.imports}
        for module in [*sorted(imports), *job["imports"]]:  # once here, and not in every child
            try:
                builtins.__import__(module)
            except ImportError:
                continue
        guard = honesty.Guard(imports, learning=bool(job.get("learning")))
    except BaseException as error:
        report(fatal=described(error))
        return
    report(ready=True)
    for exercise in exercises:
        attempt(exercise, world, guard, job)
    report(done=True)


def hide_from_children() -> None:
    """Lets no process of the same user look into this one's memory, its children included (Linux)."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(4, 0, 0, 0, 0)  # PR_SET_DUMPABLE


if __name__ == "__main__":
    main()
