"""What the timing scripts share: the best of repeated calls, and a plain table."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Any


def best(function: Callable[[], Any], seconds: float = 1.0) -> float:
    """The shortest of repeated calls, in s; at least two calls, and then as many as ``seconds`` allow.

    The shortest, because whatever else runs on the machine can only add.
    """
    times: list[float] = []
    begin = time.perf_counter()
    while len(times) < 2 or time.perf_counter() - begin < seconds:
        start = time.perf_counter()
        function()
        times.append(time.perf_counter() - start)
    return min(times)


def table(headers: Sequence[str], rows: Sequence[Sequence[Any]]) -> None:
    """Print columns, all but the first to the right."""
    cells = [list(headers), *[[str(cell) for cell in row] for row in rows]]
    widths = [max(len(row[i]) for row in cells) for i in range(len(headers))]
    for row in cells:
        first, *rest = (
            cell.ljust(w) if i == 0 else cell.rjust(w)
            for i, (cell, w) in enumerate(zip(row, widths, strict=True))
        )
        print("  ".join([first, *rest]))
