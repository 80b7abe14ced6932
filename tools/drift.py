"""API drift: what the course calls in other libraries, held against the versions installed.

The notebooks, `course_utils` and `benchmarks` are read, not run: every name that they import from a
library, every method that they call on an object whose class is plain to see, and every argument
that they name. The list is `tests/api_signatures.toml`; whatever of it an installed version lacks
is told by name, such as "trl 0.9.0: trl.SFTConfig has no argument `max_length`".

    drift.py collect            read the sources and write the list anew
    drift.py check              hold what is installed against the list; status 1 if it differs
    drift.py try [WHICH ...]    make environments with the lowest, the pinned and the newest
                                versions in build/drift, and check in each
"""

from __future__ import annotations

import argparse
import ast
import contextlib
import functools
import importlib
import importlib.metadata
import inspect
import io
import json
import logging
import os
import re
import subprocess
import sys
import textwrap
import tomllib
import venv
import warnings
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tools import bootstrap

ROOT = Path(__file__).resolve().parent.parent
LIST = ROOT / "tests" / "api_signatures.toml"
EXTRAS = ("judge", "benchmarks", "widgets", "course")
ENVIRONMENTS = ROOT / "build" / "drift"
READ = ("notebooks/solutions/*.py", "course_utils/**/*.py", "benchmarks/*.py")
# With the libraries of another time, in an environment of their own.
NOT_READ = (
    "benchmarks/tables_2024/backend.py",
    "benchmarks/tables_2024/published_tables.py",
)
WHICH = ("lowest", "pinned", "newest")
LIBRARIES = (
    "accelerate",
    "bitsandbytes",
    "datasets",
    "evalica",
    "gguf",
    "huggingface_hub",
    "lm_eval",
    "openai",
    "peft",
    "sacrebleu",
    "safetensors",
    "torch",
    "transformers",
    "trl",
)
LINE = 100
_HAND_BACK_THEIR_OBJECT = ("eval", "train", "to", "float", "requires_grad_")
_MARK = "# --- collected by `python -m tools.drift collect`; do not edit below this line"


# --- reading the sources -------------------------------------------------------------------------


@dataclass
class Use:
    """A name of a library's, the arguments that are named in calls of it, and the files."""

    arguments: set[str] = field(default_factory=set)
    files: set[str] = field(default_factory=set)


@dataclass
class Scope:
    """What the names of a module or function stand for."""

    names: dict[str, str] = field(default_factory=dict)  # imported: the dotted name
    kinds: dict[str, set[str]] = field(default_factory=dict)  # variables: classes it may be of
    tables: dict[str, set[str]] = field(default_factory=dict)  # dictionaries: their keys
    functions: dict[str, ast.FunctionDef] = field(default_factory=dict)
    outer: Scope | None = None

    def find(self, table: str, name: str) -> Any:
        """What a name is in a table of this scope or of those around it; None if nothing."""
        found = getattr(self, table).get(name)
        return self.outer.find(table, name) if found is None and self.outer else found


