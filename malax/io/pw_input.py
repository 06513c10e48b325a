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
    "nspin": "spin polarisation", "noncolin": "noncollinear spin", "lspinorb": "spin-orbit coupling",
    "starting_magnetization": "spin polarisation", "tot_magnetization": "spin polarisation",
    "lda_plus_u": "DFT+U", "hubbard_u": "DFT+U", "hubbard_v": "DFT+U", "tot_charge": "a charged cell",
    "vdw_corr": "a van der Waals correction", "london": "a van der Waals correction",
    "xdm": "a van der Waals correction", "ts_vdw": "a van der Waals correction",
    "input_dft": "another functional than the pseudopotential's", "exx_fraction": "a hybrid functional",
    "nqx1": "a hybrid functional", "nqx2": "a hybrid functional", "nqx3": "a hybrid functional",
    "tefield": "an electric field", "lelfield": "an electric field", "dipfield": "an electric field",
    "lberry": "an electric field", "gate": "a charged gate", "assume_isolated": "an isolated cell",
}  # fmt: skip
"""Keys of runs that no snapshot can hold, refused before anything is computed; and what they turn on."""

HARMLESS: dict[str, tuple[Value, ...]] = {
    "nspin": (1,),
    "tot_charge": (0, 0.0),
    "vdw_corr": ("none", ""),
    "assume_isolated": ("none",),
    "starting_magnetization": (0, 0.0),
    "tot_magnetization": (-1, -1.0, -10000.0),
    "nqx1": (1,),
    "nqx2": (1,),
    "nqx3": (1,),
}
"""Their values that turn nothing on, besides .false. of the logical ones."""


def check_namelists(namelists: Mapping[str, Mapping[str, Value]]) -> None:
    """InputError for a namelist or key that is not the user's to set."""
    for name, keys in namelists.items():
        if name not in OWNED:
            raise InputError(f"namelist {name!r}: known are {', '.join(OWNED)}")
        for key in keys:
            if _plain(key) in OWNED[name]:
                raise InputError(f"{name}.{key} follows from the structure and the group: remove it")
        check_supported_keys(name, keys)


def check_supported_keys(name: str, keys: Mapping[str, Value]) -> None:
    """InputError, by name, for a key that turns on what no snapshot can hold."""
    for key, value in keys.items():
        plain = _plain(key)
        if plain not in UNSUPPORTED or value is False:
            continue
        text = value.lower() if isinstance(value, str) else value
        if text not in HARMLESS.get(plain, ()):
            raise InputError(f"{name}.{key}: malax's snapshots cannot hold such a run ({UNSUPPORTED[plain]})")


def _plain(key: str) -> str:
    """A key without the index of its species."""
    return key.lower().split("(")[0].strip()


def pw_input(
    atoms: Atoms,
    pseudo_files: Mapping[str, str],
    *,
    temperature: float,
    n_bands: int | None,
    kpoints: tuple[int, int, int] | np.ndarray,
    fft_shape: tuple[int, int, int] | None = None,
    namelists: Mapping[str, Mapping[str, Value]] | None = None,
    prefix: str = "malax",
    calculation: str = "scf",
    outdir: str = "./tmp",
) -> str:
    """The input of pw.x with Fermi-Dirac occupations at ``temperature`` (K); fixed occupations at 0 K.

    Parameters
    ----------
    pseudo_files : element -> name of its file, which lies in the working folder
    n_bands : None leaves it to pw.x
    kpoints : Monkhorst-Pack mesh with Gamma, where (1, 1, 1) uses pw.x's real wavefunctions at Gamma; or a
        list (n, 3) in units of the reciprocal lattice vectors
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
    control: dict[str, Value] = {"calculation": calculation, "prefix": prefix}
    control |= {"outdir": outdir, "pseudo_dir": ".", "verbosity": "high"}
    if calculation == "scf":
        control |= {"tstress": True, "tprnfor": True}
    control |= namelists.get("control", {})
    system: dict[str, Value] = {"ibrav": 0, "nat": len(atoms), "ntyp": len(elements)}
    if n_bands is not None:
        system["nbnd"] = n_bands
    if temperature > 0:
        system |= {"occupations": "smearing", "smearing": "fermi-dirac"}
        system["degauss"] = float(f"{temperature * BOLTZMANN / RYDBERG:.10f}")
    else:
        system["occupations"] = "fixed"
    if fft_shape is not None:
        system |= {f"nr{i + 1}": n for i, n in enumerate(fft_shape)}
    system |= namelists.get("system", {})
    parts = [
        namelist("control", control),
        namelist("system", system),
        namelist("electrons", namelists.get("electrons", {})),
        "ATOMIC_SPECIES",
        *(f"{e} {atomic_masses[atomic_numbers[e]]:.7f} {pseudo_files[e]}" for e in elements),
        *_kpoints(kpoints),
        "CELL_PARAMETERS angstrom",
        *(_row(vector, 12) for vector in atoms.cell.array),
        "ATOMIC_POSITIONS angstrom",
        *(f"{e} {_row(p, 10)}" for e, p in zip(atoms.get_chemical_symbols(), atoms.positions, strict=True)),
    ]
    return "\n".join(parts) + "\n"


def _kpoints(kpoints: tuple[int, int, int] | np.ndarray) -> list[str]:
    if isinstance(kpoints, np.ndarray):
        return ["K_POINTS crystal", str(len(kpoints)), *(f"{_row(k, 10)} 1" for k in kpoints)]
    if tuple(kpoints) == (1, 1, 1):
        return ["K_POINTS gamma"]
    return ["K_POINTS automatic", " ".join(str(k) for k in (*kpoints, 0, 0, 0))]


def pp_input(
    energies: np.ndarray,
    sigma: float,
    prefix: str = "malax",
    *,
    filplot: str = "tmp.pp",
    use_gauss_ldos: bool = False,
) -> str:
    """The input of pp.x for one LDOS cube per energy (E,) in eV, of width ``sigma`` (eV).

    The cubes are ``<filplot>001_ldos.cube`` and so on; ``use_gauss_ldos`` is known from QE 7.2 on.
    """
    step = float(energies[1] - energies[0])
    inputpp: dict[str, Value] = {
        "outdir": "./tmp",
        "prefix": prefix,
        "plot_num": 3,
        "emin": round(float(energies[0]), 10),
        # pp.x rounds the number of steps down
        "emax": round(float(energies[-1] + 0.01 * step), 10),
        "delta_e": round(step, 10),
        "degauss_ldos": sigma,
        "filplot": filplot,
    }
    if use_gauss_ldos:
        inputpp["use_gauss_ldos"] = True
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
