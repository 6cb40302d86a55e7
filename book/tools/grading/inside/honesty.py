"""Whether an answer passes its check honestly, as far as that can be seen from inside the same interpreter.

Three things are looked at. *What is not the answer's own stays as it was*: functions and classes of Python, torch,
numpy and the library are compared with a list made before any answer ran, after the answer, whenever a call into it
returns to the check, and after the check. *What it returns does not judge itself*: an object of the answer's own class
with an `__eq__` of its own would equal anything. *It stays out of the interpreter's insides*: the stack, on which the
check's numbers lie, other threads, the garbage collector's lists, foreign code.

A person who knows CPython well gets past this; what gets past it does not look like an answer any more.
"""

from __future__ import annotations

import ast
import inspect
import sys
import types
from collections.abc import Iterable, Mapping
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
COMPARING = (
    "__eq__", "__ne__", "__lt__", "__le__", "__gt__", "__ge__", "__bool__", "__abs__", "__sub__", "__rsub__",
    "__truediv__", "__rtruediv__", "__float__", "__int__", "__index__", "__len__", "__contains__", "__hash__",
    "__torch_function__", "__torch_dispatch__", "__array__", "__array_ufunc__", "__array_function__",
    "__getattribute__", "__getattr__", "__class__",
)
INTERNALS = {
    "f_back", "f_globals", "f_locals", "f_builtins", "f_code", "tb_frame", "gi_frame", "cr_frame", "ag_frame",
    "__globals__", "__closure__", "__code__", "cell_contents", "__subclasses__", "_getframe", "_current_frames",
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


class Guard:
    """The list of what is not the answer's own, made when it is constructed, and what is compared with it.

    Args:
        modules: names of further modules, which the checks import.
        learning: compare nothing: the first run of an assignment imports much, and imports exchange functions.
    """

    def __init__(self, modules: Iterable[str] = (), *, learning: bool = False) -> None:
        self.learning = learning
        self.trusted = tuple({*filter(None, sys.path), sys.prefix, sys.base_prefix, __file__.rpartition("/")[0]})
        self.entries: list[tuple[str, Mapping[str, Any], dict[str, Any]]] = []
        self.closely: list[tuple[str, Mapping[str, Any], dict[str, Any]]] = []
        self.new_names: list[tuple[str, Mapping[str, Any], int, frozenset[str], frozenset[str]]] = []
        self.classes: set[type] = set()
        self.fault: str | None = None
        self.getframe, self.setprofile = sys._getframe, sys.setprofile
        self.busy = False
        if not learning:
            self._list({name.partition(".")[0] for name in modules} | WATCHED)

    def _list(self, packages: set[str]) -> None:
        view = type.__dict__["__dict__"].__get__  # a class's names, whatever its metaclass says
        shadowed = frozenset(vars(sys.modules["builtins"]))
        self.entries.append(("sys.modules", sys.modules, dict(sys.modules)))
        seen: dict[int, tuple[str, type]] = {}
        for name, module in list(sys.modules.items()):
            if name.partition(".")[0] not in packages or not isinstance(module, types.ModuleType):
                continue
            live = module.__dict__
            saved = {key: value for key, value in live.items() if self._fixed(value)}
            entry = (name, live, saved)
            self.entries.append(entry)
            if name in CLOSELY:
                self.closely.append(entry)
            if name != "builtins":
                self.new_names.append((name, live, len(live), frozenset(live), shadowed))
            for value in saved.values():
                if isinstance(value, type) and value.__module__.partition(".")[0] in packages:
                    seen[id(value)] = (f"{value.__module__}.{value.__qualname__}", value)
            if name.startswith("torch.testing"):  # the tolerances
                tables = {key: table for key, table in live.items() if type(table) is dict and not key.startswith("__")}
                self.entries += [(f"{name}.{key}", table, dict(table)) for key, table in tables.items()]
        for name, cls in seen.values():
            self.classes.add(cls)
            live = view(cls)
            entry = (name, live, {key: value for key, value in live.items() if self._fixed(value)})
            self.entries.append(entry)
            if cls.__name__ in ("Tensor", "TensorBase", "_TensorBase", "Module", "Trace", "Tap"):
                self.closely.append(entry)
            inherited = frozenset(key for base in cls.__mro__[1:] for key in view(base)) & frozenset(COMPARING) | (
                frozenset(key for base in cls.__mro__[1:-1] for key in view(base) if not key.startswith("__")))
            self.new_names.append((name, live, len(live), frozenset(live), inherited))

    def _own(self, code: types.CodeType) -> bool:
        """Whether the code is the answer's: it is called so, or lies in a file that came from nowhere we know.

        What other packages make of strings while they run is called "<string>"; `forbid` keeps an answer from that.
        """
        file = code.co_filename
        return file.startswith(ANSWER) or not file.startswith(("<", *self.trusted))

    @staticmethod
    def _fixed(value: Any) -> bool:
        """Whether a name's value is something that no honest run exchanges: counters and settings do change."""
        return callable(value) or isinstance(value, types.ModuleType | property | staticmethod | classmethod)

    def compare(self) -> None:
        """Compares everything.

        Raises:
            NotAllowed: with the name of what is not as it was.
        """
        self._look(self.entries)
        for name, live, size, known, forbidden in self.new_names:
            if len(live) != size and self.fault is None:
                for key in live:
                    if key not in known and key in forbidden:
                        self.fault = f"the answer added {name}.{key}, which is not its own"
        if self.fault is not None:
            raise NotAllowed(self.fault)

    def _look(self, entries: list[tuple[str, Mapping[str, Any], dict[str, Any]]]) -> None:
        if self.fault is None:
            for name, live, saved in entries:
                for key, value in saved.items():
                    if live.get(key) is not value:
                        self.fault = f"the answer replaced {name}.{key}, which is not its own"
                        return

    def __enter__(self) -> None:
        if not self.learning:
            self._profile(self._returned)

    def __exit__(self, *_: object) -> None:
        self._profile(None)

    def _profile(self, function: Any) -> None:
        self.busy = True
        self.setprofile(function)
        self.busy = False

    def _returned(self, frame: types.FrameType, event: str, value: Any) -> None:
        """Looks closely whenever a call into the answer's code returns to code that is not the answer's."""
        if event != "return" or not self._own(frame.f_code):
            return
        back = frame.f_back
        if back is None or self._own(back.f_code):
            return
        self.busy = True
        self._look(self.closely)
        if self.fault is None and (name := self._judges_itself(value)):
            self.fault = f"the answer returns an object that compares itself, by {name}"
        self.busy = False

    def _judges_itself(self, value: Any, depth: int = 2) -> str | None:
        """The method by which a returned object would decide itself whether it is right."""
        for cls in type(value).__mro__:
            if cls in self.classes or cls in (object, int, float, str, dict, list, tuple, bool, type(None)):
                continue
            for name in COMPARING:
                method = cls.__dict__.get(name)
                method = getattr(method, "__func__", method)
                if isinstance(method, types.FunctionType):
                    if self._own(method.__code__):
                        return f"{cls.__name__}.{name}"
                elif callable(method) and not isinstance(
                    method, types.WrapperDescriptorType | types.MethodDescriptorType | types.BuiltinFunctionType
                ):
                    return f"{cls.__name__}.{name}"
        if depth and isinstance(value, dict):
            value = list(dict.values(value))
        if depth and isinstance(value, list | tuple):
            for item in value[:1000]:
                if type(item) not in (int, float, str, bool) and (name := self._judges_itself(item, depth - 1)):
                    return name
        return None

    def forbid(self) -> None:
        """From now on this process refuses what an answer has no business with. Cannot be undone."""
        getframe, inspecting = self.getframe, inspect.__file__

        def refuse(event: str, arguments: tuple[Any, ...]) -> None:
            if self.busy:
                return
            if event in NEVER or event.startswith("ctypes."):
                raise PermissionError(f"an answer may not use {event}")
            if event == "object.__setattr__" and arguments[1] in CODE:
                self.busy = True
                code = arguments[0].__code__
                made = self._own(code) or code.co_filename.startswith("<")  # named tuples make functions and set these
                self.busy = False
                if not made:
                    raise PermissionError("an answer may not change the code of a function that is not its own")
            elif event in NOT_FROM_AN_ANSWER:
                self.busy = True
                frame = getframe(1)
                while frame is not None and frame.f_code.co_filename == inspecting:
                    frame = frame.f_back
                own = frame is not None and self._own(frame.f_code)
                self.busy = False
                if own:
                    raise PermissionError(f"an answer may not use {event}")

        sys.addaudithook(refuse)