class Reader:
    """Reads one source and adds what it uses to `uses`: (classes or empty, name) to a `Use`.

    Where the classes are empty, the name is dotted, as imported. Else it is a method of an object
    that may be of one of these classes.
    """

    def __init__(
        self, path: str, returns: dict[str, list[str]], uses: dict[tuple[frozenset[str], str], Use]
    ):
        self.path = path
        self.returns = returns
        self.uses = uses
        self.within: set[str] = set()  # functions whose results are being looked at

    def read(self, text: str) -> None:
        """Read a module's text."""
        tree = ast.parse(text)
        scope = Scope()
        self.learn(tree.body, scope)
        self.learn(tree.body, scope)  # a second time, for functions that stand below their use
        self.visit(tree.body, scope)

    def add(self, classes: frozenset[str], name: str, arguments: set[str]) -> None:
        """Note a use."""
        use = self.uses.setdefault((classes, name), Use())
        use.arguments |= arguments
        use.files.add(self.path)

    # What names stand for.

    def learn(self, body: list[ast.stmt], scope: Scope) -> None:
        """Take in the imports, assignments and functions of a scope, those of inner ones not."""
        for node in statements(body):
            if isinstance(node, ast.Import):
                for alias in node.names:
                    if is_library(alias.name):
                        whole = alias.name if alias.asname else alias.name.split(".")[0]
                        scope.names[alias.asname or whole] = whole
            elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
                if node.module.split(".")[0] in (*LIBRARIES, "course_utils"):
                    for alias in node.names:
                        name = f"{node.module}.{alias.name}"
                        scope.names[alias.asname or alias.name] = name
            elif isinstance(node, ast.FunctionDef):
                scope.functions[node.name] = node
            elif isinstance(node, ast.Assign):
                for target in node.targets:
                    self.assign(target, node.value, scope)
            elif isinstance(node, ast.AnnAssign) and node.value:
                self.assign(node.target, node.value, scope)
            elif isinstance(node, ast.With):
                for item in node.items:
                    if item.optional_vars:
                        self.assign(item.optional_vars, item.context_expr, scope)

    def assign(self, target: ast.expr, value: ast.expr, scope: Scope) -> None:
        """Note of which class a variable is, or which keys a dictionary has."""
        if not isinstance(target, ast.Name):
            return
        if kinds := self.kinds(value, scope):
            scope.kinds[target.id] = scope.kinds.get(target.id, set()) | kinds
        if entries := self.entries(value, scope):
            scope.tables[target.id] = scope.tables.get(target.id, set()) | entries

    def dotted(self, node: ast.expr, scope: Scope) -> str:
        """The dotted name of an expression that leads to something imported, else nothing."""
        if isinstance(node, ast.Name):
            return scope.find("names", node.id) or ""
        if isinstance(node, ast.Attribute) and (start := self.dotted(node.value, scope)):
            return f"{start}.{node.attr}"
        return ""

    def kinds(self, node: ast.expr, scope: Scope) -> set[str]:
        """The classes of which an expression may be, as far as it is plain to see."""
        if isinstance(node, ast.Name):
            return scope.find("kinds", node.id) or set()
        if not isinstance(node, ast.Call):
            return set()
        if name := self.dotted(node.func, scope):
            if name in self.returns:
                return set(self.returns[name])
            known = is_library(name) and name.rpartition(".")[2][:1].isupper()
            return {name} if known else set()
        if isinstance(node.func, ast.Name):
            function = scope.find("functions", node.func.id)
            return self.returned(function, scope) if function else set()
        if isinstance(node.func, ast.Attribute) and node.func.attr in _HAND_BACK_THEIR_OBJECT:
            return self.kinds(node.func.value, scope)
        return set()

    def returned(self, function: ast.FunctionDef, scope: Scope) -> set[str]:
        """The classes of which a function's result may be."""
        found: set[str] = set()
        if function.name in self.within:
            return found
        self.within.add(function.name)
        inner = self.inside(function, scope)
        for node in statements(function.body):
            if isinstance(node, ast.Return) and node.value is not None:
                found |= self.kinds(node.value, inner)
        self.within.discard(function.name)
        return found

    def inside(self, function: ast.FunctionDef, outer: Scope) -> Scope:
        """The scope of a function: its annotated parameters and what it assigns."""
        scope = Scope(outer=outer)
        parameters = [*function.args.posonlyargs, *function.args.args, *function.args.kwonlyargs]
        for parameter in parameters:
            scope.kinds[parameter.arg] = set()  # hides what is called the same outside
            if parameter.annotation:
                scope.kinds[parameter.arg] = self.annotated(parameter.annotation, outer)
        self.learn(function.body, scope)
        return scope

    def annotated(self, node: ast.expr, scope: Scope) -> set[str]:
        """The classes that an annotation names."""
        names = [self.dotted(part, scope) for part in ast.walk(node) if isinstance(part, ast.expr)]
        return {name for name in names if is_library(name)}

    # What is used.

    def visit(self, body: list[ast.stmt], scope: Scope) -> None:
        """Note every use in a scope, and in those inside it."""
        for statement in body:
            self.walk(statement, scope)

    def walk(self, node: ast.AST, scope: Scope) -> None:
        """Note the uses in a node."""
        if isinstance(node, ast.FunctionDef):
            for part in (*node.decorator_list, node.args):
                self.walk(part, scope)
            self.visit(node.body, self.inside(node, scope))
            return
        if isinstance(node, ast.ClassDef):
            for part in (*node.decorator_list, *node.bases):
                self.walk(part, scope)
            inner = Scope(outer=scope)
            self.learn(node.body, inner)
            self.visit(node.body, inner)
            return
        if isinstance(node, ast.ImportFrom) and is_library(node.module or ""):
            for alias in node.names:
                self.add(frozenset(), f"{node.module}.{alias.name}", set())
        if isinstance(node, ast.Attribute) and is_library(name := self.dotted(node, scope)):
            self.add(frozenset(), name, set())
            return
        if isinstance(node, ast.Call):
            self.call(node, scope)
        if isinstance(node, ast.Constant | ast.JoinedStr):
            self.script(node)
            if isinstance(node, ast.Constant):
                return
        for child in ast.iter_child_nodes(node):
            self.walk(child, scope)

    def call(self, node: ast.Call, scope: Scope) -> None:
        """Note a call with its named arguments."""
        arguments = self.arguments(node, scope)
        if name := self.dotted(node.func, scope):
            if is_library(name):
                self.add(frozenset(), name, arguments)
        elif isinstance(node.func, ast.Attribute):
            if kinds := self.kinds(node.func.value, scope):
                self.add(frozenset(kinds), node.func.attr, arguments)
        elif isinstance(node.func, ast.Name):
            if kinds := scope.find("kinds", node.func.id):
                self.add(frozenset(kinds), "__call__", arguments)
            elif function := scope.find("functions", node.func.id):
                self.forward(function, arguments, scope)

    def arguments(self, node: ast.Call, scope: Scope) -> set[str]:
        """The arguments that a call names, those of a dictionary written out near it included."""
        found = {keyword.arg for keyword in node.keywords if keyword.arg}
        for keyword in node.keywords:
            if keyword.arg is None:
                found |= self.entries(keyword.value, scope)
        return found

    def entries(self, node: ast.expr, scope: Scope) -> set[str]:
        """The keys of a dictionary, as far as they are written out."""
        if isinstance(node, ast.Dict):
            found = {key.value for key in node.keys if isinstance(key, ast.Constant)}
            inner = [value for key, value in zip(node.keys, node.values, strict=True) if not key]
            return found.union(*(self.entries(value, scope) for value in inner))
        if isinstance(node, ast.Name):
            return scope.find("tables", node.id) or set()
        if isinstance(node, ast.BinOp) and isinstance(node.op, ast.BitOr):
            return self.entries(node.left, scope) | self.entries(node.right, scope)
        if (
            isinstance(node, ast.Call)
            and isinstance(node.func, ast.Name)
            and node.func.id == "dict"
        ):
            return self.arguments(node, scope)
        return set()

    def forward(self, function: ast.FunctionDef, arguments: set[str], scope: Scope) -> None:
        """A call of a function of the source's own that hands its `**options` on."""
        if not function.args.kwarg:
            return
        parameters = [*function.args.args, *function.args.kwonlyargs]
        rest = arguments - {parameter.arg for parameter in parameters}
        inner = self.inside(function, scope)
        for node in ast.walk(function):
            if isinstance(node, ast.Call) and any(
                keyword.arg is None
                and any(
                    isinstance(part, ast.Name) and part.id == function.args.kwarg.arg
                    for part in ast.walk(keyword.value)
                )
                for keyword in node.keywords
            ):
                name = self.dotted(node.func, inner)
                if is_library(name):
                    self.add(frozenset(), name, rest)

    def script(self, node: ast.Constant | ast.JoinedStr) -> None:
        """A program that stands in a source as a text, for a process of its own."""
        if isinstance(node, ast.JoinedStr):
            parts = [
                part.value if isinstance(part, ast.Constant) else "None" for part in node.values
            ]
            text = "".join(map(str, parts))
        else:
            text = node.value if isinstance(node.value, str) else ""
        if re.search(rf"^\s*(from|import) ({'|'.join(LIBRARIES)})\b", text, re.M):
            with contextlib.suppress(SyntaxError):
                Reader(self.path, self.returns, self.uses).read(text)


