"""Read pickles as data. A pickle is a program for a stack machine; the machine here never imports or calls anything named in the file.

It supports the instructions that build dictionaries, lists, tuples, numbers and strings. A reader defines what a name in a pickle means,
and what a call returns: `wsss.foreign.npy` for `.npy` files of other projects, `wsss.foreign.torchscript` for TorchScript archives. The
machine needs no more memory than the pickle has bytes, and never uses `pickle` or `torch.load`. docs/log.md explains why a
`pickle.Unpickler` with a list of allowed names is not enough.
"""

import dataclasses
import inspect
import io
import pickletools
from collections.abc import Callable
from typing import Any, Protocol, cast


class Forbidden(ValueError):
    """The pickle names something that its reader does not allow."""


@dataclasses.dataclass(eq=False)
class Unfinished:
    """A value whose state is still missing, and the positions in the memo that hold it."""

    finish: Callable[[Any], Any]
    """makes the value from its state"""
    positions: list[int] = dataclasses.field(default_factory=list)


class Reader(Protocol):
    """Defines the content allowed in a pickle.

    Attributes:
        instructions: the allowed ones of `INSTRUCTIONS`.
        keys: the allowed types of dictionary keys; only types whose hash is fast.
    """

    instructions: frozenset[str]
    keys: tuple[type, ...]

    def meaning(self, module: str, name: str) -> Any:
        """The replacement of a function or class with this name; raises Forbidden if it is not allowed."""

    def call(self, function: Any, arguments: tuple[Any, ...]) -> Any:
        """The result of calling a function or class; `function` may be any value of the pickle."""

    def finish(self, unfinished: Unfinished, state: Any) -> Any:
        """The value after its state is set."""

    def storage(self, reference: Any) -> Any:
        """The numbers that `reference` names, which are stored outside the pickle."""


# instructions that push their argument unchanged
_PLAIN = frozenset(
    (
        "INT", "BININT", "BININT1", "BININT2", "LONG", "LONG1", "LONG4", "FLOAT", "BINFLOAT",
        "STRING", "SHORT_BINSTRING", "BINSTRING", "UNICODE", "SHORT_BINUNICODE", "BINUNICODE", "BINUNICODE8",
        "SHORT_BINBYTES", "BINBYTES", "BINBYTES8",
    )
)  # fmt: skip
_CONSTANTS: dict[str, Callable[[], Any]] = {
    "NONE": lambda: None,
    "NEWTRUE": lambda: True,
    "NEWFALSE": lambda: False,
    "EMPTY_DICT": dict,
    "EMPTY_LIST": list,
    "EMPTY_TUPLE": tuple,
}
INSTRUCTIONS = _PLAIN | _CONSTANTS.keys() | {
    "PROTO", "FRAME", "MARK", "PUT", "BINPUT", "LONG_BINPUT", "MEMOIZE", "GET", "BINGET", "LONG_BINGET",
    "TUPLE", "TUPLE1", "TUPLE2", "TUPLE3", "LIST", "APPEND", "APPENDS", "DICT", "SETITEM", "SETITEMS",
    "GLOBAL", "STACK_GLOBAL", "REDUCE", "NEWOBJ", "BUILD", "BINPERSID", "STOP",
}  # fmt: skip


def run(stream: io.BytesIO, reader: Reader) -> Any:
    """Interpret one pickle and return its value; the stream is positioned after it.

    Raises:
        Forbidden: it has an instruction or a name that the reader does not allow.
        Exception: the pickle is invalid.
    """
    stack: list[Any] = []
    marks: list[int] = []
    memo: dict[int, Any] = {}

    def take(count: int | None = None) -> list[Any]:
        """Pop the last values, or all values after the mark."""
        at = marks.pop() if count is None else len(stack) - count
        if not 0 <= at <= len(stack):
            raise ValueError("a pickle that pops more values than it has pushed")
        items = stack[at:]
        del stack[at:]
        return items

    def put(position: int) -> None:
        memo[position] = stack[-1]
        if isinstance(stack[-1], Unfinished):
            stack[-1].positions.append(position)

    for opcode, operand, position in pickletools.genops(stream):
        name, argument = opcode.name, cast(Any, operand)
        if name not in reader.instructions:
            raise Forbidden(f"the pickle instruction {name} at byte {position}")
        if name in _PLAIN:
            stack.append(argument)
        elif name in _CONSTANTS:
            stack.append(_CONSTANTS[name]())
        elif name in ("PROTO", "FRAME"):
            continue
        elif name == "MARK":
            marks.append(len(stack))
        elif name in ("PUT", "BINPUT", "LONG_BINPUT"):
            put(argument)
        elif name == "MEMOIZE":
            put(len(memo))
        elif name in ("GET", "BINGET", "LONG_BINGET"):
            stack.append(memo[argument])
        elif name in ("TUPLE", "TUPLE1", "TUPLE2", "TUPLE3"):
            stack.append(tuple(take(int(name[5:]) if name[5:] else None)))
        elif name == "LIST":
            stack.append(take())
        elif name in ("APPEND", "APPENDS"):
            items = take(1 if name == "APPEND" else None)
            exactly(list, stack[-1]).extend(items)
        elif name == "DICT":
            stack.append(_filled({}, take(), reader.keys))
        elif name in ("SETITEM", "SETITEMS"):
            items = take(2 if name == "SETITEM" else None)
            _filled(exactly(dict, stack[-1]), items, reader.keys)
        elif name == "GLOBAL":
            stack.append(reader.meaning(*argument.split(" ", 1)))
        elif name == "STACK_GLOBAL":
            module, attribute = take(2)
            stack.append(reader.meaning(exactly(str, module), exactly(str, attribute)))
        elif name in ("REDUCE", "NEWOBJ"):
            function, arguments = take(2)
            stack.append(reader.call(function, exactly(tuple, arguments)))
        elif name == "BUILD":
            unfinished, state = take(2)
            if not isinstance(unfinished, Unfinished):
                raise ValueError(f"a state for a {type(unfinished).__name__}")
            stack.append(reader.finish(unfinished, state))
            for place in unfinished.positions:
                memo[place] = stack[-1]
            unfinished.positions.clear()
        elif name == "BINPERSID":
            stack.append(reader.storage(*take(1)))
        elif name == "STOP":
            return take(1)[0]
    raise ValueError("a pickle without an end")


def exactly(kind: type, value: Any) -> Any:
    """The value, if it has exactly this type, not a subclass.

    Raises:
        ValueError: it has another type.
    """
    if type(value) is not kind:
        raise ValueError(f"{type(value).__name__} instead of {kind.__name__}")
    return value


def called(function: Callable[..., Any], arguments: tuple[Any, ...]) -> Any:
    """The result of a function, after checking that it accepts this number of arguments."""
    inspect.signature(function).bind(*arguments)
    return function(*arguments)


def _filled(dictionary: dict[Any, Any], items: list[Any], kinds: tuple[type, ...]) -> dict[Any, Any]:
    if len(items) % 2:
        raise ValueError("a key without a value")
    for key, value in zip(items[::2], items[1::2], strict=True):
        # computing the hash of nested tuples can take arbitrarily long
        if type(key) not in kinds or (type(key) is int and abs(key) >= 2**63):
            raise ValueError(f"a key of type {type(key).__name__}")
        dictionary[key] = value
    return dictionary
