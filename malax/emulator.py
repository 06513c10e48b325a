"""The emulator: a model, and what it says about a set of atoms."""

from __future__ import annotations

import hashlib
import os
import platform
import time
import warnings
from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from ase import Atoms

from malax import kernels
from malax.checks import (
    ModelDomainWarning,
    check_atoms,
    choose_grid,
    choose_temperatures,
    concerns_about,
)
from malax.comm import Comm, as_comm, mpi_version
from malax.errors import FileError, InputError
from malax.grid import Grid
from malax.io.structures import as_atoms
from malax.io.upf import Pseudopotential
from malax.model_file import (
    FORMAT_VERSION,
    ModelInfo,
    TrainingSnapshot,
    read_model,
    serialize,
    write_model,
)
from malax.network import LDOSNetwork
from malax.occupations import energy_axis
from malax.predict import Physics, run, total_energies
from malax.result import Result
from malax.streaming import Chain, Clock, Progress
from malax.version import VERSION

__all__ = ["FORMAT_VERSION", "Emulator", "ModelDomainWarning", "ModelInfo", "TrainingSnapshot"]


class Emulator:
    """A trained model with everything it needs to predict.

    Parameters
    ----------
    network : from features (P, F) to LDOS (P, E) in 1/(eV A^3)
    info : what the model is for and how it was made
    energy_grid : (E,) eV, equidistant and rising
    pseudopotentials : element -> pseudopotential (valence and core charges). May be empty: then
        predictions hold LDOS, DOS and density, but energies that need it are None.

    Raises
    ------
    InputError
        the parts do not fit each other.
    """

    def __init__(
        self,
        network: LDOSNetwork,
        info: ModelInfo,
        energy_grid: np.ndarray,
        pseudopotentials: Mapping[str, Pseudopotential],
    ) -> None:
        self.network = network.eval()
        self.info = info
        self.energy_grid = np.array(energy_grid, dtype=np.float64)
        self.pseudopotentials = dict(pseudopotentials)
        self._check()

    def _check(self) -> None:
        grid, info = self.energy_grid, self.info
        energy_axis(grid)
        wanted = (info.descriptor.n_features, len(grid))
        found = (self.network.n_features, self.network.n_energies)
        if wanted != found:
            raise InputError(
                f"the network maps {found[0]} features to {found[1]} energies, the model's descriptor "
                f"and energy grid need {wanted[0]} to {wanted[1]}"
            )
        for element in info.elements:
            if element not in info.valence:
                raise InputError(f"the model says it is for {element} but gives no valence charge of it")

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Emulator:
        """Read a model file (safetensors; no code is run).

        Raises
        ------
        FileError
            the file is missing, truncated, not a model, or inconsistent.
        """
        contents = read_model(path)
        info = contents.info
        network = LDOSNetwork.from_config(info.network, info.descriptor.n_features, len(contents.energy_grid))
        try:
            network.load_state_dict(contents.network_state)
            emulator = cls(network, info, contents.energy_grid, contents.pseudopotentials)
        except (RuntimeError, InputError) as error:
            raise FileError(f"{path} is inconsistent: {' '.join(str(error).split())}") from error
        emulator.__dict__["hash"] = contents.sha256
        return emulator

    def save(self, path: str | os.PathLike[str], overwrite: bool = True) -> Path:
        """Write the model as one file; under ``path`` stands the whole file or what was there before."""
        write_model(path, self._serialize(), overwrite=overwrite)
        return Path(path)

    def _serialize(self) -> bytes:
        if not isinstance(self.network, LDOSNetwork):
            raise InputError("a network of another program cannot be saved as a malax model: keep its file")
        return serialize(self.info, self.energy_grid, self.network.state_dict(), self.pseudopotentials)

    @cached_property
    def hash(self) -> str:
        """SHA-256 of the model file; equal for equal models, saved or not."""
        return hashlib.sha256(self._serialize()).hexdigest()

    def predict(
        self,
        atoms: Atoms,
        temperature: float | None = None,
        grid: Grid | Sequence[int] | None = None,
        comm: Any = None,
        ldos: bool = False,
        *,
        descriptors: str = "native",
        unbroaden: bool = True,
        progress: Progress | None = None,
    ) -> Result:
        """The free energy, density and density of states of a structure.

        Parameters
        ----------
        atoms : periodic structure, of ASE or pymatgen
        temperature : electronic temperature in K; None is the lowest training temperature
        grid : points along each lattice vector, or a Grid of this cell; None is the training spacing
            rounded up to an FFT-friendly size
        comm : None, or an mpi4py communicator all of whose ranks call this with the same arguments
        ldos : keep the LDOS of the whole grid (points x energies float32)
        descriptors : "native" or "lammps"
        unbroaden : correct for the kernel of the LDOS and the interpolation between its energies
        progress : called with the tiles done so far and their number

        Raises
        ------
        InputError
            a structure, grid or temperature that the model cannot be asked about; no Fermi level.
        MissingPeerError
            LAMMPS was asked for and is not there.
        """
        temperatures = None if temperature is None else [temperature]
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ModelDomainWarning)  # given below, once, at the caller's line
            results = self.predict_many(
                atoms,
                temperatures,
                grid,
                comm,
                ldos,
                descriptors=descriptors,
                unbroaden=unbroaden,
                progress=progress,
            )
        _warn(results[0], stacklevel=3)
        return results[0]

    def predict_many(
        self,
        atoms: Atoms,
        temperatures: Sequence[float] | None = None,
        grid: Grid | Sequence[int] | None = None,
        comm: Any = None,
        ldos: bool = False,
        *,
        descriptors: str = "native",
        unbroaden: bool = True,
        progress: Progress | None = None,
    ) -> list[Result]:
        """As `predict`, at several temperatures (K) in one pass over the grid; one result each."""
        comm = as_comm(comm)
        atoms = as_atoms(atoms)
        check_atoms(atoms, self.info.elements)
        if descriptors not in ("native", "lammps"):
            raise InputError(f"unknown descriptor backend {descriptors!r}: 'native' or 'lammps' is needed")
        grid = choose_grid(self.info, atoms, grid)
        kelvins, notes = choose_temperatures(self.info, temperatures)
        if self.info.sigma is None and unbroaden:
            unbroaden = False
            notes.append("the kernel of the training LDOS is not known: energies are not unbroadened")
        n_electrons = float(sum(self.info.valence[symbol] for symbol in atoms.get_chemical_symbols()))
        physics = Physics(self.energy_grid, n_electrons, self.info.broadening_variance, unbroaden)
        clock = Clock()
        with clock("total"):
            chain = Chain(self, atoms, comm, descriptors, clock)
            reduced, finals = run(chain, physics, grid, kelvins, ldos, progress)
            with clock("energies"):
                energies = [total_energies(self, atoms, grid, final, comm) for final in finals]
        options = {"unbroaden": unbroaden, "descriptors": descriptors, "ldos": ldos}
        concerns = concerns_about(self.info, atoms, grid, kelvins)
        if energies[0].total_free is None:
            concerns.append("the model has no pseudopotentials: no XC and no total free energy")
        timings = clock.largest(comm)
        results = [
            Result(
                atoms=atoms.copy(),
                grid=grid,
                energies=terms,
                fermi_level=final.observables.fermi_level,
                n_electrons=final.observables.n_electrons,
                temperature=kelvin,
                energy_grid=self.energy_grid.copy(),
                dos=reduced.dos.copy(),
                density=final.density,
                ldos=reduced.ldos,
                timings=dict(timings),
                provenance=self._provenance(options, final.interpolation, comm),
                notes=list(notes),
                warnings=list(concerns),
                part=reduced.part,
                comm=comm,
            )
            for kelvin, final, terms in zip(kelvins, finals, energies, strict=True)
        ]
        _warn(results[0], stacklevel=3)
        return results

    def _provenance(
        self, options: dict[str, Any], interpolation: dict[str, Any], comm: Comm
    ) -> dict[str, Any]:
        return {
            "malax_version": VERSION,
            "model_sha256": self.hash,
            "options": options,
            "complete_to": self.info.complete_to,
            "fermi_interpolation": interpolation,
            "kernels": kernels.build_info(),
            "torch": torch.__version__,
            "threads": torch.get_num_threads(),
            "ranks": comm.size,
            "mpi": mpi_version(),
            "machine": platform.node(),
            "created": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
        }


def _warn(result: Result, stacklevel: int) -> None:
    """Python's warnings for users of the library; the command line prints them itself."""
    if result.comm.rank == 0:
        for concern in result.warnings:
            warnings.warn(concern, ModelDomainWarning, stacklevel=stacklevel)