def is_library(name: str) -> bool:
    """Whether a dotted name is one of a library that is watched."""
    return name.split(".")[0] in LIBRARIES


def statements(body: list[ast.stmt]) -> Iterator[ast.stmt]:
    """The statements of a scope, those in its loops and conditions too, of inner scopes none."""
    for node in body:
        yield node
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            continue
        for part in ("body", "orelse", "finalbody"):
            yield from statements(getattr(node, part, []))
        for handler in getattr(node, "handlers", []):
            yield from statements(handler.body)


def uses(settings: dict[str, Any]) -> dict[tuple[frozenset[str], str], Use]:
    """Everything that the course's sources use of the libraries."""
    found: dict[tuple[frozenset[str], str], Use] = {}
    for pattern in READ:
        for path in sorted(ROOT.glob(pattern)):
            name = path.relative_to(ROOT).as_posix()
            if name not in NOT_READ:
                Reader(name, settings["returns"], found).read(path.read_text(encoding="utf-8"))
    return found


# --- looking at the libraries --------------------------------------------------------------------


class Absent(Exception):
    """A library, module or name that is not there; the text says from which part on."""


@functools.cache
def load(module: str) -> Any:
    """Import a module quietly.

    Raises:
        Absent: it cannot be imported.
    """
    try:
        with (
            warnings.catch_warnings(),
            contextlib.redirect_stderr(io.StringIO()),
            contextlib.redirect_stdout(io.StringIO()),
        ):
            warnings.simplefilter("ignore")
            return importlib.import_module(module)
    except Exception as error:  # whatever a library raises when it does not fit its neighbours
        reason = " ".join(f"{type(error).__name__}: {error}".split())
        raise Absent(f"{module} cannot be imported ({reason[:200]})") from error


