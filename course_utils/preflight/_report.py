"""The report that `preflight` returns: rows with a status, what was found, and the fix."""

from __future__ import annotations

import html
import itertools
import textwrap
from dataclasses import dataclass
from typing import NamedTuple

from course_utils._core.printable import visible
from course_utils.errors import CourseError

PASS, WARN, FAIL = "pass", "warn", "fail"
NOT_JUDGED = ""
_SYMBOLS = {PASS: "✓", WARN: "!", FAIL: "✗"}


class Finding(NamedTuple):
    """The result of one check: its status, what it found, and the fix."""

    status: str
    found: str
    fix: str = ""


# For checks that do not apply to this kind of training.
SILENT = Finding(NOT_JUDGED, "")


def not_judged(why: str) -> Finding:
    """Report the reason below the table instead of in a row."""
    return Finding(NOT_JUDGED, why)


@dataclass(frozen=True)
class Check:
    """A row of the report; `status` is "pass", "warn" or "fail"."""

    name: str
    status: str
    found: str
    fix: str


class PreflightFailed(CourseError):
    """Raised for a training run that would not do what is intended; `report` holds all checks."""

    def __init__(self, report: Report):
        self.report = report
        failed = [row for row in report.rows if row.status == FAIL]
        lines = [f"{row.name}: {row.found}. {row.fix}" for row in failed]
        super().__init__(visible("\n".join(["The training is not ready.", *lines])))


class Report:
    """What `preflight` found. Put it at the end of a cell for a table, or print it."""

    def __init__(self, rows: list[Check], not_judged: dict[str, str]):
        self.rows = rows
        self.not_judged = not_judged

    @property
    def ok(self) -> bool:
        """Whether no check failed; warnings do not count."""
        return not any(row.status == FAIL for row in self.rows)

    @property
    def verdict(self) -> str:
        """One sentence: the number of checks, and which of them need attention."""
        named = {
            status: [row.name for row in self.rows if row.status == status]
            for status in (FAIL, WARN)
        }
        parts = [f"{status}: {', '.join(names)}" for status, names in named.items() if names]
        return f"{len(self.rows)} checks; {'; '.join(parts) or 'ready to train'}."

    def _notes(self) -> list[str]:
        together = itertools.groupby(self.not_judged, self.not_judged.__getitem__)
        return [f"Not judged: {', '.join(names)} ({why})." for why, names in together]

    def __str__(self) -> str:
        left = max((len(row.name) for row in self.rows), default=0) + 2
        lines = []
        for row in self.rows:
            head = f"{_SYMBOLS[row.status]} {row.status:<5}{row.name:<{left}}"
            text = row.found + (f"  → {row.fix}" if row.fix else "")
            lines += textwrap.wrap(
                visible(head + text),
                100,
                subsequent_indent=" " * (7 + left),
                break_long_words=False,
                break_on_hyphens=False,
            )
        return "\n".join([*lines, "", *self._notes(), self.verdict])

    __repr__ = __str__

    def _repr_html_(self) -> str:
        colours = {PASS: "#007254", WARN: "#8A5A00", FAIL: "#B03A00"}
        cell = "text-align: left; vertical-align: top"
        heads = "".join(
            f'<th style="{cell}">{name}</th>' for name in ("", "check", "found", "what to do")
        )
        rows = []
        for row in self.rows:
            status = f"{_SYMBOLS[row.status]} {row.status}"
            style = f"{cell}; white-space: nowrap; font-weight: bold; color: {colours[row.status]}"
            texts = "".join(
                f'<td style="{cell}">{html.escape(visible(text))}</td>'
                for text in (row.name, row.found, row.fix)
            )
            rows.append(f'<tr><td style="{style}">{html.escape(status)}</td>{texts}</tr>')
        notes = "".join(
            f"<p>{html.escape(visible(line))}</p>" for line in [*self._notes(), self.verdict]
        )
        body = f"<thead><tr>{heads}</tr></thead><tbody>{''.join(rows)}</tbody>"
        return f"<table>{body}</table>{notes}"
