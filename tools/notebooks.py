"""Build, run and keep the course's notebooks.

A notebook's source is `notebooks/solutions/NN_name.py` (jupytext's percent format). From it come
`notebooks/NN_name.ipynb`, with the solutions cut out and the Colab cells put in, and, by running
that, its saved outputs.

    notebooks.py build          write every .ipynb anew, keeping the outputs of unchanged cells
    notebooks.py check          say which .ipynb differs from its source; status 1 if any
    notebooks.py save NB        run one and keep its outputs in notebooks/
    notebooks.py run [NB ...]   run them into build/course/*.html; status 1 if a cell failed;
                                with --record, keep minutes and memory in benchmarks/results
    notebooks.py path NB        where a notebook is
"""

from __future__ import annotations

import argparse
import base64
import datetime
import hashlib
import json
import os
import platform
import re
import sys
import tempfile
import threading
import time
from contextlib import suppress
from pathlib import Path
from string import ascii_lowercase, digits
from typing import Any

import jupytext
import nbformat
import psutil
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError, CellTimeoutError, DeadKernelError
from nbconvert import HTMLExporter
from nbformat import NotebookNode
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook
from tqdm import tqdm

from tools import settings

ROOT = Path(__file__).resolve().parent.parent
NOTEBOOKS = ROOT / "notebooks"
SOURCES = NOTEBOOKS / "solutions"
COURSE = ROOT / "build" / "course"
FIGURES = ROOT / "slides" / "figures"
RUNS = ROOT / "benchmarks" / "results" / "notebooks.jsonl"
SAMPLING_S = 0.2
CELL_TIMEOUT_S = 1800
EXERCISE_NOTEBOOK = "exercise-notebook"  # a tag of the title cell
CLAIM = "claim"  # a tag of cells that hold what the text says, for tests: learners get none of them

_SOLUTION = re.compile(
    r"^(?P<indent>[ \t]*)### BEGIN SOLUTION\n.*?^[ \t]*### END SOLUTION[^\n]*$", re.M | re.S
)
_BADGE = "https://colab.research.google.com/assets/colab-badge.svg"
_COLAB_CELL = """\
# On Colab, this cell fetches and installs the course. Anywhere else it does nothing.
import os
import subprocess
import sys
from pathlib import Path

course = "{repository}"
folder = Path(course).name
if "google.colab" in sys.modules and Path.cwd().name != "notebooks":
    if not Path(folder).exists():
        print("Fetching the course, and what Colab lacks: about 60 MB, one or two minutes.")
        subprocess.run(["git", "clone", "--quiet", "--depth=1", course], check=True)
        install = [sys.executable, "-m", "pip", "install", "-q", f"./{{folder}}[course]"]
        subprocess.run(install, check=True)
    sys.path.insert(0, str(Path(folder).resolve()))  # the clone itself, with its datasets
    os.chdir(Path(folder) / "notebooks")"""


def order(path: Path) -> list[tuple[int, str]]:
    """Sort key by a notebook's number: 02 before 02a before 03 before 03.1."""
    parts = path.stem.split("_")[0].split(".")
    return [(int(part.rstrip(ascii_lowercase)), part.lstrip(digits)) for part in parts]


def sources() -> list[Path]:
    """Every notebook's source, in the course's order."""
    return sorted(SOURCES.glob("[0-9]*.py"), key=order)


def is_appendix(path: Path) -> bool:
    """Whether a notebook is off the main road: its number ends in a letter, such as 02a."""
    return path.stem.split("_")[0][-1].isalpha()


def find(name: str) -> Path:
    """The source of a notebook by its number (`01`, `1`, `03.1`), its file, or a part of its name.

    Raises:
        SystemExit: none fits, or several do; what is possible is named.
    """
    known = sources()
    path = Path(name.strip())
    stem = path.name.removesuffix(".ipynb").removesuffix(".py")
    if path.parent != Path() and (ROOT / path.parent).resolve() not in (NOTEBOOKS, SOURCES):
        stem = ""  # somebody's copy of a notebook is none of the course's
    number = re.compile(rf"0*{re.escape(stem.lstrip('0'))}(_|$)")
    found: list[Path] = []
    if stem:
        fits = (
            lambda source: source.stem == stem or number.match(source.stem),
            lambda source: source.stem.startswith(stem),
            lambda source: stem.lower() in source.stem.lower(),
        )
        found = next(filter(None, ([s for s in known if fit(s)] for fit in fits)), [])
    if len(found) != 1:
        said = (
            f"{name!r} fits {len(found)} notebooks" if found else f"There is no notebook {name!r}"
        )
        names = ", ".join(source.stem for source in found or known)
        raise SystemExit(f"{said}. There are: {names}. The number is enough, such as NB=03.1.")
    return found[0]


