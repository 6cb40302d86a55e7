"""Whether an answer passes its check honestly, as far as that can be seen from inside the same interpreter.

Three things are looked at. *What is not the answer's own stays as it was*: functions and classes of Python, torch,
numpy and the library are compared with a list made before any answer ran, after the answer, whenever a call into it
returns to the check, and after the check. *What it returns does not judge itself*: an object of the answer's own class
with an `__eq__` of its own would equal anything. *It stays out of the interpreter's insides*: the stack, on which the
check's numbers lie, other threads, the garbage collector's lists, foreign code.

A person who knows CPython well gets past this; what gets past it does not look like an answer any more.

Nothing here is a class with methods, and what is captured is captured in closures: Python lists all classes to whoever
asks, with their methods and through them their module, but not the functions that live in another function.
"""

from __future__ import annotations

import ast
import inspect
import sys
import types
from collections.abc import Callable, Iterable, Mapping
from typing import Any

WATCHED = {
    "builtins", "math", "cmath", "operator", "functools", "itertools", "copy", "numbers", "statistics", "fractions",
    "torch", "numpy", "einops", "attn_lib",
}
# Of these a change is looked for at every return into the check; of the others before it and after it.
CLOSELY = {
    "builtins", "math", "torch", "torch.testing", "torch.testing._comparison", "torch.nn", "torch.nn.functional",
    "torch.linalg", "attn_lib", "attn_lib.tap", "attn_lib.measure",
}
# Modules whose tables matter: torch's tolerances, and its hooks into every layer.
TABLES = ("torch.testing", "torch.nn.modules.module")
# By these torch lets Python take the place of any of its functions.
TAKING_PART = ("__torch_function__", "__torch_dispatch__")
COMPARING = (
    "__eq__", "__ne__", "__lt__", "__le__", "__gt__", "__ge__", "__bool__", "__abs__", "__sub__", "__rsub__",
    "__truediv__", "__rtruediv__", "__float__", "__int__", "__index__", "__len__", "__contains__", "__hash__",
    "__torch_function__", "__torch_dispatch__", "__array__", "__array_ufunc__", "__array_function__",
    "__getattribute__", "__getattr__", "__class__",
)
INTERNALS = {
    "f_back", "f_globals", "f_locals", "f_builtins", "f_code", "tb_frame", "gi_frame", "cr_frame", "ag_frame",
    "__globals__", "__closure__", "__code__", "cell_contents", "__subclasses__", "_getframe", "_current_frames",
    "getprofile", "setprofile", "settrace", "addaudithook",
}
NEVER = {
    "os.fork", "os.forkpty", "os.exec", "os.posix_spawn", "os.spawn", "os.system", "subprocess.Popen",
    "gc.get_objects", "gc.get_referrers", "gc.get_referents", "sys.settrace", "sys.setprofile", "sys.addaudithook",
    "sys._current_frames", "sys._current_exceptions", "sys.monitoring.register_callback", "code.__new__",
    "_thread.start_new_thread", "_thread.start_joinable_thread", "signal.pthread_kill",
}
NOT_FROM_AN_ANSWER = {
    "sys._getframe", "sys._getframemodulename", "object.__getattr__", "compile", "marshal.loads",
}
ANSWER = "<answer"  # how the files of an answer's code are called
CODE = {"__code__", "__defaults__", "__kwdefaults__"}
HARMLESS = (object, int, float, complex, str, bytes, dict, list, tuple, set, frozenset, bool, type(None))

Names = Mapping[str, Any]


class NotAllowed(Exception):
    """An answer reached for something that is not its own."""


def refuse_internals(code: str) -> None:
    """Refuses the text of an answer that names what only debuggers need.

    Raises:
        NotAllowed: with the name.
    """
    for node in ast.walk(ast.parse(code)):
        name = node.attr if isinstance(node, ast.Attribute) else node.value if isinstance(node, ast.Constant) else None
        if isinstance(name, str) and name in INTERNALS:
            raise NotAllowed(f"an answer may not use {name!r}")


