"""``data-file-schema.xml`` for a density that pw.x has not computed.

pw.x with calculation = 'nscf' or 'bands' takes structure and Fermi level from this file and refuses it if an
element that the schema requires is missing. What is required was found with QE 6.7 by leaving out one after
the other.
"""

from __future__ import annotations

import os
import time
import xml.etree.ElementTree as ET
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from ase import Atoms
from ase.data import atomic_masses, atomic_numbers

from malax.io.files import atomic_path
from malax.units import BOHR, BOLTZMANN, HARTREE
from malax.version import VERSION

_NAMESPACE = "http://www.quantum-espresso.org/ns/qes/qes-1.0"


@dataclass(frozen=True, eq=False)
class PredictedRun:
    """What the file says of a predicted density, in eV, Angstrom and Kelvin.

    Attributes
    ----------
    pseudo_files : element -> name of its file
    energies : total_free, band, entropy_term, hartree, xc, vxc_rho, ewald
    fft_shape : of the grid on which the density was predicted
    n_waves : of charge-density.dat
    ultrasoft : one of the pseudopotentials is
    """

    atoms: Atoms
    pseudo_files: Mapping[str, str]
    functional: str
    ecutwfc: float
    ecutrho: float
    fft_shape: tuple[int, int, int]
    n_waves: int
    temperature: float
    n_electrons: float
    fermi_level: float
    energies: Mapping[str, float]
    ultrasoft: bool = False
    gamma_only: bool = False


def write_xml(path: str | os.PathLike[str], run: PredictedRun, overwrite: bool = True) -> Path:
    """Write the file. Its creator is named malax, so that nobody takes it for a finished run of pw.x.

    FileError, MachineError: see `malax.io.files.atomic_path`.
    """
    path = Path(path)
    ET.register_namespace("qes", _NAMESPACE)
    root = ET.Element(f"{{{_NAMESPACE}}}espresso", {"Units": "Hartree atomic units"})
    info = _add(root, "general_info")
    # the version of the schema of QE 6.7, whose elements these are
    _add(info, "xml_format", "QEXSD_20.04.20", NAME="QEXSD", VERSION="20.04.20")
    _add(info, "creator", "density predicted by malax", NAME="malax", VERSION=VERSION)
    _add(info, "created", "", DATE=time.strftime("%d%b%Y"), TIME=time.strftime("%H:%M:%S"))
    _add(info, "job", "")
    output = _add(root, "output")
    _add_structure(output, run)
    _add_basis(output, run)
    _add(_add(output, "dft"), "functional", run.functional)
    magnetization = _add(output, "magnetization")
    for name in ("lsda", "noncolin", "spinorbit"):
        _add(magnetization, name, "false")
    for name in ("total", "absolute"):
        _add(magnetization, name, _number(0.0))
    terms = _add(output, "total_energy")
    for theirs, ours in (
        ("etot", "total_free"), ("eband", "band"), ("ehart", "hartree"), ("vtxc", "vxc_rho"),
        ("etxc", "xc"), ("ewald", "ewald"), ("demet", "entropy_term"),
    ):  # fmt: skip
        _add(terms, theirs, _number(run.energies[ours] / HARTREE))
    _add_bands(output, run)
    _add(root, "status", "0")
    ET.indent(root)
    with atomic_path(path, overwrite) as temporary:
        ET.ElementTree(root).write(temporary, encoding="UTF-8", xml_declaration=True)
    return path


