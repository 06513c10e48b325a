"""The outputs of a series: table, save folders, what an earlier run has finished, where tiles are kept."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import h5py

from malax.comm import Comm, on_root
from malax.commands.predict_options import PredictOptions, Structure
from malax.commands.predict_output import check_outputs
from malax.commands.qe_save import Saves
from malax.emulator import Emulator
from malax.result import Result
from malax.series import Table, as_json, key_of, row_of
from malax.version import VERSION


class Series:
    """The table and save folders of a series, if they were asked for; what of it is finished. Collective."""

    def __init__(
        self,
        options: PredictOptions,
        todo: Sequence[Structure],
        emulator: Emulator,
        outputs: Sequence[Path],
        comm: Comm,
    ) -> None:
        self.comm, self._emulator = comm, emulator
        grid = (options.grid, options.spacing, options.descriptors, options.precision, VERSION)
        kelvins = options.temperatures or (None,)
        self.keys = [[key_of(s.atoms, kelvin, emulator.hash, *grid) for kelvin in kelvins] for s in todo]
        self._table: Table | None = None
        self.finished: dict[str, dict[str, str]] = on_root(comm, lambda: self._begin(options, outputs))
        self._saves: Saves | None = None
        if options.qe_save is not None:
            structures = [structure.atoms for structure in todo]
            keys = [key for some in self.keys for key in some]
            self._saves = on_root(comm, lambda: Saves.of(emulator, structures, options, keys, self.finished))

    def _begin(self, options: PredictOptions, outputs: Sequence[Path]) -> dict[str, dict[str, str]]:
        keys = [key for some in self.keys for key in some]
        if options.tables:
            self._table = Table(options.tables, keys, options.overwrite)
        finished = {} if self._table is None else self._table.finished
        for path, key in zip(outputs, keys, strict=True if outputs else False):
            # a file of this very result is there if the series was killed before its row was added
            ours = key in finished or (bool(options.tables) and _key_in(path) == key)
            check_outputs(path, options, options.overwrite or ours)
        return dict(finished)

    def save(self, result: Result, index: int) -> list[Path]:
        """Write pw.x's save folder of a result, if that was asked for; collective. Returns what there is."""
        return [] if self._saves is None else [self._saves.write(result, self._emulator, index)]

    def finished_object(self, key: str) -> dict[str, Any]:
        """A finished result as ``--json`` prints it."""
        found = as_json(self.finished[key])
        if found["spread"] is not None and self._emulator.calibration is not None:
            found["spread"]["calibration"] = self._emulator.calibration.to_plain()
        return found

    def add(self, structure: Structure, result: Result, written: Sequence[Path], key: str) -> None:
        """Add a row, on rank 0; collective."""

        def add() -> None:
            if self._table is not None and key not in self._table.finished:
                alike = (
                    row
                    for row in self._table.finished.values()
                    if float(row["temperature_K"]) == result.temperature
                )
                file = written[0] if written else None
                row = row_of(structure.label, result, file, key, next(alike, None))
                self._table.add(row, result.atoms)

        on_root(self.comm, add)


def _key_in(path: Path) -> str | None:
    """The key of the result in a file; None if there is none."""
    try:
        with h5py.File(path, "r") as file:
            return json.loads(file.attrs["provenance"]).get("key")
    except (OSError, KeyError, ValueError):
        return None


def tiles_folder(options: PredictOptions, paths: Sequence[Path], index: int) -> Path | None:
    """Where finished tiles of a structure are kept: beside its first output, or beside the table."""
    if paths:
        return paths[0].with_name(f".{paths[0].name}.tiles")
    if options.tables:
        return options.tables[0].with_name(f".{options.tables[0].name}.{index}.tiles")
    return None