def owner(roots: Iterable[str]) -> Callable[[types.CodeType], bool]:
    """A function that says whether code is an answer's, where what lies below `roots` is not.

    An answer's code is called so, or comes from a file that lies nowhere we know. What other packages make of strings
    while they run is called "<string>"; `forbid` keeps an answer from that.
    """
    roots = ("<", *roots)

    def own(code: types.CodeType) -> bool:
        return code.co_filename.startswith(ANSWER) or not code.co_filename.startswith(roots)

    return own


def snapshot(modules: Iterable[str]) -> tuple[list[tuple[str, Names, dict[str, Any]]], list[Any], set[type]]:
    """What an answer must leave as it is.

    Args:
        modules: names of modules beyond `WATCHED`, which the checks import.

    Returns:
        For every module and class its name, its names as they are at any time, and as they are now; where a new name
        would hide another one, the same with the forbidden names, or with None if any is; and the classes.
    """
    packages = {name.partition(".")[0] for name in modules} | WATCHED
    view = type.__dict__["__dict__"].__get__  # a class's names, whatever its metaclass says
    hidden_by_module = frozenset(vars(sys.modules["builtins"]))
    entries: list[tuple[str, Names, dict[str, Any]]] = [("sys.modules", sys.modules, dict(sys.modules))]
    additions, classes = [], {}
    for name, module in list(sys.modules.items()):
        if name.partition(".")[0] not in packages or not isinstance(module, types.ModuleType):
            continue
        live = module.__dict__
        saved = {key: value for key, value in live.items() if fixed(value)}
        entries.append((name, live, saved))
        if name != "builtins":
            additions.append((name, live, frozenset(live), hidden_by_module))
        if name.startswith(TABLES):
            tables = {key: table for key, table in live.items() if isinstance(table, dict) and not key.startswith("__")}
            entries += [(f"{name}.{key}", table, dict(table)) for key, table in tables.items()]
            additions += [(f"{name}.{key}", table, frozenset(table), None) for key, table in tables.items()]
        for value in saved.values():
            if isinstance(value, type) and value.__module__.partition(".")[0] in packages:
                classes[id(value)] = value
    for cls in classes.values():
        name, live = f"{cls.__module__}.{cls.__qualname__}", view(cls)
        entries.append((name, live, {key: value for key, value in live.items() if fixed(value)}))
        above = {key for base in cls.__mro__[1:] for key in view(base) if not key.startswith("__") or key in COMPARING}
        additions.append((name, live, frozenset(live), frozenset(above)))
    return entries, additions, set(classes.values())


def fixed(value: Any) -> bool:
    """Whether a name's value is something that no honest run exchanges: counters and settings do change."""
    kind = type(value)  # asking the value itself would wake what only warns of its own age
    calls = any("__call__" in vars(base) for base in kind.__mro__)
    return calls or issubclass(kind, types.ModuleType | property | staticmethod | classmethod)