def _add_structure(output: ET.Element, run: PredictedRun) -> None:
    algorithm = _add(output, "algorithmic_info")
    for name, value in (
        ("real_space_q", False), ("real_space_beta", False), ("uspp", run.ultrasoft), ("paw", False),
    ):  # fmt: skip
        _add(algorithm, name, str(value).lower())
    elements = list(dict.fromkeys(run.atoms.get_chemical_symbols()))
    species = _add(output, "atomic_species", ntyp=str(len(elements)), pseudo_dir="./")
    for element in elements:
        one = _add(species, "species", name=element)
        _add(one, "mass", _number(atomic_masses[atomic_numbers[element]]))
        _add(one, "pseudo_file", run.pseudo_files[element])
    cell = run.atoms.cell.array / BOHR
    alat = _number(float(np.linalg.norm(cell[0])))
    structure = _add(output, "atomic_structure", nat=str(len(run.atoms)), alat=alat)
    positions = _add(structure, "atomic_positions")
    for i, (symbol, position) in enumerate(zip(run.atoms.symbols, run.atoms.positions / BOHR, strict=True)):
        _add(positions, "atom", _numbers(position), name=symbol, index=str(i + 1))
    lattice = _add(structure, "cell")
    for i in range(3):
        _add(lattice, f"a{i + 1}", _numbers(cell[i]))


def _add_basis(output: ET.Element, run: PredictedRun) -> None:
    basis = _add(output, "basis_set")
    _add(basis, "gamma_only", str(run.gamma_only).lower())
    _add(basis, "ecutwfc", _number(run.ecutwfc / HARTREE))
    _add(basis, "ecutrho", _number(run.ecutrho / HARTREE))
    nr = {f"nr{i + 1}": str(n) for i, n in enumerate(run.fft_shape)}
    for name in ("fft_grid", "fft_smooth", "fft_box"):
        _add(basis, name, "", **nr)
    for name in ("ngm", "ngms"):
        _add(basis, name, str(run.n_waves))
    _add(basis, "npwx", str(_waves_at_gamma(run)))
    cell = run.atoms.cell.array
    reciprocal = np.linalg.inv(cell).T * np.linalg.norm(cell[0])
    lattice = _add(basis, "reciprocal_lattice")
    for i in range(3):
        _add(lattice, f"b{i + 1}", _numbers(reciprocal[i]))


def _add_bands(output: ET.Element, run: PredictedRun) -> None:
    bands = _add(output, "band_structure")
    for name in ("lsda", "noncolin", "spinorbit"):
        _add(bands, name, "false")
    _add(bands, "nbnd", "1")
    _add(bands, "nelec", _number(run.n_electrons))
    _add(bands, "wf_collected", "false")
    _add(bands, "fermi_energy", _number(run.fermi_level / HARTREE))
    mesh = {"nk1": "1", "nk2": "1", "nk3": "1", "k1": "0", "k2": "0", "k3": "0"}
    _add(_add(bands, "starting_k_points"), "monkhorst_pack", "Monkhorst-Pack", **mesh)
    _add(bands, "nks", "1")
    smeared = run.temperature > 0
    _add(bands, "occupations_kind", "smearing" if smeared else "fixed")
    if smeared:
        _add(bands, "smearing", "fd", degauss=_number(run.temperature * BOLTZMANN / HARTREE))
    # The schema wants a level, and an emulator knows none. The one here is the Fermi level, half filled: pw.x
    # computes its own and does not use it.
    levels = _add(bands, "ks_energies")
    _add(levels, "k_point", _numbers(np.zeros(3)), weight=_number(2.0))
    _add(levels, "npw", str(_waves_at_gamma(run)))
    _add(levels, "eigenvalues", _number(run.fermi_level / HARTREE), size="1")
    _add(levels, "occupations", _number(0.5), size="1")


def _waves_at_gamma(run: PredictedRun) -> int:
    """Plane waves below ecutwfc, from the volume of their sphere."""
    radius = np.sqrt(2 * run.ecutwfc / HARTREE) / BOHR
    return max(1, round(run.atoms.get_volume() * radius**3 / (6 * np.pi**2)))


def _add(where: ET.Element, tag: str, text: str | None = None, **attributes: str) -> ET.Element:
    element = ET.SubElement(where, tag, attributes)
    element.text = text
    return element


def _number(value: float) -> str:
    return f"{float(value):.15e}"


def _numbers(values: np.ndarray) -> str:
    return " ".join(_number(value) for value in values)
