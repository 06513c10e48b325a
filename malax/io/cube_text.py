"""The numbers of a cube file in fixed columns, read all at once instead of one by one.

pp.x writes Fortran's 6E13.5: six numbers of 13 characters to a line, a new line for each run along z. So
every run takes the same number of bytes, and the characters of a column stand at known places: digits become
numbers by arithmetic on whole arrays, some sixty times as fast as parsing words.
"""

from __future__ import annotations

import numpy as np

WIDTH, PER_LINE = 13, 6
_CHUNK = 1 << 15
"""Numbers that are worked on at a time. The intermediate arrays then stay in the cache; eight times as many
are fifteen times slower."""
_POWERS = 10.0 ** np.arange(309)


def fixed_columns(body: bytes, shape: tuple[int, int, int]) -> np.ndarray | None:
    """Values (nx ny nz,) of the text after the header; None if it is not in this format.

    None also for a text of another length (truncated, more than one field): the reader of words says why.
    """
    nx, ny, nz = shape
    lines = -(-nz // PER_LINE)
    run = nz * WIDTH + lines
    text = np.frombuffer(body, dtype=np.uint8)
    if len(text) < nx * ny * run or body[nx * ny * run :].strip():
        return None
    text = text[: nx * ny * run].reshape(nx * ny, run)
    result = np.empty((nx * ny, nz))
    step = max(1, _CHUNK // nz)
    for start in range(0, nx * ny, step):
        columns = _without_newlines(text[start : start + step], nz)
        values = None if columns is None else _values(columns)
        if values is None:
            return None
        result[start : start + step] = values.reshape(-1, nz)
    return result.reshape(-1)


def _without_newlines(runs: np.ndarray, nz: int) -> np.ndarray | None:
    """Characters (13, numbers) of some runs; None if a line ends elsewhere."""
    full, rest = divmod(nz, PER_LINE)
    line = PER_LINE * WIDTH + 1
    lines = runs[:, : full * line].reshape(len(runs), full, line)
    tail = runs[:, full * line :]
    if (lines[:, :, -1] != 10).any() or (rest and (tail[:, -1] != 10).any()):
        return None
    parts = [lines[:, :, :-1].reshape(len(runs), full * PER_LINE * WIDTH)]
    if rest:
        parts.append(tail[:, :-1])
    return np.ascontiguousarray(np.concatenate(parts, axis=1).reshape(-1, WIDTH).T)


def _values(c: np.ndarray) -> np.ndarray | None:
    """Numbers of characters (13, n): ``  0.12345E-02``, `` -1.23450E+01``, ``  0.12345-102``."""
    blank, minus, plus, point, letter = b" -+.E"
    digits = [2, 4, 5, 6, 7, 8, 11, 12]
    d = c[digits] - 48  # wraps: what is no digit becomes 10 or more
    if (d > 9).any() or (c[3] != point).any() or (c[0] != blank).any():
        return None
    if ((c[1] != blank) & (c[1] != minus)).any():
        return None
    mantissa = d[0].astype(np.int32)
    for digit in d[1:6]:
        mantissa = 10 * mantissa + digit
    exponent = 10 * d[6].astype(np.int32) + d[7]
    sign = c[10]
    wide = c[9] != letter
    if wide.any():
        # three digits leave no room for the E
        hundreds = c[10][wide] - 48
        if (hundreds > 9).any():
            return None
        exponent[wide] += 100 * hundreds.astype(np.int32)
        sign = np.where(wide, c[9], sign)
    down = sign == minus
    if (~down & (sign != plus)).any():
        return None
    exponent = np.where(down, -exponent, exponent) - 5
    power = _POWERS[np.minimum(np.abs(exponent), 308)]
    with np.errstate(over="ignore"):  # in the branch that is not taken
        values = np.where(exponent < 0, mantissa / power, mantissa * power)
    return np.where(c[1] == minus, -values, values)