def target(source: Path) -> Path:
    """The notebook that a source makes."""
    return NOTEBOOKS / f"{source.stem}.ipynb"


def cut_solutions(code: str) -> str:
    """Replace each solution by `...`, at its own indentation."""
    return _SOLUTION.sub(lambda match: f"{match['indent']}...  # your code here", code)


def colab_cells(name: str) -> list[NotebookNode]:
    """The badge and the set-up cell below a notebook's title; none while there is no address."""
    address = settings.repository()
    if not address:
        return []
    path = address.removeprefix("https://github.com/")
    link = f"https://colab.research.google.com/github/{path}/blob/main/notebooks/{name}.ipynb"
    code = _COLAB_CELL.format(repository=address)
    return [
        new_markdown_cell(f"[![Open in Colab]({_BADGE})]({link})"),
        new_code_cell(code, metadata={"tags": ["colab-setup"]}),
    ]


def is_exercise(source: Path) -> bool:
    """Whether a notebook is an exercise as a whole: most of its cells need the solutions."""
    return EXERCISE_NOTEBOOK in jupytext.read(source).cells[0].metadata.get("tags", [])


def is_claim(cell: NotebookNode) -> bool:
    """Whether a cell asserts what the notebook says, and is left out of the learner's copy."""
    return CLAIM in cell.metadata.get("tags", [])


def build(source: Path, solved: bool = False, claims: bool = False) -> NotebookNode:
    """The notebook of a source, without outputs; where asked for, with its solutions and claims."""
    script = jupytext.read(source)
    title, *rest = script.cells
    cells = [title, *colab_cells(source.stem), *rest]
    cells = [cell for cell in cells if claims or not is_claim(cell)]
    seen: set[str] = set()
    made = []
    for cell in cells:
        text = cut_solutions(cell.source) if cell.cell_type == "code" else cell.source
        # A cell's id follows from its text, so that an inserted cell changes no other.
        digest = hashlib.sha256(text.encode()).hexdigest()
        name = next(digest[i : i + 8] for i in range(50) if digest[i : i + 8] not in seen)
        seen.add(name)
        text = cell.source if solved else text
        make = new_code_cell if cell.cell_type == "code" else new_markdown_cell
        tags = cell.metadata.get("tags")
        made.append(make(text, id=name, metadata={"tags": tags} if tags else {}))
    metadata = {
        "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
        "language_info": {"name": "python"},
    }
    return new_notebook(cells=made, metadata=metadata)


def claims(source: Path) -> dict[int, list[str]]:
    """What a notebook claims: the code, by the number of the learner's code cell before it."""
    found: dict[int, list[str]] = {}
    number = -1
    for cell in build(source, claims=True).cells:
        if is_claim(cell):
            found.setdefault(number, []).append(cell.source)
        elif cell.cell_type == "code":
            number += 1
    return found


def write(notebook: NotebookNode, path: Path) -> None:
    """Write a notebook in one step, so that a kill leaves the old one whole."""
    nbformat.validate(notebook)
    partial = path.with_suffix(".partial")
    partial.write_text(nbformat.writes(notebook) + "\n", encoding="utf-8")
    partial.replace(path)


def signature(notebook: NotebookNode) -> list[tuple[str, str, str]]:
    """What a source decides of a notebook: each cell's id, kind and text, tags included."""
    return [
        (cell.id, cell.cell_type, cell.source + str(cell.metadata.get("tags", "")))
        for cell in notebook.cells
    ]


def stale(source: Path) -> bool:
    """Whether the notebook of a source is missing, or is not what the source says."""
    path = target(source)
    if not path.exists():
        return True
    return signature(nbformat.read(path, as_version=4)) != signature(build(source))


def rebuild(source: Path) -> None:
    """Write a notebook anew; a cell whose text did not change keeps its outputs."""
    made = build(source)
    path = target(source)
    if path.exists():
        before = nbformat.read(path, as_version=4)
        old = {cell.id: cell for cell in before.cells}
        for cell in made.cells:
            if cell.cell_type == "code" and cell.id in old:
                cell.outputs = old[cell.id].outputs
                cell.execution_count = old[cell.id].execution_count
        renumber(made)
        if "course" in before.metadata:
            made.metadata["course"] = before.metadata["course"]
    write(made, path)


