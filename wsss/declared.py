"""Settings read from source code, without importing the modules that declare them.

A module that declares settings may import torch, which takes seconds. The command line needs only the names, types, defaults
and help texts, so it reads them from the source. Each settings dataclass gets a mirror: a dataclass with the same name,
fields and defaults, but without methods. `wsss.settings.from_mirror` turns instances of mirrors into real settings, whose checks then run.

Expressions in declarations are evaluated; the names in them are looked up in the source in the same way. Functions are supported if
their body is a single `return`. Everything else becomes `Opaque`, which is an error only where a setting needs its value.
"""

import ast
import builtins
import dataclasses
import functools
import importlib
import importlib.machinery
import importlib.util
import itertools
import re
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, ClassVar, NamedTuple, get_origin

from wsss.errors import BadInput, reading

EXPECTED = "settings declared by plain values, tuples, other settings, and names of these"
# names of Python that declarations may use
_BUILTINS = (
    "None", "True", "False", "int", "float", "bool", "str", "dict", "tuple", "list", "range", "round", "min", "max", "sum", "len", "sorted",
)  # fmt: skip
_LIBRARY = ("dataclasses", "typing", "pathlib", "math", "types")
_DATACLASS = ("dataclass", "dataclasses.dataclass")
# comments and strings, and the ends of lines after which a statement begins in the first column
_MARKS = re.compile(
    r"""
    \#[^\n]*
    | \"{3}[^"\\]*(?:(?:\\.|"(?!""))[^"\\]*)*\"{3}
    | \'{3}[^'\\]*(?:(?:\\.|'(?!''))[^'\\]*)*\'{3}
    | "[^"\\\n]*(?:\\.[^"\\\n]*)*"
    | '[^'\\\n]*(?:\\.[^'\\\n]*)*'
    | \n(?=[^\s\#)\]}])
    """,
    re.DOTALL | re.VERBOSE,
)
_DEFINED = re.compile(r"(?:class|(?:async\s+)?def)\s+(\w+)")
# metadata of a mirror's fields
HELP, PLACE = "help", "place"
# attribute of mirrors: place and description of what cannot be read in the declaration, or None
UNREAD = "__unread__"


class Opaque:
    """A value that is only known when the module runs.

    Args:
        name: its source text.
    """

    def __init__(self, name: str) -> None:
        self.name = name

    def __repr__(self) -> str:
        return f"`{self.name}`"

    @property
    def is_foreign(self) -> bool:
        """Whether it comes from a third-party package."""
        first, dot, _ = self.name.partition(".")
        return bool(dot) and first not in sys.stdlib_module_names

    def __getattr__(self, name: str) -> "Opaque":
        if name.startswith("__"):
            raise AttributeError(name)
        return Opaque(f"{self.name}.{name}")

    def __call__(self, *args: object, **kwargs: object) -> "Opaque":
        return Opaque(f"{self.name}(...)")

    def __getitem__(self, key: object) -> "Opaque":
        return Opaque(f"{self.name}[...]")

    def __or__(self, other: object) -> "Opaque":
        return self

    __ror__ = __or__


class _Definition(NamedTuple):
    """The source of a class or function at the top level of a module; it is parsed only if something refers to it.

    Attributes:
        line: number of its first line, from 1.
        text: its source, decorators included.
    """

    line: int
    text: str

    def parsed(self, path: Path) -> ast.stmt:
        """Its statement."""
        # line numbers are those of the whole file
        return ast.parse("\n" * (self.line - 1) + self.text, path).body[0]


class Mirror:
    """What all mirrors share. Their classes have no methods of their own but `__init__`, since making these takes longer than reading the source."""

    def __eq__(self, other: object) -> bool:
        return type(self) is type(other) and vars(self) == vars(other)

    def __hash__(self) -> int:
        return hash((type(self), *vars(self).values()))

    def __repr__(self) -> str:
        return f"{type(self).__name__}({', '.join(f'{name}={value!r}' for name, value in vars(self).items())})"


