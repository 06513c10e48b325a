"""Quantum ESPRESSO's ``data-file-schema.xml``.

The XML is the source of numbers because it has full precision (the text output has 4 to 8 digits).
Everything is converted here: Hartree and bohr to eV and Angstrom, QE's stress sign to ASE's.
"""

from __future__ import annotations

import gzip
import os
import re
import xml.etree.ElementTree as ET
import zlib
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from ase import Atoms
from ase.data import atomic_numbers

from malax.errors import FileError
from malax.io.charge_density import read_charge_density
from malax.io.pw_run import PwRun, broaden
from malax.units import BOHR, HARTREE

__all__ = ["PwRun", "broaden", "read_charge_density", "read_xml"]

SMEARINGS = {
    "fd": "fermi-dirac",
    "fermi-dirac": "fermi-dirac",
    "f-d": "fermi-dirac",
    "gaussian": "gaussian",
    "gauss": "gaussian",
    "mp": "methfessel-paxton",
    "m-p": "methfessel-paxton",
    "methfessel-paxton": "methfessel-paxton",
    "mv": "cold",
    "m-v": "cold",
    "cold": "cold",
    "marzari-vanderbilt": "cold",
}


def read_xml(path: str | os.PathLike[str]) -> PwRun:
    """Read ``data-file-schema.xml`` (plain or .gz) of pw.x 6.x or 7.x.

    Raises
    ------
    FileError
        missing, truncated, not XML, or not the output of a finished pw.x.
    """
    path = Path(path)
    root = _parse(path)
    try:
        return _read(root, path)
    except (AttributeError, KeyError, ValueError, TypeError) as error:
        raise FileError(f"{path} is not the XML file of a finished pw.x run: {error}") from error


def _parse(path: Path) -> ET.Element:
    if not path.is_file():
        raise FileError(f"{path} does not exist: the data-file-schema.xml of a finished pw.x run is needed")
    try:
        with gzip.open(path) if path.suffix == ".gz" else open(path, "rb") as file:
            return ET.parse(file).getroot()
    except (ET.ParseError, EOFError, OSError, zlib.error) as error:
        raise FileError(f"{path} is not whole XML ({error}): did pw.x finish?") from error


def _read(root: ET.Element, path: Path) -> PwRun:
    output = _find(root, "output")
    bands = _find(output, "band_structure")
    structure, energy = _find(output, "atomic_structure"), _find(output, "total_energy")
    atoms, species_files = _structure(structure, _find(output, "atomic_species"))
    kpoints, weights, eigenvalues, occupation_numbers = _bands(bands, float(structure.get("alat", "nan")))
    smearing, degauss = _smearing(bands)
    scf_smearing, scf_degauss = _smearing(root.find("input/bands"))
    occupations = _text(bands, "occupations_kind")
    basis = _find(output, "basis_set")
    fft = _find(basis, "fft_grid")
    mesh = bands.find("starting_k_points/monkhorst_pack")
    forces, stress = output.find("forces"), output.find("stress")
    return PwRun(
        path=path,
        version=_find(root, "general_info/creator").get("VERSION", "unknown"),
        calculation=(root.findtext("input/control_variables/calculation") or "scf").strip(),
        converged=_converged(output, root),
        atoms=atoms,
        species_files=species_files,
        pseudo_dir=Path(_find(output, "atomic_species").get("pseudo_dir", ".")),
        kpoints=kpoints,
        weights=weights,
        eigenvalues=eigenvalues,
        occupation_numbers=occupation_numbers,
        occupations=occupations,
        smearing=smearing,
        scf_smearing=scf_smearing or smearing,
        degauss=scf_degauss if scf_degauss is not None else degauss,
        n_electrons=round(_number(bands, "nelec"), 9),  # QE writes 96.00000000000001
        fermi_level=_fermi_level(bands, occupations, eigenvalues, occupation_numbers),
        energies=_energies(energy, weights, eigenvalues, occupation_numbers),
        forces=None if forces is None else _array(forces).reshape(-1, 3) * (HARTREE / BOHR),
        stress=None if stress is None else _voigt(-_array(stress).reshape(3, 3) * (HARTREE / BOHR**3)),
        # Hartree in the XML, though pw.x is given them in Rydberg
        ecutwfc=_number(basis, "ecutwfc") * HARTREE,
        ecutrho=_number(basis, "ecutrho") * HARTREE,
        fft_shape=tuple(int(fft.attrib[f"nr{i}"]) for i in (1, 2, 3)),  # type: ignore[arg-type]
        functional=_text(output, "dft/functional"),
        gamma_only=_flag(basis, "gamma_only"),
        kpoint_mesh=None
        if mesh is None
        else tuple(int(mesh.get(k, 0)) for k in ("nk1", "nk2", "nk3", "k1", "k2", "k3")),
        symmetries=_symmetries(output),
        unsupported=tuple(_unsupported(root)),
    )


