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
from collections.abc import Callable
from typing import Any

import fence
import honesty

SHOWN = 8_000  # characters of what an exercise printed, or of a traceback, that the student gets to see
PARTS = ("ename", "evalue", "traceback")  # of an error
HERE = os.path.dirname(os.path.abspath(__file__))
PACKAGES = re.compile(r"^/.*(?:site-packages/|(?=attn_lib/)|lib/python[0-9.]+/)")  # where packages lie on this machine
READ = 65_536  # bytes taken from a pipe at once


# Stands for IPython, which is not here: a magic in an answer does nothing, nor does a shell command. It is made in the
# notebook, because a function made here would lead an answer to all the others.
MAGICS = """
class get_ipython:
    def __getattr__(self, name):
        return lambda *arguments, **options: None
"""


def compiled(name: str, code: str) -> types.CodeType:
    """The code of a cell; its lines appear in tracebacks."""
    file = f"<{name}>"
    linecache.cache[file] = (len(code), None, code.splitlines(keepends=True), file)
    return compile(code, file, "exec", dont_inherit=True)


def ready(check: dict[str, str]) -> tuple[str, types.CodeType, types.CodeType | None, set[str]]:
    """A check, compiled before any answer has run: its id, its statements, its last expression, what it imports.

    As in a notebook, the value of a last expression counts: nbgrader takes a number for the points.
    """
    file = f"<check {check['id']}>"
    compiled(file[1:-1], check["code"])
    tree = ast.parse(check["code"], file)
    last = tree.body.pop() if tree.body and isinstance(tree.body[-1], ast.Expr) else None
    imports = {alias.name for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names}
    imports |= {node.module for node in ast.walk(tree) if isinstance(node, ast.ImportFrom) and node.module}
    value = compile(ast.Expression(last.value), file, "eval", dont_inherit=True) if last is not None else None
    return check["id"], compile(tree, file, "exec", dont_inherit=True), value, imports


def run(
    exercise: dict[str, Any], world: dict[str, Any], guard: tuple[Any, Any, Any] | None,
    say: Callable[[str, bool, float | None, dict[str, str]], None],
) -> None:
    """Runs an answer and its checks, in the child; `say` is called with what came of each check.

    What checks define stays out of `world`: an answer that is called by a check finds there what the answer left, and
    not the numbers that the check expects.
    """
    compare, watching, _ = guard or (lambda: None, lambda check: check(), None)
    try:
        for name, code in [*exercise["before"], (f"answer {exercise['id']}", exercise["answer"])]:
            cell = compiled(name, code)
            if guard:
                honesty.refuse_internals(code)
            exec(cell, world)
    except BaseException as error:  # SystemExit and KeyboardInterrupt are an answer's error like any other
        for id, *_ in exercise["checks"]:
            say(id, False, None, described(error))
        return
    names = dict(world)
    for id, body, last, _ in exercise["checks"]:

        def check(body: Any = body, last: Any = last) -> Any:
            exec(body, names)
            return eval(last, names) if last is not None else None

        try:
            compare()
            try:
                value = watching(check)
            finally:
                compare()  # what was replaced tells more than the assertion that failed
        except BaseException as error:
            say(id, False, None, described(error))
        else:
            say(id, True, float(value) if type(value) in (int, float) else None, {})


def described(error: BaseException) -> dict[str, str]:
    """What the student gets to see of an error: its name, its message, the lines of cells, and the last line."""
    try:
        name, message = type(error).__name__, f"{error}"
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
    return dict(zip(PARTS, (name[:200], message[:2000], text[-SHOWN:]), strict=True))


def attempt(
    exercise: dict[str, Any], world: dict[str, Any], guard: tuple[Any, Any, Any] | None, job: dict[str, Any]
) -> None:
    """Runs one exercise in a child and reports it."""
    began = time.monotonic()
    word = secrets.token_hex(16).encode()
    heard, told = os.pipe()
    seen, shown = os.pipe()
    pid = os.fork()
    if pid == 0:
        child(exercise, world, guard, job, word, told, shown)
    os.close(told)
    os.close(shown)
    lines, output, stopped = listen(pid, heard, seen, job["seconds"], job["kilobytes"] * 1000)
    said: dict[str, tuple[bool, float | None, dict[str, str]]] = {}
    imported: list[str] = []
    for line in lines.split(b"\n"):
        parts = line.split(b" ")
        if parts[0] != word:  # only whoever was told the word speaks for the check
            continue
        texts = [bytes.fromhex(part.decode("ascii")).decode("utf-8", "replace") for part in parts[1:]]
        if texts[0] == "imported":
            imported = texts[1:]
        else:
            id, passed, value, *error = texts
            said[id] = passed == "yes", float(value) if value else None, dict(zip(PARTS, error, strict=False))
    text = output.decode("utf-8", "replace")
    if len(text) > SHOWN:
        text = f"{text[: SHOWN // 2]}\n[…]\n{text[-SHOWN // 2 :]}"
    for id, *_ in exercise["checks"]:
        passed, value, error = said.get(id, (False, None, stopped))
        seconds = round(time.monotonic() - began, 2)
        report(check=id, passed=passed, value=value, error=error, output=text, seconds=seconds)
        text = ""  # it is shown once
    report(imported=imported)


def child(
    exercise: dict[str, Any], world: dict[str, Any], guard: tuple[Any, Any, Any] | None, job: dict[str, Any],
    word: bytes, told: int, shown: int,
) -> None:
    """The child's life: it never returns."""
    try:
        os.dup2(shown, 1)
        os.dup2(shown, 2)
        told = os.dup2(told, 3)
        os.closerange(4, 1 << 16)  # nothing that belongs to the judge stays open
        os.setsid()
        write = os.write

        # Nothing in here can be exchanged by an answer: only methods of exact strings and bytes, and what is captured.
        def tell(*texts: str) -> None:
            line = word
            for text in texts:
                line += b" " + text.encode("utf-8", "replace").hex().encode()
            write(told, line + b"\n")

        def say(id: str, passed: bool, value: float | None, error: dict[str, str]) -> None:
            tell(id, "yes" if passed else "no", f"{value}" if value is not None else "", *error.values())

        fence.close(seconds=job["seconds"], megabytes=job["megabytes"])
        before = set(sys.modules)
        if guard:
            guard[2]()
        run(exercise, world, guard, say)
        tell("imported", *[name for name in sys.modules if name not in before][:5000])
        sys.stdout.flush()
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
    # `__main__` is the student's notebook; this script and its neighbours are nowhere to be found by name.
    notebook = types.ModuleType("__main__")
    sys.modules["__main__"] = notebook
    del sys.modules["honesty"], sys.modules["fence"]
    world = notebook.__dict__
    exec(MAGICS, world)
    try:
        exercises = [{**one, "checks": [ready(check) for check in one["checks"]]} for one in job["exercises"]]
        for name, code in job["setup"]:
            exec(compiled(name, code), world)
        imports = {name for one in exercises for check in one["checks"] for name in check[3]}
        for module in [*sorted(imports), *job["imports"]]:  # once here, and not in every child
            try:
                builtins.__import__(module)
            except ImportError:
                continue
        roots = {*filter(None, sys.path), sys.prefix, sys.base_prefix, HERE}
        guard = None if job.get("learning") else honesty.watcher(imports, roots)
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
