"""A notebook's cells run again, in a kernel in which what is slow is made short.

Used by `tests/faults/test_faults_cells.py`.
"""

from __future__ import annotations

import os
import tempfile
from dataclasses import dataclass, field
from pathlib import Path

from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError, CellTimeoutError, DeadKernelError
from nbformat import NotebookNode
from nbformat.v4 import new_code_cell, new_notebook

from course_utils.models import _packaged as embedded
from course_utils.models._catalog import catalog
from tools import notebooks

CELL_TIMEOUT_S = 600

# Executed in the kernel before the first cell. Results of shortened runs are worth nothing, so an
# `assert` only notes whether it held; one that held at first has to hold when its cell runs again.
CLAIMS = """
def _note_claims():
    import ast
    import zlib

    held = {}

    def claim(code, run, text, true):
        if run == 1:
            held[code, text] = held.get((code, text), True) and bool(true)
        elif held.get((code, text)) and not true:
            raise AssertionError(f"held at first, and not when run again: {text}")

    class Claims(ast.NodeTransformer):
        runs = {}

        def visit_Module(self, node):
            self.code = zlib.crc32(ast.dump(node).encode())
            self.runs[self.code] = self.runs.get(self.code, 0) + 1
            return self.generic_visit(node)

        def visit_Assert(self, node):
            text = f"assert {ast.unparse(node.test)} (line {node.lineno})"
            known = [ast.Constant(value) for value in (self.code, self.runs[self.code], text)]
            call = ast.Call(ast.Name("__claim__", ast.Load()), [*known, node.test], [])
            return ast.fix_missing_locations(ast.copy_location(ast.Expr(call), node))

    claim.held = held
    shell = get_ipython()
    shell.user_ns["__claim__"] = claim
    shell.ast_transformers.append(Claims())


_note_claims()
"""

# Executed before that. The libraries' own classes do their work, on a model of few layers, for few
# steps and tokens.
SHORTENED = """
def _shorten(steps, tokens, layers=2):
    import copy

    import transformers
    from transformers.generation import GenerationMixin

    load = transformers.AutoModelForCausalLM.from_pretrained

    def with_few_layers(folder, *args, **options):
        if "gguf_file" in options:  # a conversion, for the cache
            return load(folder, *args, **options)
        config = transformers.AutoConfig.from_pretrained(folder, local_files_only=True)
        options.setdefault("num_hidden_layers", min(layers, config.num_hidden_layers))
        return load(folder, *args, **options)

    transformers.AutoModelForCausalLM.from_pretrained = with_few_layers

    make = transformers.Trainer.__init__

    def with_few_steps(self, model, args, *, eval_dataset=None, **options):
        most = steps if model.num_parameters() < 10**7 else 2
        if not 0 < args.max_steps <= most:
            args.max_steps = most
            for name in ("eval_steps", "save_steps", "logging_steps"):
                if getattr(args, name):
                    setattr(args, name, min(getattr(args, name), most // 2))
        if hasattr(eval_dataset, "select"):
            eval_dataset = eval_dataset.select(range(min(2, len(eval_dataset))))
        make(self, model, args, eval_dataset=eval_dataset, **options)

    transformers.Trainer.__init__ = with_few_steps

    generate = GenerationMixin.generate

    def few_tokens(self, *args, generation_config=None, **options):
        if generation_config is not None:
            generation_config = copy.deepcopy(generation_config)
            most = generation_config.max_new_tokens or tokens
            generation_config.max_new_tokens = min(most, tokens)
        if generation_config is None or "max_new_tokens" in options:
            options["max_new_tokens"] = min(options.get("max_new_tokens", tokens), tokens)
        return generate(self, *args, generation_config=generation_config, **options)

    GenerationMixin.generate = few_tokens

    from course_utils.memory import _setup as setup

    config_of = setup.config_of

    def of_few_layers(model):
        config = config_of(model)
        config.num_hidden_layers = min(layers, config.num_hidden_layers)
        return config

    setup.config_of = of_few_layers"""


@dataclass
class Ran:
    """What became of a notebook's cells.

    Attributes:
        first: those that failed when they were first run, a line each.
        again: those that failed when they were run again.
        unheld: the asserts that did not hold when their cells were first run.
    """

    first: list[str] = field(default_factory=list)
    again: list[str] = field(default_factory=list)
    unheld: set[str] = field(default_factory=set)


_UNHELD = "print(*(text for (_, text), held in __claim__.held.items() if not held), sep='\\n')"


def _failure(client: NotebookClient, cell: NotebookNode, place: int) -> str:
    """Run a cell; what it failed with, or an empty text."""
    try:
        client.execute_cell(cell, place)
    except CellTimeoutError:
        return f"ran longer than {CELL_TIMEOUT_S} s"
    except CellExecutionError as error:
        return f"{error.ename}: {error.evalue}".splitlines()[0]
    return ""


def run_twice(
    notebook: NotebookNode,
    *,
    whole: bool = False,
    shortened: bool = True,
    steps: int = 2,
    tokens: int = 4,
) -> Ran:
    """Run each code cell of a notebook twice in one kernel, whatever fails.

    Args:
        notebook: what to run; outputs are put into it.
        whole: from top to bottom, and so once more; else each cell twice in a row.
        shortened: whether trainings, models and replies are made short.
        steps: how many steps a shortened training of a tiny model has; any other has two.
        tokens: how many tokens a shortened reply has.
    """
    short = f"{SHORTENED}\n\n_shorten(steps={steps}, tokens={tokens})"
    before = [new_code_cell(hooks) for hooks in ([short] * shortened + [CLAIMS])]
    cells = [*before, *notebook.cells, new_code_cell(_UNHELD)]
    client = NotebookClient(
        new_notebook(cells=cells, metadata=notebook.metadata),
        timeout=CELL_TIMEOUT_S,
        resources={"metadata": {"path": str(notebooks.NOTEBOOKS)}},
        extra_arguments=["--log-level=40"],
    )
    ran = Ran()
    with tempfile.TemporaryDirectory() as scratch:
        # The models are those of the real cache. Adapters that short trainings keep stay in here.
        for name in catalog().packaged if shortened else ():
            folder = embedded.ensure(name)
            (Path(scratch) / "models").mkdir(exist_ok=True)
            (Path(scratch) / "models" / folder.name).symlink_to(folder, target_is_directory=True)
        own = {"COURSE_PROGRESS": f"{scratch}/progress.json", "COURSE_VOTES": scratch}
        own["COURSE_CACHE"] = scratch
        with client.setup_kernel(env={**os.environ, **own}):
            for cell in before:
                client.execute_cell(cell, cells.index(cell))
            inside = [place for place, cell in enumerate(cells[:-1]) if cell.cell_type == "code"]
            inside = inside[len(before) :]
            order = inside * 2 if whole else [place for place in inside for _ in range(2)]
            run: set[int] = set()
            for place in order:
                failed = ran.again if place in run else ran.first
                run.add(place)
                start = next(
                    (line for line in cells[place].source.splitlines() if line.strip()), ""
                )
                name = f"cell {place - len(before)}, {start!r}"
                try:
                    error = _failure(client, cells[place], place)
                except DeadKernelError:
                    failed.append(f"{name}: the kernel died")
                    return ran
                failed += [f"{name}: {error}"] if error else []
            client.execute_cell(cells[-1], len(cells) - 1)
    ran.unheld = set("".join(output.text for output in cells[-1].outputs).split("\n")) - {""}
    return ran
