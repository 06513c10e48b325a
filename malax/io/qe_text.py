"""Numbers in the words and formats of Quantum ESPRESSO: energies as pw.x prints them, the file of dos.x."""

from __future__ import annotations

import os
from collections.abc import Mapping

import numpy as np

from malax.errors import InputError
from malax.io.files import atomic_path
from malax.units import RYDBERG


def pw_energies(terms: Mapping[str, float | None]) -> dict[str, float] | None:
    """Energies in Ry under the names that pw.x prints; None if a term is missing.

    pw.x's "one-electron contribution" is the band energy less what it counts of the electrons' interaction:
    E_band - int n v_Hxc, with int n v_H = 2 E_H.

    Parameters
    ----------
    terms : total_free, band, entropy_term, hartree, xc, vxc_rho, ewald in eV
    """
    names = ("total_free", "band", "entropy_term", "hartree", "xc", "vxc_rho", "ewald")
    found = {name: terms[name] for name in names}
    ry = {name: value / RYDBERG for name, value in found.items() if value is not None}
    if len(ry) < len(names):
        return None
    return {
        "total energy": ry["total_free"],
        "smearing contrib. (-TS)": ry["entropy_term"],
        "internal energy E=F+TS": ry["total_free"] - ry["entropy_term"],
        "one-electron contribution": ry["band"] - 2 * ry["hartree"] - ry["vxc_rho"],
        "hartree contribution": ry["hartree"],
        "xc contribution": ry["xc"],
        "ewald contribution": ry["ewald"],
    }


def write_dos(
    path: str | os.PathLike[str],
    energies: np.ndarray,
    dos: np.ndarray,
    fermi_level: float,
    overwrite: bool = True,
) -> None:
    """Write a density of states as dos.x does: energy (eV), DOS (1/eV, both spins), its integral.

    Parameters
    ----------
    energies, dos : (E,) evenly spaced, eV and 1/eV
    fermi_level : eV

    Raises
    ------
    InputError
        arrays that do not fit each other or are not finite.
    FileError, MachineError
        see `malax.io.files.atomic_path`.
    """
    energies, dos = np.asarray(energies, dtype=np.float64), np.asarray(dos, dtype=np.float64)
    if energies.ndim != 1 or energies.shape != dos.shape or len(dos) < 2 or not np.isfinite(dos).all():
        raise InputError(f"a DOS needs energies and values alike, got {energies.shape} and {dos.shape}")
    # dos.x adds DOS x spacing up to and with the line's own
    integral = np.cumsum(dos) * (energies[1] - energies[0])
    lines = [f"#  E (eV)   dos(E)     Int dos(E) EFermi = {fermi_level:8.3f} eV"]
    lines += [
        f"{e:8.3f}{fortran_e(d):>12s}{fortran_e(i):>12s}"
        for e, d, i in zip(energies, dos, integral, strict=True)
    ]
    with atomic_path(path, overwrite) as temporary:
        temporary.write_text("\n".join(lines) + "\n")


def fortran_e(value: float, digits: int = 4) -> str:
    """A number as Fortran's E format writes it: 0.1788E-09; no E before an exponent of three digits."""
    if value == 0:
        return f"0.{'0' * digits}E+00"
    mantissa, power = f"{abs(value):.{digits - 1}E}".split("E")
    exponent = int(power) + 1
    return (
        f"{'-' if value < 0 else ''}0.{mantissa.replace('.', '')}"
        f"{'E' if abs(exponent) < 100 else ''}{exponent:+0{3 if abs(exponent) < 100 else 4}d}"
    )
