"""API drift: what the course calls in other libraries, held against the versions installed.

The notebooks, `course_utils` and `benchmarks` are read, not run: every name that they import from a
library, every method that they call on an object whose class is plain to see, and every argument
that they name. Whatever of it an installed version lacks is told by name, such as "trl 0.9.0:
trl.SFTConfig has no argument `max_length`". What cannot be read is said in `drift.toml`.

    drift.py check              hold what is installed against the sources; status 1 if it differs
    drift.py try [WHICH ...]    make environments with the lowest, the pinned and the newest
                                versions in build/drift, and check in each

A type checker does not do this: mypy and pyright see 6 in 10 of the arguments that are named. To
them most models are of any class, and options in a dictionary or in `**kwargs` are not arguments.
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
import logging
import os
import re
import subprocess
import sys
import tomllib
import venv
import warnings
from collections import ChainMap
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tools import bootstrap

ROOT = Path(__file__).resolve().parent.parent
BY_HAND = ROOT / "tools" / "drift.toml"
EXTRAS = ("judge", "benchmarks", "serving", "widgets", "course")
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


# --- reading the sources -------------------------------------------------------------------------


@dataclass
class Use:
    """The arguments that are named in calls of a library's function, and the files that do it."""

    arguments: set[str] = field(default_factory=set)
    files: set[str] = field(default_factory=set)


class Uses(dict[tuple[str, ...], Use]):
    """Uses by the dotted names that may be meant: a method has one for each class of its object."""

    def add(self, names: tuple[str, ...], arguments: set[str], file: str) -> None:
        """Note a use."""
        use = self.setdefault(names, Use())
        use.arguments |= arguments
        use.files.add(file)


class Reader(ast.NodeVisitor):
    """Reads a source from top to bottom and adds what it uses to `uses`."""

    def __init__(self, path: str, returns: dict[str, list[str]], uses: Uses):
        self.path = path
        self.returns = returns
        self.uses = uses
        # By name: what was imported, the classes that a variable may be of, a dictionary's keys.
        self.imported: ChainMap[str, str] = ChainMap()
        self.kinds: ChainMap[str, set[str]] = ChainMap()
        self.keys: ChainMap[str, set[str]] = ChainMap()

    # What names stand for.

    def visit_Import(self, node: ast.Import) -> None:
        for alias in node.names:
            if is_library(alias.name):
                whole = alias.name if alias.asname else alias.name.split(".")[0]
                self.imported[alias.asname or whole] = whole

    def visit_ImportFrom(self, node: ast.ImportFrom) -> None:
        for alias in node.names if node.module and not node.level else ():
            name = f"{node.module}.{alias.name}"
            self.imported[alias.asname or alias.name] = name
            if is_library(name):
                self.uses.add((name,), set(), self.path)

    def visit_Assign(self, node: ast.Assign) -> None:
        self.generic_visit(node)
        for target in node.targets:
            self.assign(target, node.value)

    def visit_withitem(self, node: ast.withitem) -> None:
        self.generic_visit(node)
        self.assign(node.optional_vars, node.context_expr)

    def assign(self, target: ast.expr | None, value: ast.expr) -> None:
        """Note of which class a variable is, or which keys a dictionary has."""
        if isinstance(target, ast.Name):
            for table, found in (
                (self.kinds, self.kinds_of(value)),
                (self.keys, self.keys_of(value)),
            ):
                if found:
                    table[target.id] = table.get(target.id, set()) | found

    def visit_FunctionDef(self, node: ast.FunctionDef) -> None:
        outer = self.imported, self.kinds, self.keys
        self.imported, self.kinds, self.keys = (each.new_child() for each in outer)
        for each in (*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs):
            self.kinds[each.arg] = set()  # hides what is called the same outside
            for part in ast.walk(each.annotation) if each.annotation else ():
                self.kinds[each.arg] |= self.a_class(part)
        self.generic_visit(node)
        self.imported, self.kinds, self.keys = outer

    def dotted(self, node: ast.AST) -> str:
        """The dotted name of an expression that leads to something imported, else nothing."""
        if isinstance(node, ast.Name):
            return self.imported.get(node.id, "")
        if isinstance(node, ast.Attribute) and (start := self.dotted(node.value)):
            return f"{start}.{node.attr}"
        return ""

    def kinds_of(self, node: ast.expr) -> set[str]:
        """The classes of which an expression may be, as far as it is plain to see."""
        if isinstance(node, ast.Name):
            return self.kinds.get(node.id, set())
        if not isinstance(node, ast.Call):
            return set()
        return set(self.returns.get(self.dotted(node.func), self.a_class(node.func)))

    def a_class(self, node: ast.AST) -> set[str]:
        """A library's class, by the look of its name, or nothing."""
        name = self.dotted(node)
        return {name} if is_library(name) and name.rpartition(".")[2][0].isupper() else set()

    # What is used.

    def visit_Attribute(self, node: ast.Attribute) -> None:
        if is_library(name := self.dotted(node)):
            self.uses.add((name,), set(), self.path)
        else:
            self.generic_visit(node)

    def visit_Call(self, node: ast.Call) -> None:
        self.generic_visit(node)
        names, method = (self.dotted(node.func),), node.func
        if isinstance(method, ast.Attribute) and not names[0]:
            names = tuple(f"{each}.{method.attr}" for each in sorted(self.kinds_of(method.value)))
        elif not names[0]:
            names = tuple(f"{each}.__call__" for each in sorted(self.kinds_of(method)))
        if names and is_library(names[0]):
            found = {each.arg for each in node.keywords if each.arg}
            handed_on = [self.keys_of(each.value) for each in node.keywords if not each.arg]
            self.uses.add(names, found.union(*handed_on), self.path)

    def keys_of(self, node: ast.AST | None) -> set[str]:
        """The keys of a dictionary, as far as they are written out."""
        if isinstance(node, ast.Name):
            return self.keys.get(node.id, set())
        if not isinstance(node, ast.Dict):
            return set()
        found = {key.value for key in node.keys if isinstance(key, ast.Constant)}
        inner = [value for key, value in zip(node.keys, node.values, strict=True) if not key]
        return found.union(*map(self.keys_of, inner))


