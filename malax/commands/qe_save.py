"""``malax predict --qe-save DIR``: the predicted density as pw.x's save folder."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Container, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from ase import Atoms

from malax.comm import on_root
from malax.commands.console import finite
from malax.errors import InputError
from malax.interfaces import quantum_espresso as qe
from malax.io.files import atomic_path
from malax.long_run import read_json
from malax.units import RYDBERG

if TYPE_CHECKING:
    from malax.commands.predict_options import PredictOptions
    from malax.emulator import Emulator
    from malax.result import Result


NAME = "malax.json"
"""The file of a save folder that holds what ``malax predict --json`` says of the prediction."""


@dataclass(frozen=True)
class Saves:
    """The save folder of each result: DIR; of several results DIR/0000, DIR/0001, ...

    Attributes
    ----------
    finished : folders of results that an earlier run has finished: they are left as they are
    """

    folders: list[Path]
    options: qe.SaveOptions
    finished: frozenset[Path]

    @classmethod
    def of(
        cls,
        emulator: Emulator,
        structures: Sequence[Atoms],
        options: PredictOptions,
        keys: Sequence[str],
        finished: Container[str],
    ) -> Saves:
        """Checked before anything is predicted; ``keys`` of the results, and which are ``finished``.

        Raises
        ------
        InputError
            what `malax.interfaces.quantum_espresso.save_folder` would refuse; a file that exists, unless an
            earlier run of this series, killed before it added the row to its table, wrote it.
        """
        assert options.qe_save is not None
        given = dict(_named_file(text) for text in options.pseudo)
        elements = sorted({e for atoms in structures for e in atoms.get_chemical_symbols()})
        save = qe.SaveOptions(
            pseudo_files=qe.find_pseudopotentials(emulator, elements, given),
            kpoints=options.kpoints,
            ecutwfc=None if options.ecutwfc is None else options.ecutwfc * RYDBERG,
            n_bands=options.bands,
            hdf5=options.qe_hdf5,
            overwrite=options.overwrite or bool(options.tables),
        )
        root = options.qe_save
        folders = [root] if len(keys) == 1 else [root / f"{i:04d}" for i in range(len(keys))]
        qe.check_cutoffs(emulator, elements, save)
        done = frozenset(folder for folder, key in zip(folders, keys, strict=True) if key in finished)
        for folder, key in zip(folders, keys, strict=True):
            ours = folder in done or (bool(options.tables) and _key_in(folder) == key)
            for path in qe.planned_files(folder, save):
                if path.exists() and not (options.overwrite or ours):
                    raise InputError(f"{path} exists; give --overwrite or another --qe-save")
        return cls(folders, save, done)

    def write(self, result: Result, emulator: Emulator, index: int) -> Path:
        """Write the folder of a result and return it; collective, rank 0 writes."""
        folder = self.folders[index]
        if folder in self.finished:
            return folder
        whole = dataclasses.replace(result, ldos=None, spread=None).gather()

        def save() -> None:
            assert whole is not None  # rank 0 has it
            qe.make_folder(folder)
            with atomic_path(folder / NAME) as temporary:  # first: it says whose the others are
                temporary.write_text(json.dumps(finite(result.as_json())) + "\n")
            qe.save_folder(whole, emulator, folder, self.options)

        on_root(result.comm, save)
        return folder


def _key_in(folder: Path) -> str | None:
    """The key of the result in a save folder; None if there is none."""
    return ((read_json(folder / NAME) or {}).get("provenance") or {}).get("key")


def _named_file(text: str) -> tuple[str, Path]:
    element, equals, path = text.partition("=")
    if not equals or not element or not path:
        raise InputError(f"--pseudo {text}: ELEMENT=PATH is needed, e.g. Al=pseudo/Al.UPF")
    return element, Path(path)
