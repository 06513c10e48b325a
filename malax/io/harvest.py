"""A finished Quantum ESPRESSO run -> a snapshot file."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from scipy.special import erfc, expit

from malax.errors import FileError, InputError
from malax.io import cube_series, files, wavefunctions
from malax.io.charge_density import read_charge_density
from malax.io.espresso import read_xml
from malax.io.pw_run import PwRun
from malax.io.snapshot import Snapshot, save_snapshot
from malax.io.upf import Pseudopotential, functional_name, read_upf

XML_NAME = "data-file-schema.xml"
DOS_TOLERANCE = 2e-3
"""Largest deviation of the DOS of a series of cubes from that of the eigenvalues, relative to the maximum
of the DOS. Cubes of 5 digits have 1e-5; another kernel or sigma, or missing weights, 5 % and more."""
COMPLETE_WIDTHS = {"gaussian": 2.0, "fermi-dirac": 6.0}
"""How many sigma below the lowest top band the LDOS is complete: where 0.25 % of the kernel lies beyond."""


@dataclass(frozen=True)
class RunFolder:
    """Where the files of one finished run are."""

    name: str
    xml: Path
    save: Path
    """The prefix.save folder (charge density, wavefunctions, pseudopotentials)."""
    folder: Path
    """The folder that was named by the user (cubes, pp.x input)."""


def find_run(directory: str | os.PathLike[str]) -> RunFolder:
    """The one finished pw.x run in a folder: in it, in its ``*.save``, or in that of a subfolder (outdir).

    FileError, naming what is missing, if there is none or more than one.
    """
    folder = Path(directory)
    if not folder.is_dir():
        raise FileError(f"{folder} is not a folder; the folder of a finished pw.x run is needed")
    found: list[Path] = []
    for pattern in ("", "*.save/", "*/*.save/"):
        found = sorted(p for ending in ("", ".gz") for p in folder.glob(f"{pattern}{XML_NAME}{ending}"))
        if found:
            break
    if not found:
        raise FileError(
            f"{folder} has no {XML_NAME}, in *.save or */*.save either: no finished pw.x run is there"
        )
    if len({p.parent for p in found}) > 1:
        names = ", ".join(str(p.parent.relative_to(folder)) for p in found[:3])
        raise FileError(f"{folder} has {len(found)} runs ({names}): name the .save folder of one")
    xml = found[0]
    resolved = folder.resolve()
    name = resolved.name if resolved.suffix != ".save" else resolved.stem
    return RunFolder(name, xml, xml.parent, folder)


def energy_axis(energies: tuple[float, float, float]) -> np.ndarray:
    """Energies (E,) in eV from (lowest, highest, spacing); the highest is included.

    InputError unless they ascend and the spacing divides the range.
    """
    low, high, step = (float(e) for e in energies)
    number = (high - low) / step if step > 0 else 0.0
    if not (np.isfinite(number) and number >= 2 and abs(number - round(number)) < 1e-6):
        raise InputError(
            f"energies from {low:g} to {high:g} eV every {step:g} eV: "
            "the spacing must be positive and divide the range"
        )
    return low + step * np.arange(round(number) + 1)


def from_run(
    directory: str | os.PathLike[str],
    out: str | os.PathLike[str],
    *,
    ldos: Literal["auto", "wavefunctions", "cubes"] = "auto",
    sigma: float | None = None,
    energies: tuple[float, float, float] = (-6.0, 12.0, 0.1),
    cubes: cube_series.CubeSeries | None = None,
    stride: int = 1,
    name: str | None = None,
    keep_bits: int | None = 13,
    overwrite: bool = True,
    provenance: dict[str, Any] | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> Snapshot:
    """Make the snapshot file ``out`` from the folder of a finished pw.x run.

    Parameters
    ----------
    directory : the run's folder, its outdir, or its prefix.save
    out : file to write
    ldos : "wavefunctions" computes the LDOS from those in prefix.save (norm-conserving only); "cubes"
        reads the series that pp.x (plot_num=3) wrote into ``directory``; "auto" takes cubes if there are any
    sigma : width of the kernel in eV. Wavefunctions: 0.2 by default. Cubes: read from their
        headers if not given.
    energies : lowest, highest, spacing in eV; for wavefunctions (cubes carry their own)
    cubes : those of this run that have been read already, with this stride and sigma; closed in any case
    stride : keep every stride-th point of the FFT grid in each direction for the LDOS; the density stays
    name : of the snapshot, by default that of the folder
    keep_bits : see ``save_snapshot``
    provenance : further entries of the snapshot's provenance

    Raises
    ------
    FileError
        something is missing, truncated, or does not belong to this run: the message says what.
    InputError
        the run is of a kind that a snapshot cannot hold (spin, PAW, ...), or options that cannot be right.
    """
    with ExitStack() as open_files:
        if cubes is not None:
            open_files.callback(cubes.close)
        place = find_run(directory)
        run = read_xml(place.xml)
        check_supported(run)
        density = read_charge_density(place.save, run.grid)
        pseudopotentials = _pseudopotentials(run, place)
        if ldos == "auto":
            ldos = "cubes" if cube_series.find_series(place.folder) else "wavefunctions"
        if ldos == "wavefunctions":
            source = _from_wavefunctions(
                run, place, pseudopotentials, density, energies, sigma, stride, progress
            )
        elif ldos == "cubes":
            if cubes is None:
                cubes, sigma = _read_cubes(run, place, sigma, stride, progress)
                open_files.callback(cubes.close)
            assert sigma is not None
            if run.gamma_only and any(p.kind == "US" for p in pseudopotentials.values()):
                raise InputError(
                    f"{place.folder}: of K_POINTS gamma with ultrasoft pseudopotentials pp.x makes a wrong "
                    "LDOS; run pw.x and pp.x again with K_POINTS crystal, one point 0 0 0"
                )
            source = _from_cubes(run, place, cubes, sigma, stride)
        else:
            raise InputError(f"ldos={ldos!r}: known are auto, wavefunctions, cubes")
        _check_start(run, place.folder, source)
        snapshot = _snapshot(name or place.name, run, source, density, pseudopotentials, place)
        snapshot.provenance.update(provenance or {})
        return save_snapshot(out, snapshot, source.blocks, keep_bits=keep_bits, overwrite=overwrite)


def _check_start(run: PwRun, folder: Path, source: _Source) -> None:
    """InputError if the energies of the LDOS start above the lowest states."""
    check_start(run, folder, float(source.energies[0]), source.sigma, source.kernel)


def check_start(run: PwRun, folder: Path, start: float, sigma: float, kernel: str = "gaussian") -> None:
    """InputError if more than a few electrons in 100 000 lie below the energies of the LDOS."""
    if start > latest_start(run, sigma, kernel):
        lowest = float(run.eigenvalues.min()) - 2 * COMPLETE_WIDTHS[kernel] * sigma
        raise InputError(
            f"{folder}: the energies of the LDOS start at {start:g} eV, above the lowest "
            f"states: start at {np.floor(lowest):g} eV"
        )


def latest_start(run: PwRun, sigma: float, kernel: str = "gaussian") -> float:
    """The energy (eV) below which 5 electrons in 100 000 lie, broadened by the kernel."""

    def below(start: float) -> float:
        x = (start - run.eigenvalues) / sigma
        return float((run.weights[:, None] * (0.5 * erfc(-x) if kernel == "gaussian" else expit(x))).sum())

    low, high = float(run.eigenvalues.min()) - 20 * sigma, float(run.eigenvalues.max())
    while high - low > 1e-4 * sigma:
        middle = (low + high) / 2
        low, high = (middle, high) if below(middle) <= 5e-5 * run.n_electrons else (low, middle)
    return low


def check_supported(run: PwRun) -> None:
    """InputError, naming every reason, unless a snapshot can hold this run."""
    reasons = list(run.unsupported)
    if run.calculation != "scf":
        reasons.append(f"calculation='{run.calculation}' (energies, density and bands must be of one scf)")
    if not run.converged:
        reasons.append("it did not converge")
    if run.fermi_level is None:
        reasons.append("no empty band, so no Fermi level (increase nbnd)")
    if reasons:
        raise InputError(f"{run.path} cannot become a snapshot: {'; '.join(reasons)}")


@dataclass(frozen=True, eq=False)
class _Source:
    """The LDOS and how it was made."""

    blocks: Iterator[np.ndarray]
    energies: np.ndarray
    shape: tuple[int, int, int]
    kernel: str
    sigma: float
    origin: str
    stride: int


def _from_wavefunctions(
    run: PwRun,
    place: RunFolder,
    pseudopotentials: dict[str, Pseudopotential],
    density: np.ndarray,
    energies: tuple[float, float, float],
    sigma: float | None,
    stride: int,
    progress: Callable[[int, int], None] | None,
) -> _Source:
    others = [e for e, p in pseudopotentials.items() if p.kind != "NC"]
    if others:
        raise InputError(
            f"{place.folder}: the pseudopotential of {', '.join(others)} is not norm-conserving, so the "
            "wavefunctions alone are not the LDOS: make cubes with pp.x (plot_num=3)"
        )
    sigma = 0.2 if sigma is None else sigma
    axis = energy_axis(energies)
    if sigma < 0.999 * (axis[1] - axis[0]):
        raise InputError(
            f"sigma={sigma:g} eV is below the energy spacing {axis[1] - axis[0]:g} eV: use at least that"
        )
    blocks = wavefunctions.ldos_blocks(
        run, place.save, axis, sigma, stride=stride, density=density, progress=progress
    )
    shape = wavefunctions.strided_grid(run, stride).shape
    wavefunctions.wavefunction_files(run, place.save)  # a missing one is told before anything is computed
    return _Source(blocks, axis, shape, "gaussian", sigma, "wavefunctions", stride)


def _read_cubes(
    run: PwRun,
    place: RunFolder,
    sigma: float | None,
    stride: int,
    progress: Callable[[int, int], None] | None,
) -> tuple[cube_series.CubeSeries, float]:
    """The cubes in the folder of a run, and their sigma (eV)."""
    series = cube_series.find_series(place.folder)
    if not series:
        raise FileError(
            f"{place.folder} has no LDOS cubes of pp.x (plot_num=3) and none were made from wavefunctions"
        )
    sigma = cube_series.series_broadening(series) if sigma is None else sigma
    if sigma is None:
        raise InputError(f"{place.folder}: the cubes do not say their broadening: give sigma (eV)")
    highest = _highest_energy(place.folder)
    return cube_series.open_series(series, run.grid, stride, highest=highest, progress=progress), sigma


def _from_cubes(
    run: PwRun, place: RunFolder, found: cube_series.CubeSeries, sigma: float, stride: int
) -> _Source:
    grid = wavefunctions.strided_grid(run, stride)
    kernel = _recognise_kernel(run, place.folder, found.energies, found.sums * grid.point_volume, sigma)
    return _Source(found.blocks(), found.energies, grid.shape, kernel, sigma, "pp.x cubes", stride)


def _recognise_kernel(run: PwRun, folder: Path, energies: np.ndarray, dos: np.ndarray, sigma: float) -> str:
    """The kernel whose DOS from the eigenvalues equals that of the cubes.

    pp.x takes it from the smearing in the XML (with fermi-dirac it is not the Gaussian that was asked for)
    unless use_gauss_ldos (QE >= 7.2) is set, or the XML was changed for pp.x and restored: so it is measured.
    """
    deviations = {}
    for kernel in ("gaussian", "fermi-dirac"):
        reference = run.density_of_states(energies, kernel, sigma)
        deviations[kernel] = float(np.abs(dos - reference).max() / reference.max())
    kernel = min(deviations, key=lambda k: deviations[k])
    if deviations[kernel] > DOS_TOLERANCE:
        hint = (
            f"with {run.smearing} smearing in the XML pp.x drops negative weights and the LDOS is useless"
            if run.smearing in ("methfessel-paxton", "cold")
            else "is sigma right, and do the cubes belong to this run?"
        )
        raise FileError(
            f"{folder}: the DOS of the cubes differs from that of the eigenvalues by "
            f"{100 * deviations[kernel]:.1f} % for a {kernel} kernel of {sigma:g} eV: {hint}"
        )
    return kernel


def _highest_energy(folder: Path) -> float | None:
    """emax (eV) of the input file of pp.x with plot_num=3 in a folder; None unless there is just one."""
    values = set()
    for path in sorted(folder.glob("*.in")):
        text = path.read_text(errors="replace")
        found = re.search(r"\bemax\s*=\s*([-+.\deEdD]+)", text, re.IGNORECASE)
        if found and re.search(r"plot_num\s*=\s*3\b", text):
            values.add(float(found.group(1).lower().replace("d", "e")))
    return values.pop() if len(values) == 1 else None


def _pseudopotentials(run: PwRun, place: RunFolder) -> dict[str, Pseudopotential]:
    """The run's pseudopotentials by element: in prefix.save, beside it, or above it."""
    result = {}
    for element, name in run.species_files.items():
        places = (
            place.save,
            place.folder,
            place.folder.parent,
            run.pseudo_dir,
            place.folder / run.pseudo_dir,
        )
        found = [p / name for p in places if (p / name).is_file()]
        if not found:
            raise FileError(
                f"{place.folder}: no pseudopotential {name} for {element}: copy it into {place.save}"
            )
        result[element] = read_upf(found[0])
    return result