class Source:
    """A module known only by its source; its top-level names are attributes.

    Args:
        name: dotted name of the module.
        path: its file.
    """

    def __init__(self, name: str, path: Path) -> None:
        self._name, self._path = name, path
        with reading(path, "Python source", "Correct it."):
            self._statements = _statements(importlib.util.decode_source(path.read_bytes()), path)
        self._values: dict[str, Any] = {}
        self._pending: set[str] = set()

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        if name not in self._values:
            if name in self._pending:
                raise BadInput(str(self._path), f"{name}, whose declaration refers to itself", EXPECTED, "Correct it.")
            self._pending.add(name)
            try:
                self._values[name] = self._read(name)
            finally:
                self._pending.discard(name)
        return self._values[name]

    def _read(self, name: str) -> Any:
        if name not in self._statements:
            inner = _find(f"{self._name}.{name}")
            return inner if inner is not None else Opaque(name)
        statement, original = self._statements[name]
        if isinstance(statement, _Definition):
            with reading(self._path, "Python source", "Correct it."):
                statement = statement.parsed(self._path)
        match statement:
            case ast.Import():
                return self._imported(original)
            case ast.ImportFrom():
                return self._imported_from(statement, original)
            case ast.Assign(value=value, targets=[ast.Tuple(elts=names)]):
                position = [ast.unparse(one) for one in names].index(name)
                return self._evaluated(value)[position]
            case ast.Assign(value=value) | ast.AnnAssign(value=ast.expr() as value):
                return self._evaluated(value)
            case ast.FunctionDef():
                return self._function(statement)
            case ast.ClassDef():
                return self._class(statement)
        return Opaque(name)

    def _imported_from(self, statement: ast.ImportFrom, original: str) -> Any:
        package = self._name.split(".")
        if statement.level:
            is_package = self._path.name == "__init__.py"
            package = package[: len(package) - statement.level + is_package]
        base = ".".join([*(package if statement.level else ()), *([statement.module] if statement.module else ())])
        module = self._imported(base)
        return module if isinstance(module, Opaque) else getattr(module, original, Opaque(f"{base}.{original}"))

    def _imported(self, name: str) -> Any:
        """A module that a declaration uses: from the standard library, or the source of one of this program."""
        first = name.partition(".")[0]
        if first in _LIBRARY:
            return importlib.import_module(name)
        packages = ("wsss", self._name.partition(".")[0])
        return (_find(name) if first in packages else None) or Opaque(name)

    def _function(self, statement: ast.FunctionDef) -> Any:
        body = statement.body[1:] if ast.get_docstring(statement) else statement.body
        if statement.decorator_list or len(body) != 1 or not isinstance(body[0], ast.Return) or body[0].value is None:
            return Opaque(statement.name)
        for argument in ast.walk(statement.args):
            if isinstance(argument, ast.arg):
                argument.annotation = None
        return self._evaluated(ast.copy_location(ast.Lambda(statement.args, body[0].value), statement))

    def _evaluated(self, expression: ast.expr) -> Any:
        """The value of an expression.

        Raises:
            BadInput: its evaluation fails.
        """
        match expression:  # most are so simple that compiling them would take longer
            case ast.Constant(value=value):
                return value
            case ast.Name(id=name):
                return self._name_of(name)
        inside = list(ast.walk(expression))
        bound = {node.id for node in inside if isinstance(node, ast.Name) and not isinstance(node.ctx, ast.Load)}
        bound |= {node.arg for node in inside if isinstance(node, ast.arg)}
        names = {node.id for node in inside if isinstance(node, ast.Name)} - bound
        known = {name: self._name_of(name) for name in names}
        try:
            code = compile(ast.Expression(expression), str(self._path), "eval")
            return eval(code, {"__builtins__": {}, **known})
        except BadInput:
            raise
        except Exception as error:  # an expression can raise anything
            found = f"`{ast.unparse(expression):.80}`, which fails ({type(error).__name__}: {error})"
            raise BadInput(self._place(expression), found, EXPECTED, "Correct it.") from error

    def _name_of(self, name: str) -> Any:
        if name not in self._statements and name in _BUILTINS:
            return getattr(builtins, name)
        return getattr(self, name)

    def _class(self, statement: ast.ClassDef) -> Any:
        bases = [self._evaluated(base) for base in statement.bases]
        mirrors = tuple(base for base in bases if is_mirror(base))
        decorators = [decorator for decorator in statement.decorator_list if _decorator_name(decorator) in _DATACLASS]
        if not decorators and not mirrors:
            return Opaque(statement.name)
        foreign = [base.name for base in bases if isinstance(base, Opaque) and base.is_foreign]
        unread = next((getattr(base, UNREAD) for base in mirrors if getattr(base, UNREAD)), None)
        if foreign:
            unread = self._place(statement), f"{statement.name}, which inherits from {foreign[0]}"
        namespace: dict[str, Any] = {
            "__module__": self._name,
            "__qualname__": statement.name,
            "__doc__": ast.get_docstring(statement),
            UNREAD: unread,
            **{name: Opaque(name) for name in _methods(statement)},
        }
        if not decorators:
            return type(statement.name, mirrors, namespace)
        found: list[tuple[str, Any, Any]] = []
        for line, below in itertools.pairwise([*statement.body, ast.Pass()]):
            if isinstance(line, ast.AnnAssign) and isinstance(line.target, ast.Name):
                kind = self._annotation(line.annotation)
                if kind is not ClassVar and get_origin(kind) is not ClassVar:
                    found.append((line.target.id, kind, self._field(line, below)))
        options = decorators[0].keywords if isinstance(decorators[0], ast.Call) else []
        by_name = any(option.arg == "kw_only" and ast.unparse(option.value) == "True" for option in options)
        try:
            return dataclasses.make_dataclass(
                statement.name,
                found,
                bases=mirrors or (Mirror,),
                namespace=namespace,
                kw_only=by_name,
                eq=False,
                repr=False,
            )
        except (TypeError, ValueError) as error:
            raise BadInput(self._place(statement), f"{statement.name} ({error})", EXPECTED, "Correct it.") from error

    def _annotation(self, annotation: ast.expr) -> Any:
        if isinstance(annotation, ast.Constant) and isinstance(annotation.value, str):
            annotation = ast.copy_location(ast.parse(annotation.value, mode="eval").body, annotation)
        kind = self._evaluated(annotation)
        return type(None) if kind is None else kind

    def _field(self, line: ast.AnnAssign, below: ast.stmt) -> Any:
        default = self._evaluated(line.value) if line.value else dataclasses.MISSING
        metadata = {PLACE: self._place(line)}
        match below:
            case ast.Expr(value=ast.Constant(value=str(text))):
                metadata[HELP] = " ".join(text.split())
        if isinstance(default, dataclasses.Field):
            metadata |= default.metadata
            if default.default_factory is not dataclasses.MISSING:
                return dataclasses.field(default_factory=default.default_factory, metadata=metadata)
            default = default.default
        return dataclasses.field(default=default, metadata=metadata)

    def _place(self, node: ast.AST) -> str:
        return f"{self._path}, line {getattr(node, 'lineno', 1)}"


