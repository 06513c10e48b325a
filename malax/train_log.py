"""What a training says while it runs: a bar on a terminal, plain lines elsewhere, CSV and TensorBoard."""

from __future__ import annotations

import csv
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from malax.io.files import atomic_path
from malax.validation import Errors

EPOCH_COLUMNS = (
    "epoch",
    "seconds",
    "learning_rate",
    "train_loss",
    "validation_loss",
    "best",
    "band_mean",
    "band_mae",
    "total_free_mean",
    "total_free_mae",
    "density_mape",
)
ERROR_COLUMNS = ("epoch", "snapshot", *Errors._fields)

_QUIET = 10.0
"""Seconds between two plain lines about one long activity."""


class Table:
    """A CSV file to which rows are added; a resumed run takes back the rows of what it repeats."""

    def __init__(self, path: Path, columns: tuple[str, ...], epoch: int) -> None:
        self.path, self.columns = path, columns
        old = []
        if epoch > 0 and path.is_file():
            with open(path, newline="", encoding="utf-8") as file:
                # a row that was cut by a crash, or that will be written again, is left out
                old = [
                    row for row in csv.DictReader(file) if None not in row.values() and _before(row, epoch)
                ]
        with atomic_path(path) as temporary, open(temporary, "w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, columns, extrasaction="ignore")
            writer.writeheader()
            writer.writerows(old)

    def add(self, row: Mapping[str, Any]) -> None:
        """Append a row; columns that it does not have stay empty."""
        with open(self.path, "a", newline="", encoding="utf-8") as file:
            csv.DictWriter(file, self.columns).writerow(row)


def _before(row: Mapping[str, Any], epoch: int) -> bool:
    text = row.get("epoch") or ""
    return text.isdigit() and int(text) <= epoch


class Log:
    """The log of one training; silent on ranks other than 0.

    Parameters
    ----------
    folder : where log.csv, errors.csv and tensorboard/ go; None: nothing is written
    epoch : epochs that are done already (a resumed training goes on behind them)
    quiet : files only, nothing on stderr
    tables : write files
    """

    def __init__(self, folder: Path | None, epoch: int = 0, quiet: bool = False, tables: bool = True) -> None:
        self.active, self.quiet = folder is not None, quiet
        self.console = Console(stderr=True, quiet=not self.active, soft_wrap=True)
        self.bar: Progress | None = None
        self.said = time.monotonic()
        self.writer: Any = None
        if folder is not None and tables:
            from torch.utils.tensorboard.writer import SummaryWriter  # slow to import

            self.epochs = Table(folder / "log.csv", EPOCH_COLUMNS, epoch)
            self.errors = Table(folder / "errors.csv", ERROR_COLUMNS, epoch)
            self.writer = SummaryWriter(str(folder / "tensorboard"), purge_step=epoch + 1)

    def say(self, line: str) -> None:
        """A line for the user."""
        if not self.active or self.quiet:
            return
        if self.console.is_terminal:
            self.console.print(line, markup=False, highlight=False)
        else:
            print(line, file=sys.stderr, flush=True)

    def progress(self, what: str, done: int, total: int) -> None:
        """How far a long activity is; a bar that goes away on a terminal, now and then a line elsewhere."""
        if not self.active or self.quiet:
            return
        if not self.console.is_terminal:
            now = time.monotonic()
            if done < total and now - self.said > _QUIET:
                self.said = now
                self.say(f"{what}: {done} of {total}")
            return
        if self.bar is None or self.bar.tasks[0].description != what:
            self.close_bar()
            columns = (
                TextColumn("{task.description}"),
                BarColumn(),
                MofNCompleteColumn(),
                TimeRemainingColumn(),
            )
            self.bar = Progress(*columns, console=self.console, transient=True)
            self.bar.add_task(what, total=total)
            self.bar.start()
        self.bar.update(self.bar.tasks[0].id, completed=done, total=total)
        if done >= total:
            self.close_bar()

    def epoch(self, row: Mapping[str, Any], errors: Mapping[str, Errors]) -> None:
        """Record an epoch, and the errors of the validation snapshots by name, if there are any."""
        if not self.active:
            return
        self.epochs.add(row)
        for name, one in errors.items():
            self.errors.add({"epoch": row["epoch"], "snapshot": name, **one._asdict()})
            for quantity, value in one._asdict().items():
                self.writer.add_scalar(f"{quantity}/{name}", value, row["epoch"])
        for quantity, value in row.items():
            if quantity != "epoch":
                self.writer.add_scalar(f"training/{quantity}", value, row["epoch"])
        self.writer.flush()
        self.say(epoch_line(row))

    def close_bar(self) -> None:
        """Take the bar off the terminal."""
        if self.bar is not None:
            self.bar.stop()
            self.bar = None

    def close(self) -> None:
        """End the bar and the TensorBoard file."""
        self.close_bar()
        if self.writer is not None:
            self.writer.close()


def epoch_line(row: Mapping[str, Any]) -> str:
    """An epoch in one line."""
    line = (
        f"epoch {row['epoch']:4d}  train {row['train_loss']:.4e}  validation {row['validation_loss']:.4e}"
        f"{'*' if row['best'] else ' '} lr {row['learning_rate']:.1e}  {row['seconds']:.1f} s"
    )
    if "band_mae" in row:
        line += (
            f"  |band| {row['band_mae']:.1f} |F| {row['total_free_mae']:.1f} meV/atom"
            f" (mean {row['band_mean']:+.1f}, {row['total_free_mean']:+.1f})"
            f"  density {row['density_mape']:.2f} %"
        )
    return line