def _structure(structure: ET.Element, species: ET.Element) -> tuple[Atoms, dict[str, str]]:
    """Atoms, and pseudopotential file name per element."""
    cell = np.array([_array(_find(structure, f"cell/a{i}")) for i in (1, 2, 3)]) * BOHR
    files: dict[str, str] = {}
    for one in species.findall("species"):
        element, file = _element(one.attrib["name"]), _text(one, "pseudo_file")
        if files.setdefault(element, file) != file:
            raise ValueError(
                f"two pseudopotentials for {element} ({files[element]}, {file}); malax knows one each"
            )
    found = structure.findall("atomic_positions/atom")
    atoms = Atoms(
        [_element(atom.attrib["name"]) for atom in found],
        positions=np.array([_array(atom) for atom in found]).reshape(-1, 3) * BOHR,
        cell=cell,
        pbc=True,
    )
    return atoms, files


def _element(label: str) -> str:
    """Chemical symbol of QE's species label (Al, Al1, Fe_up, fe)."""
    match = re.match(r"[A-Za-z]{1,2}", label)
    name = match.group().capitalize() if match else ""
    for candidate in (name, name[:1]):
        if candidate in atomic_numbers and candidate != "X":
            return candidate
    raise ValueError(f"species {label!r} starts with no chemical symbol")


def _bands(bands: ET.Element, alat: float) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """k-points (1/A), weights (sum 2), eigenvalues (eV), occupation numbers (0..1)."""
    found = bands.findall("ks_energies")
    if not found or len(found) != int(_text(bands, "nks")):
        raise ValueError(f"{len(found)} k-points where <nks> says {bands.findtext('nks')}")
    points = np.array([_array(_find(k, "k_point")) for k in found])
    weights = np.array([float(_find(k, "k_point").attrib["weight"]) for k in found])
    # QE writes 13 digits of the weights; their sum is known
    weights *= 2.0 / weights.sum()
    eigenvalues = np.array([_array(_find(k, "eigenvalues")) for k in found]) * HARTREE
    occupied = np.array([_array(_find(k, "occupations")) for k in found])
    return points * (2 * np.pi / (alat * BOHR)), weights, eigenvalues, occupied


def _smearing(where: ET.Element | None) -> tuple[str | None, float | None]:
    element = None if where is None else where.find("smearing")
    if element is None:
        return None, None
    name = (element.text or "").strip().lower()
    return SMEARINGS.get(name, name), float(element.attrib["degauss"]) * HARTREE


def _fermi_level(
    bands: ET.Element, occupations: str, eigenvalues: np.ndarray, occupied: np.ndarray
) -> float | None:
    if occupations != "fixed":
        found = bands.find("fermi_energy")
        return None if found is None else float(_array(found)[0]) * HARTREE
    filled = occupied > 0.5
    if filled.all():
        return None
    return float(eigenvalues[filled].max() + eigenvalues[~filled].min()) / 2