def read(module: str, name: str) -> Any:
    """The value of a module-level name, as far as the source tells.

    Returns:
        A mirror for a settings class, an instance of a mirror for settings, a plain value for a constant, a type for a type
        alias; `Opaque` for everything else.

    Raises:
        BadInput: there is no such module or name, or a declaration cannot be evaluated.
    """
    source = _source(module)
    if name not in source._statements:
        raise BadInput(str(source._path), f"no {name}", f"{name} at the top of the module", "Add it.")
    return getattr(source, name)


def is_mirror(kind: Any) -> bool:
    """Whether a class is a mirror of a settings class."""
    return isinstance(kind, type) and hasattr(kind, UNREAD)


def is_readable(value: Any) -> bool:
    """Whether a value is fully known from the source."""
    if isinstance(value, tuple | list):
        return all(map(is_readable, value))
    if is_mirror(type(value)):
        return all(is_readable(getattr(value, field.name)) for field in dataclasses.fields(value))
    return not isinstance(value, Opaque) and not callable(value)


def real(mirror: type) -> type:
    """The settings class of a mirror; imports its module."""
    return getattr(importlib.import_module(mirror.__module__), mirror.__qualname__)


@functools.cache
def _source(name: str) -> Source:
    found = _find(name)
    if found is None:
        raise BadInput(name, "no such module", "one with Python source", "Check its name.")
    return found