def renumber(notebook: NotebookNode) -> None:
    """Count the cells that were run from 1, as one run from top to bottom does."""
    ran = (cell for cell in notebook.cells if cell.get("execution_count"))
    for number, cell in enumerate(ran, start=1):
        cell.execution_count = number
        for output in cell.outputs:
            if "execution_count" in output:
                output.execution_count = number


def execute(notebook: NotebookNode, label: str) -> str:
    """Run a notebook in place, with progress; returns "ok" or what went wrong, in a line."""
    bar = tqdm(
        total=sum(cell.cell_type == "code" for cell in notebook.cells),
        desc=label,
        unit="cell",
        bar_format="{desc} {bar:20} {n_fmt}/{total_fmt} {elapsed}",
    )
    client = NotebookClient(
        notebook,
        timeout=CELL_TIMEOUT_S,
        resources={"metadata": {"path": str(NOTEBOOKS)}},
        coalesce_streams=True,
        store_widget_state=False,
        record_timing=False,
        extra_arguments=["--log-level=40"],  # else each kernel warns of unencrypted loopback
        on_cell_executed=lambda cell, cell_index, execute_reply: bar.update(),
    )
    try:
        with tempfile.TemporaryDirectory() as folder:
            # What is solved here is nobody's progress, nobody's votes are shown, and pictures are
            # saved on a light ground.
            own = {
                "COURSE_PROGRESS": f"{folder}/progress.json",
                "COURSE_VOTES": folder,
                "COURSE_THEME": "light",
            }
            client.execute(env={**os.environ, **own})
    except CellExecutionError as error:
        tqdm.write(str(error), file=sys.stderr)
        return f"{error.ename}: {error.evalue}".splitlines()[0]
    except CellTimeoutError:
        return f"a cell ran longer than {CELL_TIMEOUT_S // 60} minutes"
    except DeadKernelError:
        return "the kernel died (out of memory?)"
    finally:
        bar.close()
    return "ok"


def executed(source: Path) -> tuple[NotebookNode, str]:
    """A notebook after a run, and the outcome of it as `execute` says it.

    What it claims is held, and is not in the result. An exercise as a whole is run with its
    solutions; its outputs are then shown without them.
    """
    notebook = build(source, solved=is_exercise(source), claims=True)
    outcome = execute(notebook, source.stem)
    notebook.cells = [cell for cell in notebook.cells if not is_claim(cell)]
    renumber(notebook)
    for cell, cut in zip(notebook.cells, build(source).cells, strict=True):
        cell.source = cut.source
    return notebook, outcome


class Meter:
    """Minutes, and the most memory that a run's processes hold at one moment.

    What counts is what this process starts while the meter runs: a notebook's kernel and whatever
    that starts in its turn. Of memory, the resident part is added up; pages that two of them share
    count twice.
    """

    def __init__(self) -> None:
        self.minutes = 0.0
        self.peak_ram_mb = 0.0
        self.peak_gpu_mb = 0.0
        self._gpu = _gpu_in_use()
        self._stop = threading.Event()
        self._watch = threading.Thread(target=self._sample, daemon=True)

    def __enter__(self) -> Meter:
        self._own = psutil.Process()
        self._before = set(self._own.children(recursive=True))
        self._start = time.monotonic()
        self._watch.start()
        return self

    def __exit__(self, *reason: object) -> None:
        self._stop.set()
        self._watch.join()
        self.minutes = (time.monotonic() - self._start) / 60

    def _sample(self) -> None:
        """Look again and again."""
        while not self._stop.wait(SAMPLING_S):
            held = 0
            for process in set(self._own.children(recursive=True)) - self._before:
                with suppress(psutil.Error):
                    held += process.memory_info().rss
            self.peak_ram_mb = max(self.peak_ram_mb, held / 1e6)
            if self._gpu is not None:
                self.peak_gpu_mb = max(self.peak_gpu_mb, _gpu_in_use() - self._gpu)

    def facts(self) -> dict[str, Any]:
        """What was measured, and on what machine."""
        from course_utils import hardware

        machine = hardware.detect()
        found: dict[str, Any] = {
            "minutes": round(self.minutes, 2),
            "peak_ram_mb": round(self.peak_ram_mb),
            # PyTorch keeps to fewer where it is told so.
            "cores": min(
                machine.cpu_cores, int(os.environ.get("OMP_NUM_THREADS") or machine.cpu_cores)
            ),
            "tier": hardware.tier(machine).value,
            "machine": machine.gpu_name or machine.cpu_name,
            "python": platform.python_version(),
            "date": datetime.date.today().isoformat(),
        }
        if self._gpu is not None:
            found["peak_gpu_mb"] = round(self.peak_gpu_mb)
        return found