def _energies(
    energy: ET.Element, weights: np.ndarray, eigenvalues: np.ndarray, occupied: np.ndarray
) -> dict[str, float]:
    """Energies by malax's names in eV. <etot> of a smeared run is the free energy, <demet> is -TS."""
    demet = energy.find("demet")
    entropy_term = 0.0 if demet is None else float(_array(demet)[0]) * HARTREE
    terms = {
        "total_free": _number(energy, "etot") * HARTREE,
        # <eband> may belong to another iteration than the eigenvalues in the file
        "band": float((weights[:, None] * occupied * eigenvalues).sum()),
        "entropy_term": entropy_term,
    }
    for ours, theirs in (("hartree", "ehart"), ("xc", "etxc"), ("vxc_rho", "vtxc"), ("ewald", "ewald")):
        terms[ours] = _number(energy, theirs) * HARTREE
    return terms


def _converged(output: ET.Element, root: ET.Element) -> bool:
    flags = [e.text for e in output.findall("convergence_info/*/convergence_achieved")]
    status = root.findtext("status", default="0").strip()
    return status == "0" and all((f or "").strip().lower() == "true" for f in flags)


def _symmetries(output: ET.Element) -> tuple[np.ndarray, np.ndarray]:
    """Rotations and translations of the crystal's (not just the lattice's) symmetries, as written."""
    rotations, translations = [], []
    for one in output.findall("symmetries/symmetry"):
        if (one.findtext("info") or "").strip() == "crystal_symmetry":
            # written by columns: the first three numbers are s(:, 1)
            rotations.append(np.rint(_array(_find(one, "rotation")).reshape(3, 3).T).astype(int))
            shift = one.find("fractional_translation")
            translations.append(np.zeros(3) if shift is None else _array(shift))
    if not rotations:
        return np.eye(3, dtype=int)[None], np.zeros((1, 3))
    return np.array(rotations), np.array(translations)


def _unsupported(root: ET.Element) -> Iterator[str]:
    """Features of the run that a snapshot of malax cannot hold, named."""
    output = _find(root, "output")
    creator = root.find("general_info/creator")
    if creator is not None and creator.get("NAME") == "malax":
        yield "a density that malax predicted, which no pw.x has worked on yet"
    if _flag(output, "band_structure/lsda"):
        yield "spin polarisation (lsda)"
    if _flag(output, "band_structure/noncolin") or _flag(output, "band_structure/spinorbit"):
        yield "noncollinear spin"
    if _flag(output, "algorithmic_info/paw"):
        yield "PAW (its one-centre terms are not in a grid density)"
    for tag, name in (
        ("hybrid", "a hybrid functional"),
        ("dftU", "DFT+U"),
        ("vdW", "a van der Waals correction"),
    ):
        if output.find(f"dft/{tag}") is not None:
            yield name
    charge = root.find("input/bands/tot_charge")
    if charge is not None and abs(float(_array(charge)[0])) > 1e-8:
        yield "a charged cell"
    for where in ("input", "output"):
        field = root.find(f"{where}/electric_field")
        if field is not None and _text(field, "electric_potential").lower() not in ("none", ""):
            yield "an electric field"
            return
    boundary = root.find("input/boundary_conditions/assume_isolated")
    if boundary is not None and (boundary.text or "").strip().lower() not in ("none", ""):
        yield f"boundary conditions assume_isolated={(boundary.text or '').strip()}"


def _find(where: ET.Element, path: str) -> ET.Element:
    found = where.find(path)
    if found is None:
        raise ValueError(f"<{path}> is missing")
    return found


def _text(where: ET.Element, path: str) -> str:
    return (_find(where, path).text or "").strip()


def _flag(where: ET.Element, path: str) -> bool:
    found = where.find(path)
    return found is not None and (found.text or "").strip().lower() == "true"


def _array(element: ET.Element) -> np.ndarray:
    return np.array((element.text or "").split(), dtype=np.float64)


def _number(where: ET.Element, path: str) -> float:
    return float(_array(_find(where, path))[0])


def _voigt(tensor: np.ndarray) -> np.ndarray:
    """xx, yy, zz, yz, xz, xy of a symmetric (3, 3) tensor."""
    t = (tensor + tensor.T) / 2
    return np.array([t[0, 0], t[1, 1], t[2, 2], t[1, 2], t[0, 2], t[0, 1]])