@functools.cache
def _find(name: str) -> Source | None:
    """The source of a module, found without importing its packages; None if there is none."""
    *packages, _ = name.split(".")
    places: Sequence[str] | None = None
    for n in range(len(packages)):
        package = ".".join(packages[: n + 1])
        if package in sys.modules:
            places = list(getattr(sys.modules[package], "__path__", ()))
        else:
            spec = importlib.machinery.PathFinder.find_spec(package, places)
            places = list(spec.submodule_search_locations or ()) if spec else []
    # the package itself is on no path if it is installed in editable mode
    spec = sys.modules[name].__spec__ if name in sys.modules else importlib.machinery.PathFinder.find_spec(name, places)
    if spec is None or spec.origin is None or not spec.origin.endswith(".py"):
        return None
    return Source(name, Path(spec.origin))


def _statements(text: str, path: Path) -> dict[str, tuple["ast.stmt | _Definition", str]]:
    """The statements that bind the top-level names of a module, each with its original name in an import.

    Most of a module are classes and functions that no setting refers to. They are found by their first lines, and left out when the rest is parsed,
    which takes a fraction of the time.

    Raises:
        SyntaxError: the text is no Python source.
    """
    definitions = _definitions(text)
    rest, at = [], 0
    for begin, end, _ in definitions:
        rest += [text[at:begin], "\n" * text.count("\n", begin, end)]
        at = end
    try:
        tree = ast.parse("".join([*rest, text[at:]]), path)
    except SyntaxError:  # also if a line inside brackets looked like a statement
        definitions, tree = [], ast.parse(text, path)
    found: list[tuple[int, str, ast.stmt | _Definition, str]] = []
    for statement in _flatten(tree.body):
        found += [(statement.lineno, bound, statement, original) for bound, original in _bound_names(statement)]
    for begin, end, name in definitions:
        line = text.count("\n", 0, begin) + 1
        found.append((line, name, _Definition(line, text[begin:end]), name))
    found.sort(key=lambda one: one[0])  # what is bound last counts
    return {bound: (statement, original) for _, bound, statement, original in found}


def _definitions(text: str) -> list[tuple[int, int, str]]:
    """Beginning, end and name of the classes and functions that begin in the first column."""
    begins = [at.end() for at in _MARKS.finditer(f"\n{text}") if at[0] == "\n"]
    found, decorated = [], None
    for begin, end in itertools.pairwise([*(at - 1 for at in begins), len(text)]):
        if text[begin] == "@":
            decorated = begin if decorated is None else decorated
        elif named := _DEFINED.match(text, begin):
            found.append((begin if decorated is None else decorated, end, named[1]))
            decorated = None
    return found


def _flatten(statements: Sequence[ast.stmt]) -> Iterator[ast.stmt]:
    """The top-level statements of a module, including those inside `if` and `try`."""
    for statement in statements:
        yield statement
        for part in ("body", "orelse", "handlers") if isinstance(statement, ast.If | ast.Try) else ():
            yield from _flatten([inner for inner in getattr(statement, part, ()) if isinstance(inner, ast.stmt)])


def _bound_names(statement: ast.stmt) -> Iterator[tuple[str, str]]:
    """The names that a statement binds, each with its original name in an import."""
    match statement:
        case ast.Import(names=names):
            for alias in names:
                first = alias.name.partition(".")[0]
                yield (alias.asname, alias.name) if alias.asname else (first, first)
        case ast.ImportFrom(names=names):
            for alias in names:
                yield alias.asname or alias.name, alias.name
        case ast.Assign(targets=[ast.Tuple(elts=targets)]):
            for target in targets:
                if isinstance(target, ast.Name):
                    yield target.id, target.id
        case ast.Assign(targets=[ast.Name(id=name)]) | ast.AnnAssign(target=ast.Name(id=name)):
            yield name, name
        case ast.FunctionDef(name=name) | ast.ClassDef(name=name):
            yield name, name


def _decorator_name(decorator: ast.expr) -> str:
    return ast.unparse(decorator.func if isinstance(decorator, ast.Call) else decorator)


def _methods(statement: ast.ClassDef) -> Iterator[str]:
    for inner in statement.body:
        if isinstance(inner, ast.FunctionDef) and not inner.name.startswith("__"):
            yield inner.name