@functools.cache
def look_up(name: str) -> Any:
    """The object with a dotted name.

    Raises:
        Absent: there is none.
    """
    library, *rest = name.split(".")
    found, path = load(library), library
    for part in rest:
        inside = f"{path}.{part}"
        try:
            found = getattr(found, part)
        except AttributeError:
            if not inspect.ismodule(found) or not _is_module(inside):
                raise Absent(f"{path} has no {part}") from None
            found = load(inside)
        except Exception as error:  # what a lazy module raises
            raise Absent(f"{inside} cannot be imported ({error})") from error
        path = inside
    return found


def _is_module(name: str) -> bool:
    """Whether there is a module with this name."""
    try:
        return importlib.util.find_spec(name) is not None
    except (ImportError, ValueError):
        return False


def accepts(name: str, argument: str, settings: dict[str, Any]) -> bool | None:
    """Whether a callable takes an argument by this name; None where its signature cannot tell."""
    called = look_up(name)
    try:
        parameters = inspect.signature(called).parameters
    except (TypeError, ValueError):  # written in C
        return None
    if argument in parameters:
        return parameters[argument].kind is not inspect.Parameter.POSITIONAL_ONLY
    if _takes_out(called, argument):
        return True
    if not any(each.kind is inspect.Parameter.VAR_KEYWORD for each in parameters.values()):
        return False
    others = settings["hands_on"].get(name)
    if others is None:
        return None
    answers = [accepts(other, argument, settings) for other in others]
    return True if True in answers else None if None in answers else False


def _takes_out(called: Any, argument: str) -> bool:
    """Whether a function, or some method of a class, takes an argument out of its `**kwargs`."""
    try:
        text = inspect.getsource(called)
    except (OSError, TypeError):
        return False
    quoted = rf"""["']{re.escape(argument)}["']"""
    return bool(re.search(rf"kwargs(\.(pop|get|setdefault)\(|\[)\s*{quoted}|{quoted} in ", text))


def version_of(library: str) -> str:
    """A library as its users write it with its version: "trl 1.16.0"."""
    names = importlib.metadata.packages_distributions().get(library, [library])
    try:
        return f"{library} {importlib.metadata.version(names[0])}"
    except importlib.metadata.PackageNotFoundError:
        return library


# --- the list ------------------------------------------------------------------------------------


