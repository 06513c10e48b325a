"""What a command prints: on rank 0 only, plain text in a log file, one JSON object with ``--json``."""

from __future__ import annotations

import json
import math
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from rich.console import Console as RichConsole
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table
from rich.text import Text

from malax.comm import Comm, SerialComm

_LOG_INTERVAL = 10.0
"""Seconds between the plain progress lines of a log file."""


class Console:
    """Rank 0's voice. With ``json_only`` stdout carries nothing but the object of `finish`."""

    def __init__(self, comm: Comm | None = None, json_only: bool = False) -> None:
        self.comm = comm or SerialComm()
        self.json_only = json_only
        self.speaks = self.comm.rank == 0
        # a file has no width: nothing is cut there
        self._out = RichConsole(highlight=False, soft_wrap=True, width=None if sys.stdout.isatty() else 1000)
        self._err = RichConsole(stderr=True, highlight=False, soft_wrap=True)

    def say(self, text: str = "") -> None:
        """A line on stdout."""
        if self.speaks and not self.json_only:
            self._out.print(text, markup=False)

    def warn(self, text: str) -> None:
        """A line on stderr."""
        if self.speaks:
            self._err.print(f"warning: {text}", markup=False)

    def table(
        self, headers: Sequence[str], rows: Sequence[Sequence[str]], left: int = 1, gap: int = 2
    ) -> None:
        """A plain table; the first ``left`` columns are text, the others numbers."""
        if not self.speaks or self.json_only:
            return
        table = Table(box=None, pad_edge=False, padding=(0, gap, 0, 0))
        for i, header in enumerate(headers):
            table.add_column(header, justify="left" if i < left else "right", no_wrap=True)
        for row in rows:
            table.add_row(*(Text(cell) for cell in row))
        self._out.print(table, soft_wrap=False)

    def finish(self, value: dict[str, Any]) -> None:
        """The one JSON object of ``--json``."""
        if self.speaks and self.json_only:
            sys.stdout.write(json.dumps(finite(value), allow_nan=False) + "\n")
            sys.stdout.flush()

    @contextmanager
    def progress(self, description: str) -> Iterator[Callable[[int, int], None] | None]:
        """A bar on a terminal, a plain line now and then in a log file; both on stderr."""
        if not self.speaks:
            yield None
        elif self._err.is_terminal:
            columns = (TextColumn("{task.description}"), BarColumn(), TimeRemainingColumn())
            with Progress(*columns, console=self._err, transient=True) as bar:
                task = bar.add_task(description, total=None)
                yield lambda done, total: bar.update(task, completed=done, total=total)
        else:
            yield _LogLines(description, self._err)


class _LogLines:
    """Progress as lines: none for what is quick."""

    def __init__(self, description: str, console: RichConsole) -> None:
        self._description, self._console = description, console
        self._last = time.perf_counter()
        self._first: tuple[float, int] | None = None

    def __call__(self, done: int, total: int) -> None:
        now = time.perf_counter()
        if self._first is None:  # a run that goes on does not begin with the first tile
            self._first = (now, done)
        if now - self._last >= _LOG_INTERVAL:
            self._last = now
            text = f"{self._description}: {100 * done / max(total, 1):.0f} %"
            begin, before = self._first
            if done > before:
                text += f", {duration((now - begin) / (done - before) * (total - done))} left"
            self._console.print(text, markup=False)


def duration(seconds: float) -> str:
    """A time for people: 50 s, 12 min, 3 h 20 min."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 60 else f"{minutes // 60} h {minutes % 60} min"


def finite(value: Any) -> Any:
    """``value`` with what JSON does not know made plain: NaN and infinity become null, arrays lists."""
    if isinstance(value, dict):
        return {str(key): finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [finite(item) for item in value]
    if hasattr(value, "tolist"):
        return finite(value.tolist())
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value


def number(value: float | None, digits: int = 2, sign: bool = False) -> str:
    """A number of a table; "-" where there is none."""
    if value is None or not math.isfinite(value):
        return "-"
    return f"{value:{'+' if sign else ''}.{digits}f}"


def error(value: float | None, sign: bool = True) -> str:
    """An error in meV or meV/atom: one digit after the point, none where it would only take room."""
    digits = 0 if value is not None and abs(value) >= 999.95 else 1
    return number(value, digits, sign)
