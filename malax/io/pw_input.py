"""Input files of pw.x and pp.x, written from malax's units."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from ase import Atoms
from ase.data import atomic_masses, atomic_numbers

from malax.errors import InputError
from malax.units import BOLTZMANN, RYDBERG

Value = bool | int | float | str

OWNED = {
    "control": {"calculation", "prefix", "outdir", "pseudo_dir", "wf_collect", "disk_io"},
    "system": {
        "ibrav", "celldm", "a", "b", "c", "nat", "ntyp", "nbnd", "nr1", "nr2", "nr3",
        "occupations", "smearing", "degauss",
    },
    "electrons": set(),
}  # fmt: skip
"""Keys that follow from the structure, the temperature, or how malax reads the run."""

UNSUPPORTED = {
    "nspin", "noncolin", "lspinorb", "lda_plus_u", "tot_charge", "vdw_corr", "input_dft", "tefield",
    "lelfield", "assume_isolated", "gate", "starting_magnetization", "tot_magnetization",
}  # fmt: skip
"""Keys of runs that no snapshot can hold: refused before anything is computed."""


def check_namelists(namelists: Mapping[str, Mapping[str, Value]]) -> None:
    """InputError for a namelist or key that is not the user's to set."""
    for name, keys in namelists.items():
        if name not in OWNED:
            raise InputError(f"namelist {name!r}: known are {', '.join(OWNED)}")
        for key in keys:
            plain = key.lower().split("(")[0]
            if plain in OWNED[name]:
                raise InputError(f"{name}.{key} follows from the structure and the group: remove it")
            if plain in UNSUPPORTED:
                raise InputError(f"{name}.{key}: malax's snapshots cannot hold such a run")


def pw_input(
    atoms: Atoms,
    pseudo_files: Mapping[str, str],
    *,
    temperature: float,
    n_bands: int,
    kpoints: tuple[int, int, int],
    fft_shape: tuple[int, int, int] | None = None,
    namelists: Mapping[str, Mapping[str, Value]] | None = None,
    prefix: str = "malax",
) -> str:
    """The input of an scf with Fermi-Dirac occupations at ``temperature`` (K).

    Parameters
    ----------
    pseudo_files : element -> name of its file, which lies in the working folder
    kpoints : Monkhorst-Pack mesh with Gamma; (1, 1, 1) uses pw.x's real wavefunctions at Gamma
    fft_shape : dense FFT grid; None leaves it to pw.x
    namelists : further keys, QE's own names and units: {"control": ..., "system": ..., "electrons": ...}

    Raises
    ------
    InputError
        keys that are not the user's to set, or an element without a pseudopotential.
    """
    namelists = namelists or {}
    check_namelists(namelists)
    elements = list(dict.fromkeys(atoms.get_chemical_symbols()))
    missing = [e for e in elements if e not in pseudo_files]
    if missing:
        raise InputError(
            f"no pseudopotential for {', '.join(missing)}; there is one for {', '.join(pseudo_files)}"
        )
    control: dict[str, Value] = {"calculation": "scf", "prefix": prefix, "outdir": "./tmp", "pseudo_dir": "."}
    control |= {"verbosity": "high", "tstress": True, "tprnfor": True, **namelists.get("control", {})}
    system: dict[str, Value] = {"ibrav": 0, "nat": len(atoms), "ntyp": len(elements), "nbnd": n_bands}
    system |= {"occupations": "smearing", "smearing": "fermi-dirac"}
    system["degauss"] = float(f"{temperature * BOLTZMANN / RYDBERG:.10f}")
    if fft_shape is not None:
        system |= {f"nr{i + 1}": n for i, n in enumerate(fft_shape)}
    system |= namelists.get("system", {})
    parts = [
        namelist("control", control),
        namelist("system", system),
        namelist("electrons", namelists.get("electrons", {})),
        "ATOMIC_SPECIES",
        *(f"{e} {atomic_masses[atomic_numbers[e]]:.7f} {pseudo_files[e]}" for e in elements),
        "K_POINTS gamma" if kpoints == (1, 1, 1) else "K_POINTS automatic",
        *([] if kpoints == (1, 1, 1) else [" ".join(str(k) for k in (*kpoints, 0, 0, 0))]),
        "CELL_PARAMETERS angstrom",
        *(_row(vector, 12) for vector in atoms.cell.array),
        "ATOMIC_POSITIONS angstrom",
        *(f"{e} {_row(p, 10)}" for e, p in zip(atoms.get_chemical_symbols(), atoms.positions, strict=True)),
    ]
    return "\n".join(parts) + "\n"


def pp_input(energies: np.ndarray, sigma: float, prefix: str = "malax") -> str:
    """The input of pp.x for one LDOS cube per energy (E,) in eV, of width ``sigma`` (eV)."""
    inputpp = {
        "outdir": "./tmp",
        "prefix": prefix,
        "plot_num": 3,
        "emin": float(energies[0]),
        "emax": float(energies[-1]),
        "delta_e": round(float(energies[1] - energies[0]), 10),
        "degauss_ldos": sigma,
    }
    return namelist("inputpp", inputpp) + "\n" + namelist("plot", {
        "iflag": 3, "output_format": 6, "fileout": "_ldos.cube",
    }) + "\n"  # fmt: skip


def namelist(name: str, values: Mapping[str, Any]) -> str:
    """A Fortran namelist."""
    return "\n".join([f"&{name}", *(f" {key} = {_fortran(value)}" for key, value in values.items()), "/"])


def _fortran(value: Value) -> str:
    if isinstance(value, bool):
        return ".true." if value else ".false."
    if isinstance(value, str):
        return "'" + value.replace("'", "''") + "'"
    return repr(value)


def _row(vector: np.ndarray, digits: int) -> str:
    return " ".join(f"{x:.{digits}f}" for x in vector)