def _snapshot(
    name: str,
    run: PwRun,
    source: _Source,
    density: np.ndarray,
    pseudopotentials: dict[str, Pseudopotential],
    place: RunFolder,
) -> Snapshot:
    assert run.fermi_level is not None  # check_supported
    energies, provenance = run.energies, {}
    if run.temperature is None:
        # Other smearings are no temperature: they stand for the limit T = 0. What hangs on their occupations
        # is not that limit's, so it is left out; LDOS, DOS, density and its energies are adopted.
        kind = run.scf_smearing or run.occupations
        energies = {term: run.energies[term] for term in ("hartree", "xc", "vxc_rho", "ewald")}
        provenance["occupations"] = f"{kind}: no electronic temperature; no band and total free energy"
    return Snapshot(
        name=name,
        atoms=run.atoms,
        energy_grid=source.energies,
        kernel=source.kernel,
        sigma=source.sigma,
        complete_to=run.highest_complete_energy - COMPLETE_WIDTHS[source.kernel] * source.sigma,
        # degauss has some 10 digits: without rounding 298 K would come back as 298.0000013 K
        temperature=round(run.temperature or 0.0, 4),
        n_electrons=run.n_electrons,
        fermi_level=run.fermi_level,
        energies=energies,
        density=density,
        ldos_shape=source.shape,
        pseudopotentials=pseudopotentials,
        xc=functional_name(run.functional),
        ecutrho=run.ecutrho,
        forces=run.forces,
        stress=run.stress,
        provenance={
            "made_by": "malax.generate.from_run",
            "code": f"Quantum ESPRESSO {run.version}",
            "ldos_from": source.origin,
            "ldos_stride": source.stride,
            "kpoints": list(run.kpoint_mesh or ()),
            "n_kpoints": len(run.weights),
            "n_bands": int(run.eigenvalues.shape[1]),
            "n_symmetries": len(run.symmetries[0]),
            "ecutwfc": run.ecutwfc,
            "source": str(place.folder),
            "source_sha256": {XML_NAME: files.sha256(place.xml)},
            **provenance,
        },
    )