def is_library(name: str) -> bool:
    """Whether a dotted name is one of a library that is watched."""
    return name.split(".")[0] in LIBRARIES


def uses(by_hand: dict[str, Any]) -> Uses:
    """Everything that the course uses of the libraries."""
    found = Uses()
    for pattern in READ:
        for path in sorted(ROOT.glob(pattern)):
            name = path.relative_to(ROOT).as_posix()
            if name not in NOT_READ:
                reader = Reader(name, by_hand["returns"], found)
                reader.visit(ast.parse(path.read_text(encoding="utf-8")))
    for name, arguments in by_hand["also"].items():
        found.add((name,), set(arguments), BY_HAND.name)
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


def accepts(name: str, argument: str, hands_on: dict[str, list[str]]) -> bool:
    """Whether a callable takes an argument by this name; yes where no signature can be seen."""
    called = look_up(name)
    try:
        parameters = inspect.signature(called).parameters
    except (TypeError, ValueError):  # written in C
        return True
    if argument in parameters:
        return parameters[argument].kind is not inspect.Parameter.POSITIONAL_ONLY
    if _takes_out(called, argument):
        return True
    if not any(each.kind is inspect.Parameter.VAR_KEYWORD for each in parameters.values()):
        return False
    if inspect.isclass(called) and any(_names(each, argument) for each in called.__mro__):
        return True
    return any(accepts(other, argument, hands_on) for other in hands_on.get(name, ()))


def _names(base: type, argument: str) -> bool:
    """Whether a class that another is built on takes an argument."""
    return argument in inspect.signature(base.__init__).parameters or _takes_out(base, argument)


def _takes_out(called: Any, argument: str) -> bool:
    """Whether a function, or some method of a class, takes an argument out of its `**kwargs`."""
    try:
        text = inspect.getsource(called)
    except (OSError, TypeError):
        return False
    quoted = rf"""["']{re.escape(argument)}["']"""
    return bool(re.search(rf"kwargs(\.(pop|get|setdefault)\(|\[)\s*{quoted}|{quoted} in ", text))


def version_of(library: str) -> str:
    """A library with its version: "trl 1.16.0"."""
    try:
        return f"{library} {importlib.metadata.version(library)}"
    except importlib.metadata.PackageNotFoundError:
        return library


def differences() -> list[str]:
    """What the sources call and the installed libraries have not, a line each."""
    by_hand = tomllib.loads(BY_HAND.read_text(encoding="utf-8"))
    found: dict[str, set[str]] = {}
    for names, use in uses(by_hand).items():
        if not set(names) & set(by_hand["ignored"]):
            for line in missing(names, use.arguments, by_hand["hands_on"]):
                library = version_of(names[0].split(".")[0])
                found.setdefault(f"{library}: {line}", set()).update(use.files)
    return [
        f"{line} ({', '.join(sorted(files)[:3])}{', …' * (len(files) > 3)})"
        for line, files in found.items()
    ]


def missing(names: tuple[str, ...], arguments: set[str], hands_on: dict) -> Iterator[str]:
    """What is amiss with a use: none of the names is there, or the first lacks an argument."""
    absent = []
    for name in names:
        try:
            refused = [each for each in sorted(arguments) if not accepts(name, each, hands_on)]
            look_up(name)
        except Absent as error:
            absent.append(str(error))
        else:
            yield from (f"{name} has no argument `{each}`" for each in refused)
            return
    yield absent[0]


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
    return subprocess.run([python, "-m", "tools.drift", "check"], cwd=ROOT).returncode


def main(argv: list[str] | None = None) -> int:
    """The command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("command", choices=("check", "try"))
    parser.add_argument("which", nargs="*", metavar="WHICH", help=", ".join(WHICH))
    args = parser.parse_args(argv)
    if unknown := set(args.which) - set(WHICH):
        parser.error(f"{', '.join(sorted(unknown))}: there are {', '.join(WHICH)}")
    if args.command == "try":
        return max(try_in(which) for which in args.which or WHICH)
    logging.disable(logging.WARNING)
    found = differences()
    print(
        "\n".join(found) or f"{', '.join(map(version_of, LIBRARIES))}: all as the course needs it"
    )
    return int(bool(found))


if __name__ == "__main__":
    sys.exit(main())