def read_list() -> dict[str, Any]:
    """`tests/api_signatures.toml`: what is said by hand, and what was collected."""
    return tomllib.loads(LIST.read_text(encoding="utf-8"))


def collected() -> dict[str, set[str]]:
    """The list as the sources and the installed versions give it.

    What the sources import by name is on it in any case. A method that none of the classes has,
    and an argument that no signature can tell of, are left out: there the reading guessed wrong, or
    nothing can be checked.
    """
    settings = read_list()["by_hand"]
    found: dict[str, set[str]] = {}

    def keep(name: str, arguments: set[str], sure: bool) -> None:
        known = found.setdefault(name, set())
        for argument in arguments:
            try:
                answer = accepts(name, argument, settings)
            except Absent:
                answer = None
            if answer or (answer is False and sure):
                known.add(argument)

    for (classes, name), use in uses(settings).items():
        if not classes:
            if name not in settings["ignored"]:
                keep(name, use.arguments, sure=True)
            continue
        for each in sorted(classes):
            with contextlib.suppress(Absent):
                look_up(f"{each}.{name}")
                if not _is_everywhere(each, name):
                    keep(f"{each}.{name}", use.arguments, sure=False)
                break
    for name, arguments in settings["also"].items():
        keep(name, set(arguments), sure=True)
    return dict(sorted(found.items()))


def _is_everywhere(name: str, method: str) -> bool:
    """Whether all of PyTorch's modules, or all dictionaries, have this method: nothing to watch."""
    common = (look_up("torch.nn.Module"), dict)
    return method != "__call__" and any(
        inspect.isclass(look_up(name)) and issubclass(look_up(name), each) and hasattr(each, method)
        for each in common
    )


def as_toml(found: dict[str, set[str]]) -> str:
    """The collected part of the list."""
    lines = [_MARK, "", "[collected]"]
    for name, arguments in found.items():
        listed = ", ".join(map(json.dumps, sorted(arguments)))
        lines.append(f'"{name}" = [{listed}]')
        if len(lines[-1]) > LINE:
            inner = textwrap.wrap(listed, LINE, initial_indent="    ", subsequent_indent="    ")
            lines[-1] = "\n".join([f'"{name}" = [', *inner, "]"])
    return "\n".join(lines) + "\n"


def stale() -> bool:
    """Whether the list is not what the sources say."""
    return (
        LIST.read_text(encoding="utf-8").partition(_MARK)[2] != as_toml(collected())[len(_MARK) :]
    )


def differences() -> list[str]:
    """What the list has and the installed libraries have not, a line each."""
    content = read_list()
    found: dict[str, str] = {}  # what is amiss, to the name that it is about
    for name, arguments in content["collected"].items():
        library = version_of(name.split(".")[0])
        try:
            look_up(name)
        except Absent as error:
            found.setdefault(f"{library}: {error}", name)
            continue
        for argument in arguments:
            if accepts(name, argument, content["by_hand"]) is False:
                found[f"{library}: {name} has no argument `{argument}`"] = name
    return [f"{line} ({', '.join(users(name)) or 'by hand'})" for line, name in found.items()]


def users(name: str) -> list[str]:
    """The files that use a name of the list, three at most."""
    files: set[str] = set()
    for (classes, used), use in _read_uses().items():
        if used == name or any(f"{each}.{used}" == name for each in classes):
            files |= use.files
    return [*sorted(files)[:3], *(["…"] if len(files) > 3 else [])]


@functools.cache
def _read_uses() -> dict[tuple[frozenset[str], str], Use]:
    return uses(read_list()["by_hand"])


# --- environments --------------------------------------------------------------------------------


def requirements() -> list[str]:
    """What the package and the notebooks ask for, from pyproject.toml."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"]
    groups = [project["dependencies"], *(extras[name] for name in EXTRAS)]
    return [line for group in groups for line in group if not line.startswith("course-utils")]


def pinned(name: str) -> str:
    """A package's line of constraints.txt."""
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    return next(line for line in lines if line.lower().startswith(f"{name}=="))