def watcher(
    modules: Iterable[str], roots: Iterable[str]
) -> tuple[Callable[[], None], Callable[[Callable[[], Any]], Any], Callable[[], None]]:
    """Three functions around one snapshot.

    Args:
        modules: what the checks import.
        roots: folders of code that is not an answer's.

    Returns:
        `compare()` raises `NotAllowed` where something is not as it was; `watching(check)` runs a check and has an eye
        on what the answer does meanwhile; `forbid()` makes this process refuse, from now on, what an answer has no
        business with.
    """
    entries, additions, classes = snapshot(modules)
    closely = [entry for entry in entries if entry[0] in CLOSELY]
    own, is_function = owner(roots), types.FunctionType
    builtin = (types.WrapperDescriptorType, types.MethodDescriptorType, types.BuiltinFunctionType)
    getframe, setprofile = sys._getframe, sys.setprofile
    inspecting = inspect.__file__
    faults: list[str] = []
    busy = [False]  # while this file itself does what it forbids

    def wraps(package: str, new: Any, value: Any) -> bool:
        """Whether a package put a function of its own around one: torch does so with optimisers, when first used."""
        if type(new) is not is_function or own(new.__code__) or f"/{package}/" not in new.__code__.co_filename:
            return False
        try:
            for cell in new.__closure__ or ():
                if cell.cell_contents is value:
                    return True
        except ValueError:  # an empty cell
            return False
        return False

    def look(at: list[tuple[str, Names, dict[str, Any]]]) -> None:
        for name, live, saved in at:
            for key, value in saved.items():
                new = live.get(key)
                if new is not value and not wraps(name.partition(".")[0], new, value):
                    faults.append(f"the answer replaced {name}.{key}, which is not its own")
                    return

    def compare() -> None:
        look(entries)
        for name, live, known, forbidden in additions:
            for key in live:
                if key not in known and (forbidden is None or key in forbidden):
                    faults.append(f"the answer added {name}.{key}, which is not its own")
        if faults:
            raise NotAllowed(faults[0])

    def judges_itself(value: Any, depth: int = 2) -> str | None:
        """The method by which a returned object would decide itself whether it is right."""
        for cls in type(value).__mro__:
            if cls in HARMLESS or cls in classes:
                continue
            for name in COMPARING:
                method = cls.__dict__.get(name)
                method = getattr(method, "__func__", method)
                foreign = own(method.__code__) if type(method) is is_function else (
                    callable(method) and not isinstance(method, builtin) and name != "__class__"
                )
                if foreign:
                    return f"{cls.__name__}.{name}"
        if depth and isinstance(value, dict):
            value = list(dict.values(value))
        if depth and isinstance(value, list | tuple):
            for item in value[:1000]:
                if type(item) not in HARMLESS[:5] and (name := judges_itself(item, depth - 1)):
                    return name
        return None

    def returned(frame: types.FrameType, event: str, value: Any) -> None:
        """Looks closely whenever a call into the answer's code returns to code that is not the answer's."""
        if event != "return" or not own(frame.f_code):
            return
        back = frame.f_back
        if back is None or own(back.f_code) or faults:
            return
        busy[0] = True
        look(closely)
        if frame.f_code.co_name in TAKING_PART:
            faults.append(f"the answer took the place of torch's functions, by {frame.f_code.co_name}")
        elif name := judges_itself(value):
            faults.append(f"the answer returns an object that compares itself, by {name}")
        busy[0] = False

    def watching(check: Callable[[], Any]) -> Any:
        busy[0] = True
        setprofile(returned)
        busy[0] = False
        try:
            return check()
        finally:
            busy[0] = True
            setprofile(None)
            busy[0] = False

    def refuse(event: str, arguments: tuple[Any, ...]) -> None:
        if busy[0]:
            return
        if event in NEVER or event.startswith("ctypes."):
            raise PermissionError(f"an answer may not use {event}")
        if event in ("object.__setattr__", "object.__delattr__") and arguments[1] in CODE:
            busy[0] = True
            code = arguments[0].__code__
            made = own(code) or code.co_filename.startswith("<")  # named tuples make functions and set these
            busy[0] = False
            if not made:
                raise PermissionError("an answer may not change the code of a function that is not its own")
        elif event in NOT_FROM_AN_ANSWER:
            busy[0] = True
            frame = getframe(1)
            while frame is not None and frame.f_code.co_filename == inspecting:
                frame = frame.f_back
            asked = frame is not None and own(frame.f_code)
            busy[0] = False
            if asked:
                raise PermissionError(f"an answer may not use {event}")

    def forbid() -> None:
        if hasattr(sys, "getprofile"):  # it would hand out `returned`, and with it all of this
            del sys.getprofile
        sys.addaudithook(refuse)

    return compare, watching, forbid