def _gpu_in_use() -> float | None:
    """The memory in use on the first NVIDIA GPU, in MB = 10^6 bytes; None without one."""
    try:
        import pynvml

        pynvml.nvmlInit()
        return pynvml.nvmlDeviceGetMemoryInfo(pynvml.nvmlDeviceGetHandleByIndex(0)).used / 1e6
    except Exception:  # no such package, no driver, no GPU
        return None


def save(source: Path) -> None:
    """Run a notebook and keep its outputs, minutes and memory; nothing where a cell fails."""
    with Meter() as meter:
        notebook, outcome = executed(source)
    if outcome != "ok":
        raise SystemExit(f"{source.stem}: {outcome}")
    notebook.metadata["course"] = meter.facts()
    write(notebook, target(source))
    for name, picture in figures(notebook).items():
        path = FIGURES / f"{name}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(picture)


def figures(notebook: NotebookNode) -> dict[str, bytes]:
    """The pictures that slides and README show: the PNG of each cell tagged `figure:NAME`."""
    found = {}
    for cell in notebook.cells:
        for tag in cell.metadata.get("tags", []):
            if tag.startswith("figure:"):
                found[tag.removeprefix("figure:")] = next(
                    base64.b64decode(output.data["image/png"])
                    for output in cell.outputs
                    if "image/png" in output.get("data", {})
                )
    return found


def summary(rows: list[dict[str, object]]) -> str:
    """The table of a run: notebook, minutes, memory, outcome."""
    width = max(len(str(row["notebook"])) for row in rows)
    lines = [f"{'notebook':<{width}}  minutes  peak GB  outcome"]
    lines += [
        f"{row['notebook']:<{width}}  {row['minutes']:>7.1f}  "
        f"{float(str(row['peak_ram_mb'])) / 1000:>7.1f}  {row['outcome']}"
        for row in rows
    ]
    total = sum(float(str(row["minutes"])) for row in rows)
    return "\n".join([*lines, f"{'all':<{width}}  {total:>7.1f}"])


def run(chosen: list[Path], record: bool = False) -> int:
    """Run notebooks into `build/course`, each a page; one that fails does not stop the rest.

    Args:
        chosen: the notebooks' sources.
        record: keep minutes and memory of those that succeed in `benchmarks/results`.
    """
    COURSE.mkdir(parents=True, exist_ok=True)
    rows: list[dict[str, object]] = []
    for source in chosen:
        with Meter() as meter:
            notebook, outcome = executed(source)
        page, _ = HTMLExporter().from_notebook_node(
            notebook, resources={"metadata": {"name": source.stem}}
        )
        (COURSE / f"{source.stem}.html").write_text(page, encoding="utf-8")
        rows.append({"notebook": source.stem, "outcome": outcome, **meter.facts()})
        (COURSE / "summary.json").write_text(json.dumps(rows, indent=1), encoding="utf-8")
        if record and outcome == "ok":
            with RUNS.open("a", encoding="utf-8") as file:
                file.write(json.dumps(rows[-1]) + "\n")
    print(f"\n{summary(rows)}\n\nPages: {COURSE.relative_to(ROOT)}/*.html")
    return int(any(row["outcome"] != "ok" for row in rows))


def main(argv: list[str] | None = None) -> int:
    """The command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("command", choices=("build", "check", "save", "run", "path"))
    parser.add_argument("notebooks", nargs="*", metavar="NB")
    parser.add_argument("--record", action="store_true", help="of `run`: keep what it took")
    args = parser.parse_intermixed_args(argv)  # the option may stand before the notebooks too
    chosen = [find(number) for number in args.notebooks] or sources()
    if args.command == "run":
        return run(chosen, args.record)
    if args.command == "check":
        different = [source.stem for source in chosen if stale(source)]
        for name in different:
            print(f"notebooks/{name}.ipynb is not what its source says: run `make notebooks`")
        return int(bool(different))
    for source in chosen:
        if args.command == "path":
            print(target(source).relative_to(ROOT))
        elif args.command == "save":
            save(source)
        else:
            rebuild(source)
    return 0


if __name__ == "__main__":
    sys.exit(main())