def lowest(index: list[str]) -> list[str]:
    """The lowest versions that the ranges of pyproject.toml allow together, as uv finds them.

    A bound that is lower than what the other packages ask for is no bound; `untrue_bounds` tells.
    """
    tools = ENVIRONMENTS / "uv"
    program = tools / ("Scripts/uv.exe" if os.name == "nt" else "bin/uv")
    if not program.exists():
        venv.create(tools, with_pip=True, clear=True)
        bootstrap.install(bootstrap.environment_python(tools), "uv")
    asked = ENVIRONMENTS / "requirements.in"
    asked.write_text("\n".join([*requirements(), *torch_pin(index)]) + "\n")
    command = [str(program), "pip", "compile", "--quiet", "--no-header", "--no-annotate", *index]
    command += ["--python-version", "3.11", "--resolution", "lowest-direct", str(asked)]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f"No set of versions fits pyproject.toml:\n{done.stderr}")
    direct = {normal(re.split(r"[<>=!~ \[]", line)[0]) for line in requirements()}
    lines = [line for line in done.stdout.splitlines() if "==" in line]
    return [line for line in lines if normal(line.split("==")[0]) in direct]


def untrue_bounds(versions: list[str]) -> list[str]:
    """Bounds of pyproject.toml that are lower than the lowest version that can be installed."""
    found = []
    installed = {normal(line.split("==")[0]): line.split("==")[1] for line in versions}
    for line in requirements():
        name, _, bound = line.partition(">=")
        version = installed[normal(name)]
        shorter = re.sub(r"(\.0)+$", "", version)
        if name != "torch" and shorter != re.sub(r"(\.0)+$", "", bound):
            found.append(f"{line}: the lowest that fits the others is {version}")
    return found


def normal(name: str) -> str:
    """A package's name as indexes write it."""
    return re.sub(r"[-_.]+", "-", name).lower().strip()


def torch_pin(index: list[str]) -> list[str]:
    """The pinned torch, where PyTorch's index of CPU builds is out of reach.

    The builds on PyPI bring CUDA along, several GB. So only the pinned one is tried there, which
    has to be at hand; with the index, the lowest and the newest are.
    """
    return [] if index else [pinned("torch")]


def install(which: str) -> Path:
    """Make the environment; returns its Python."""
    folder = ENVIRONMENTS / which
    folder.mkdir(parents=True, exist_ok=True)
    index = bootstrap.torch_index(gpu=False)
    if not index:
        print(f"PyTorch's index of CPU builds is out of reach: {pinned('torch')} is taken.")
    if which == "lowest":
        wanted = lowest(index)
        for line in untrue_bounds(wanted):
            print(f"  {line}")
    elif which == "pinned":
        wanted = ["--constraint", str(ROOT / "constraints.txt"), *requirements()]
    else:
        wanted = ["--upgrade", *requirements(), *torch_pin(index)]
    venv.create(folder, with_pip=True, clear=True)
    python = bootstrap.environment_python(folder)
    bootstrap.install(python, *index, *wanted)
    return python


def try_in(which: str) -> int:
    """Check in an environment of its own; returns the status."""
    print(f"\n{which}: installing", flush=True)
    python = install(which)
    return subprocess.run([python, __file__, "check"], cwd=ROOT).returncode


def main(argv: list[str] | None = None) -> int:
    """The command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("command", choices=("collect", "check", "try"))
    parser.add_argument("which", nargs="*", metavar="WHICH", help=", ".join(WHICH))
    args = parser.parse_args(argv)
    if unknown := set(args.which) - set(WHICH):
        parser.error(f"{', '.join(sorted(unknown))}: there are {', '.join(WHICH)}")
    if args.command == "try":
        return max(try_in(which) for which in args.which or WHICH)
    logging.disable(logging.WARNING)
    if args.command == "collect":
        kept = LIST.read_text(encoding="utf-8").partition(_MARK)[0]
        LIST.write_text(kept + as_toml(collected()), encoding="utf-8")
        return 0
    found = differences()
    print(
        "\n".join(found) or f"{', '.join(map(version_of, LIBRARIES))}: all as the course needs it"
    )
    return int(bool(found))


if __name__ == "__main__":
    sys.exit(main())
