"""A small made-up calculation and Quantum ESPRESSO's files of it, written from its formats' descriptions.

The wavefunctions are eigenvectors of a random Hermitian matrix over a few plane waves, the Fermi level and
the density follow from them, so everything that a real run's files must satisfy holds to rounding.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import h5py
import numpy as np
from ase import Atoms

HARTREE, BOHR, BOLTZMANN = 27.211386245988, 0.529177210903, 8.617333262e-5
UPF = Path(__file__).resolve().parents[1] / "malax" / "data" / "Al.pbe-nc.UPF"


@dataclass
class Toy:
    """All in eV and Angstrom. ``coefficients[k]`` is (bands, waves) for ``miller[k]``."""

    atoms: Atoms
    shape: tuple[int, int, int]
    kpoints: np.ndarray
    """crystal coordinates"""
    weights: np.ndarray
    miller: list[np.ndarray]
    coefficients: list[np.ndarray]
    eigenvalues: np.ndarray
    temperature: float
    fermi: float
    occupations: np.ndarray
    gamma_only: bool = False

    def orbitals(self, k: int) -> np.ndarray:
        """psi_n(r) (bands, nx, ny, nz) by plain summation."""
        x = np.stack(np.meshgrid(*(np.arange(n) / n for n in self.shape), indexing="ij"), axis=-1)
        waves = np.exp(2j * np.pi * np.einsum("xyzi,gi->gxyz", x, self.miller[k] + self.kpoints[k]))
        return np.einsum("ng,gxyz->nxyz", self.coefficients[k], waves) / np.sqrt(self.atoms.get_volume())

    def ldos(self, energies: np.ndarray, kernel) -> np.ndarray:
        """(nx, ny, nz, E), with kernel(x)/sigma given as a function of eps - eps_nk."""
        result = np.zeros((*self.shape, len(energies)))
        for k, weight in enumerate(self.weights):
            squares = np.abs(self.orbitals(k)) ** 2
            factors = kernel(energies[None] - self.eigenvalues[k][:, None])
            result += weight * np.einsum("nxyz,ne->xyze", squares, factors)
        return result

    def density(self) -> np.ndarray:
        """(nx, ny, nz) in 1/A^3."""
        return sum(
            w * np.einsum("nxyz,n->xyz", np.abs(self.orbitals(k)) ** 2, self.occupations[k])
            for k, w in enumerate(self.weights)
        )


def gaussian(sigma: float):
    return lambda e: np.exp(-((e / sigma) ** 2)) / (np.sqrt(np.pi) * sigma)


def fermi_dirac(sigma: float):
    return lambda e: (
        1 / (2 + np.exp(np.clip(e / sigma, -200, 200)) + np.exp(-np.clip(e / sigma, -200, 200))) / sigma
    )


def toy(
    atoms: Atoms | None = None, shape=(9, 10, 12), n_bands=8, temperature=2000.0, gamma=False, seed=7
) -> Toy:
    """A made-up run of Al atoms (3 electrons each) in a triclinic cell."""
    if atoms is None:
        cell = [[4.0, 0.1, 0.0], [0.3, 4.2, -0.2], [0.0, 0.5, 4.4]]
        atoms = Atoms("Al2", scaled_positions=[[0.1, 0.05, 0.0], [0.6, 0.55, 0.5]], cell=cell, pbc=True)
    rng = np.random.default_rng(seed)
    kpoints = np.zeros((1, 3)) if gamma else np.array([[0, 0, 0], [0.5, 0, 0.25], [0.1, 0.5, -0.3]])
    weights = np.array([2.0]) if gamma else np.array([0.5, 1.0, 0.5])
    reciprocal = 2 * np.pi * np.linalg.inv(atoms.cell.array).T
    every = np.stack(np.meshgrid(*[np.arange(-2, 3)] * 3, indexing="ij"), axis=-1).reshape(-1, 3)
    miller, coefficients, eigenvalues = [], [], []
    for k in kpoints:
        kinetic = 3.81 * (((every + k) @ reciprocal) ** 2).sum(axis=1)
        order = np.argsort(kinetic, kind="stable")
        waves = every[order[: 33 if gamma else 40]]
        if gamma:  # whole stars: for each G also -G
            waves = np.array([w for w in waves if (waves == -w).all(axis=1).any()])
        diagonal = 3.81 * (((waves + k) @ reciprocal) ** 2).sum(axis=1)
        noise = rng.normal(0, 0.7, (len(waves), len(waves))) + 1j * rng.normal(
            0, 0.7, (len(waves), len(waves))
        )
        if gamma:
            noise = _real_potential(waves, noise)
        levels, vectors = np.linalg.eigh(np.diag(diagonal) + (noise + noise.conj().T) / 2)
        if gamma:  # psi real: c_-G = c_G*, up to the phase that eigh chose
            vectors = _real_orbitals(waves, vectors)
        miller.append(waves)
        coefficients.append(vectors[:, :n_bands].T)
        eigenvalues.append(levels[:n_bands] + 0.8)
    levels = np.array(eigenvalues)
    fermi, occupations = _fill(levels, weights, 3.0 * len(atoms), temperature)
    return Toy(
        atoms, shape, kpoints, weights, miller, coefficients, levels, temperature, fermi, occupations, gamma
    )


def _opposite(waves: np.ndarray) -> np.ndarray:
    return np.array([int(np.flatnonzero((waves == -w).all(axis=1))[0]) for w in waves])


def _real_potential(waves: np.ndarray, noise: np.ndarray) -> np.ndarray:
    """H_(-G,-G') = H_GG'^*, so that the eigenfunctions can be chosen real."""
    o = _opposite(waves)
    return (noise + noise[np.ix_(o, o)].conj()) / 2


def _real_orbitals(waves: np.ndarray, vectors: np.ndarray) -> np.ndarray:
    o = _opposite(waves)
    real = vectors + vectors[o].conj()
    imaginary = 1j * (vectors - vectors[o].conj())
    best = np.where(np.linalg.norm(real, axis=0) > np.linalg.norm(imaginary, axis=0), real, imaginary)
    return best / np.linalg.norm(best, axis=0)


def _fill(
    levels: np.ndarray, weights: np.ndarray, electrons: float, temperature: float
) -> tuple[float, np.ndarray]:
    kt, low, high = BOLTZMANN * temperature, levels.min() - 5, levels.max() + 5
    for _ in range(200):
        mu = (low + high) / 2
        f = 1 / (1 + np.exp((levels - mu) / kt))
        low, high = (mu, high) if (weights[:, None] * f).sum() < electrons else (low, mu)
    return mu, f


def write_run(folder: Path, t: Toy, *, hdf5=False, smearing="fd", prefix="malax", **xml_options) -> Path:
    """Write folder/tmp/<prefix>.save as pw.x does; return it."""
    save = folder / "tmp" / f"{prefix}.save"
    save.mkdir(parents=True, exist_ok=True)
    (save / "Al.pbe-nc.UPF").write_bytes(UPF.read_bytes())
    (save / "data-file-schema.xml").write_text(xml_text(t, smearing=smearing, **xml_options))
    for k in range(len(t.weights)):
        write_wavefunctions(save / f"wfc{k + 1}.{'hdf5' if hdf5 else 'dat'}", t, k)
    write_density(save / f"charge-density.{'hdf5' if hdf5 else 'dat'}", t.density(), t.gamma_only)
    return save


def _half(miller: np.ndarray) -> np.ndarray:
    """Which of G and -G a gamma-only file keeps."""
    m = miller
    return (
        (m[:, 0] > 0) | ((m[:, 0] == 0) & (m[:, 1] > 0)) | ((m[:, 0] == 0) & (m[:, 1] == 0) & (m[:, 2] >= 0))
    )


def records(path: Path, *arrays) -> None:
    """Fortran's sequential unformatted file."""
    with open(path, "wb") as file:
        for array in arrays:
            data = array if isinstance(array, bytes) else np.ascontiguousarray(array).tobytes()
            length = np.int32(len(data)).tobytes()
            file.write(length + data + length)


def write_wavefunctions(path: Path, t: Toy, k: int) -> None:
    keep = _half(t.miller[k]) if t.gamma_only else np.ones(len(t.miller[k]), dtype=bool)
    miller, c = t.miller[k][keep].astype(np.int32), t.coefficients[k][:, keep]
    if path.suffix == ".hdf5":
        with h5py.File(path, "w") as file:
            flag = np.bytes_(".TRUE." if t.gamma_only else ".FALSE.")
            file.attrs.update(gamma_only=flag, igwx=len(miller), ik=k + 1, ispin=1, nbnd=len(c), npol=1)
            file.attrs.update(ngw=len(miller), scale_factor=1.0, xk=t.kpoints[k])
            file["MillerIndices"] = miller
            file["evc"] = np.ascontiguousarray(c).view(np.float64)
        return
    head = np.int32(k + 1).tobytes() + t.kpoints[k].tobytes() + np.int32(1).tobytes()
    head += np.int32(t.gamma_only).tobytes() + np.float64(1.0).tobytes()
    sizes = np.array([len(miller), len(miller), 1, len(c)], dtype=np.int32)
    records(path, head, sizes, np.eye(3), miller, *c.astype(np.complex128))


def write_density(path: Path, density: np.ndarray, gamma_only: bool, n_spin: int = 1) -> None:
    shape = density.shape
    coefficients = np.fft.fftn(density * BOHR**3) / density.size
    m = np.stack(np.meshgrid(*(np.arange(n) for n in shape), indexing="ij"), axis=-1).reshape(-1, 3)
    m = np.where(m > np.array(shape) // 2, m - np.array(shape), m)
    # what QE keeps lies in a sphere: no wave at the edge of the grid
    keep = (2 * np.abs(m) < np.array(shape)).all(axis=1) & (_half(m) if gamma_only else True)
    miller, c = m[keep].astype(np.int32), coefficients.reshape(-1)[keep]
    if path.suffix == ".hdf5":
        with h5py.File(path, "w") as file:
            flag = np.bytes_(".TRUE." if gamma_only else ".FALSE.")
            file.attrs.update(gamma_only=flag, ngm_g=len(miller), nspin=n_spin)
            file["MillerIndices"] = miller
            file["rhotot_g"] = np.ascontiguousarray(c).view(np.float64)
        return
    records(path, np.array([gamma_only, len(miller), n_spin], dtype=np.int32), np.eye(3), miller, c)


def _numbers(array) -> str:
    return " ".join(f"{x:.15e}" for x in np.ravel(array))


def xml_text(
    t: Toy,
    *,
    smearing="fd",
    converged=True,
    extra_dft="",
    lsda=False,
    paw=False,
    charge=0.0,
    calculation="scf",
) -> str:
    """data-file-schema.xml in the words of QE 6.7, what malax needs of it and some more."""
    cell, alat = t.atoms.cell.array / BOHR, float(np.linalg.norm(t.atoms.cell.array[0])) / BOHR
    kt = BOLTZMANN * t.temperature / HARTREE
    atoms = "".join(
        f'<atom name="{s}" index="{i + 1}">{_numbers(p / BOHR)}</atom>'
        for i, (s, p) in enumerate(zip(t.atoms.symbols, t.atoms.positions, strict=True))
    )
    structure = (
        f'<atomic_structure nat="{len(t.atoms)}" alat="{alat!r}">'
        f"<atomic_positions>{atoms}</atomic_positions><cell>"
        + "".join(f"<a{i + 1}>{_numbers(cell[i])}</a{i + 1}>" for i in range(3))
        + "</cell></atomic_structure>"
    )
    reciprocal = np.linalg.inv(t.atoms.cell.array / BOHR).T * alat
    levels = "".join(
        f'<ks_energies><k_point weight="{float(w)!r}">{_numbers(k @ reciprocal)}</k_point><npw>{len(m)}</npw>'
        f'<eigenvalues size="{len(e)}">{_numbers(e / HARTREE)}</eigenvalues>'
        f'<occupations size="{len(f)}">{_numbers(f)}</occupations></ks_energies>'
        for w, k, m, e, f in zip(t.weights, t.kpoints, t.miller, t.eigenvalues, t.occupations, strict=True)
    )
    nr = " ".join(f'nr{i + 1}="{n}"' for i, n in enumerate(t.shape))
    smear = f'<smearing degauss="{float(kt)!r}">{smearing}</smearing>'
    kind = f"<occupations_kind>smearing</occupations_kind>{smear}"
    if smearing == "fixed":
        kind, smear = "<occupations_kind>fixed</occupations_kind>", ""
    flag = {True: "true", False: "false"}
    forces = 0.01 * np.arange(3 * len(t.atoms)).reshape(-1, 3)
    stress = 1e-4 * np.array([[1, 0.6, 0.5], [0.6, 2, 0.4], [0.5, 0.4, 3]])
    return f"""<?xml version="1.0" encoding="UTF-8"?>
<qes:espresso xmlns:qes="http://www.quantum-espresso.org/ns/qes/qes-1.0" Units="Hartree atomic units">
<general_info><creator NAME="PWSCF" VERSION="6.7MaX">XML file generated by PWSCF</creator></general_info>
<input><control_variables><calculation>{calculation}</calculation></control_variables>
<bands>{smear}<tot_charge>{charge}</tot_charge></bands></input>
<output><convergence_info><scf_conv><convergence_achieved>{flag[converged]}</convergence_achieved></scf_conv>
</convergence_info><algorithmic_info><uspp>false</uspp><paw>{flag[paw]}</paw></algorithmic_info>
<atomic_species ntyp="1" pseudo_dir="./"><species name="Al"><mass>26.98</mass>
<pseudo_file>Al.pbe-nc.UPF</pseudo_file></species></atomic_species>{structure}
<basis_set><gamma_only>{flag[t.gamma_only]}</gamma_only><ecutwfc>1.0e1</ecutwfc><ecutrho>4.0e1</ecutrho>
<fft_grid {nr}></fft_grid></basis_set><dft><functional>PBE</functional>{extra_dft}</dft>
<total_energy><etot>-2.5e0</etot><eband>1.0e0</eband><ehart>3.0e-1</ehart><vtxc>-4.0e0</vtxc><etxc>-3.5e0</etxc>
<ewald>-5.25e0</ewald><demet>-6.25e-3</demet></total_energy>
<band_structure><lsda>{flag[lsda]}</lsda><noncolin>false</noncolin><spinorbit>false</spinorbit>
<nbnd>{t.eigenvalues.shape[1]}</nbnd><nelec>{3.0 * len(t.atoms)!r}</nelec>
<fermi_energy>{float(t.fermi) / HARTREE!r}</fermi_energy><starting_k_points>
<monkhorst_pack nk1="2" nk2="2" nk3="1" k1="0" k2="0" k3="0">Monkhorst-Pack</monkhorst_pack>
</starting_k_points>
<nks>{len(t.weights)}</nks>{kind}{levels}</band_structure>
<forces rank="2" dims="3 {len(t.atoms)}" order="F">{_numbers(forces)}</forces>
<stress rank="2" dims="3 3" order="F">{_numbers(stress)}</stress></output>
<status>0</status></qes:espresso>
"""


def write_cubes(
    folder: Path, t: Toy, energies: np.ndarray, sigma: float, kernel, filplot="tmp.pp"
) -> list[Path]:
    """The LDOS series of pp.x: 5 digits, 1/(Ry bohr^3), numbers padded to three digits in the name."""
    values = t.ldos(energies, kernel(sigma)) * (HARTREE / 2) * BOHR**3
    paths = []
    for i, energy in enumerate(energies):
        paths.append(folder / f"{filplot}{i + 1:03d}_ldos.cube")
        rows = [
            " Cubefile created from PWScf calculation",
            f"  Energy ={energy:9.4f} eV, broadening ={sigma:9.4f} eV",
            f"{len(t.atoms):5d}    0.000000    0.000000    0.000000",
        ]
        for n, a in zip(t.shape, t.atoms.cell.array / BOHR, strict=True):
            rows.append(f"{n:5d}" + "".join(f"{x / n:12.6f}" for x in a))
        for z, p in zip(t.atoms.numbers, t.atoms.positions / BOHR, strict=True):
            rows.append(f"{z:5d}{z:12.6f}" + "".join(f"{x:12.6f}" for x in p))
        for line in values[..., i].reshape(-1, t.shape[2]):
            for start in range(0, len(line), 6):
                rows.append("".join(f"{fortran(x):>13s}" for x in line[start : start + 6]))
        paths[-1].write_text("\n".join(rows) + "\n")
    return paths


def fortran(x: float) -> str:
    """E13.5 as Fortran writes it: a leading 0., and no E before a three-digit exponent."""
    mantissa, exponent = f"{x:.4E}".split("E")
    if float(mantissa) == 0:
        return "0.00000E+00"
    digits = f"{float(mantissa) / 10:.5f}"
    power = int(exponent) + 1
    return f"{digits}{'E' if abs(power) < 100 else ''}{power:+03d}"
