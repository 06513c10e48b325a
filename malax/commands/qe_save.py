"""``malax predict --qe-save DIR``: the predicted density as pw.x's save folder."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from ase import Atoms

from malax.comm import on_root
from malax.errors import InputError
from malax.interfaces import quantum_espresso as qe
from malax.units import RYDBERG

if TYPE_CHECKING:
    from malax.commands.predict import PredictOptions
    from malax.emulator import Emulator
    from malax.result import Result


def save_targets(
    emulator: Emulator, structures: Sequence[Atoms], options: PredictOptions, n_results: int
) -> tuple[list[Path], qe.SaveOptions]:
    """The save folder of each result (DIR; several: DIR/0000, DIR/0001, ...), checked before predicting."""
    assert options.qe_save is not None
    given = dict(_named_file(text) for text in options.pseudo)
    elements = sorted({e for atoms in structures for e in atoms.get_chemical_symbols()})
    save = qe.SaveOptions(
        pseudo_files=qe.find_pseudopotentials(emulator, elements, given),
        kpoints=options.kpoints,
        ecutwfc=None if options.ecutwfc is None else options.ecutwfc * RYDBERG,
        n_bands=options.bands,
        hdf5=options.qe_hdf5,
        overwrite=options.overwrite,
    )
    root = options.qe_save
    folders = [root] if n_results == 1 else [root / f"{i:04d}" for i in range(n_results)]
    qe.check_cutoffs(emulator, elements, save)
    for folder in folders:
        for path in qe.planned_files(folder, save):
            if path.exists() and not options.overwrite:
                raise InputError(f"{path} exists; give --overwrite or another --qe-save")
    return folders, save


def _named_file(text: str) -> tuple[str, Path]:
    element, equals, path = text.partition("=")
    if not equals or not element or not path:
        raise InputError(f"--pseudo {text}: ELEMENT=PATH is needed, e.g. Al=pseudo/Al.UPF")
    return element, Path(path)


def write(result: Result, emulator: Emulator, folder: Path, options: qe.SaveOptions) -> None:
    """Collective: rank 0 writes."""
    whole = result.gather()

    def save() -> None:
        assert whole is not None  # rank 0 has it
        qe.save_folder(whole, emulator, folder, options)

    on_root(result.comm, save)
