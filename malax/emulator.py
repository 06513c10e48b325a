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

from malax import library, machine
from malax.calibration import Calibration
from malax.checks import (
    ModelDomainWarning,
    check_atoms,
    choose_grid,
    choose_temperatures,
    concerns_about,
)
from malax.combination import combined_info
from malax.comm import Comm, as_comm, mpi_version
from malax.domain import Domain, concern
from malax.ensemble import EnsembleNetwork, Spread, energies_by_member, mean_over_grid, members_of
from malax.errors import FileError, InputError
from malax.grid import Grid
from malax.io.structures import as_atoms
from malax.io.upf import Pseudopotential
from malax.long_run import LongRun
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
from malax.precision import as_precision
from malax.predict import Final, Physics, run, total_energies
from malax.result import Result
from malax.streaming import Chain, Clock, Progress, Reduced
from malax.version import VERSION

__all__ = ["FORMAT_VERSION", "Emulator", "ModelDomainWarning", "ModelInfo", "TrainingSnapshot"]


class Emulator:
    """A trained model with everything it needs to predict.

    Parameters
    ----------
    network : from features (P, F) to LDOS (P, E) in 1/(eV A^3); an ensemble gives predictions with a spread
    info : what the model is for and how it was made
    energy_grid : (E,) eV, equidistant and rising
    pseudopotentials : element -> pseudopotential (valence and core charges). May be empty: then
        predictions hold LDOS, DOS and density, but energies that need it are None.
    domain : where the training points lie; None: predictions do not say how far away they are
    calibration : of the spread of an ensemble's members; None: error bars are their spread as it is

    Raises
    ------
    InputError
        the parts do not fit each other.
    """

    def __init__(
        self,
        network: LDOSNetwork | EnsembleNetwork,
        info: ModelInfo,
        energy_grid: np.ndarray,
        pseudopotentials: Mapping[str, Pseudopotential],
        domain: Domain | None = None,
        calibration: Calibration | None = None,
    ) -> None:
        self.network = network.eval()
        self.calibration = calibration
        self.domain = domain
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
        try:
            members = []
            for config, state in contents.members:
                one = LDOSNetwork.from_config(config, info.descriptor.n_features, len(contents.energy_grid))
                one.load_state_dict(state)
                members.append(one)
            network = members[0] if len(members) == 1 else EnsembleNetwork(members)
            emulator = cls(
                network,
                info,
                contents.energy_grid,
                contents.pseudopotentials,
                contents.domain,
                contents.calibration,
            )
        except (RuntimeError, InputError) as error:
            raise FileError(f"{path} is inconsistent: {' '.join(str(error).split())}") from error
        emulator.__dict__["hash"] = contents.sha256
        return emulator

    def save(self, path: str | os.PathLike[str], overwrite: bool = True) -> Path:
        """Write the model as one file; under ``path`` stands the whole file or what was there before."""
        write_model(path, self._serialize(), overwrite=overwrite)
        return Path(path)

    def _serialize(self) -> bytes:
        networks = members_of(self.network)
        if not all(isinstance(one, LDOSNetwork) for one in networks):
            raise InputError("a network of another program cannot be saved as a malax model: keep its file")
        members = [(one.config, one.state_dict()) for one in networks]
        return serialize(
            self.info, self.energy_grid, members, self.pseudopotentials, self.domain, self.calibration
        )

    @classmethod
    def combine(cls, emulators: Sequence[Emulator]) -> Emulator:
        """One emulator whose members are the networks of several, in their order.

        Everything else is the first one's, but no test errors and no calibration; training snapshots,
        temperatures and volumes are those of all. Members may differ in their networks and in what they were
        trained on.

        Raises
        ------
        InputError
            descriptor, energy grid, kernel, elements or pseudopotentials differ.
        """
        first = emulators[0]
        networks = [network for one in emulators for network in members_of(one.network)]
        network = networks[0] if len(networks) == 1 else EnsembleNetwork(networks)
        rest = (first.energy_grid, first.pseudopotentials, first.domain)
        return cls(network, combined_info(emulators), *rest)

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
        precision: str = "float32",
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
        precision : of the products between the network's hidden layers; "bfloat16" is faster and costs
            accuracy (docs/network.md)
        progress : called with the tiles done so far and their number

        Raises
        ------
        InputError
            a structure, grid or temperature that the model cannot be asked about; no Fermi level.
        MissingPeerError
            LAMMPS was asked for and is not there; bfloat16 on a processor without it.
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
                precision=precision,
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
        precision: str = "float32",
        progress: Progress | None = None,
        long_run: LongRun | None = None,
    ) -> list[Result]:
        """As `predict`, at several temperatures (K) in one pass over the grid; one result each.

        With a ``long_run`` finished tiles are kept on disk, and the run can be ended and taken up again.
        """
        comm = as_comm(comm)
        atoms = as_atoms(atoms)
        check_atoms(atoms, self.info.elements)
        chosen = as_precision(precision)
        if descriptors not in ("native", "lammps"):
            raise InputError(f"unknown descriptor backend {descriptors!r}: 'native' or 'lammps' is needed")
        grid = choose_grid(self.info, atoms, grid)
        kelvins, notes = choose_temperatures(self.info, temperatures)
        if self.info.sigma is None and unbroaden:
            unbroaden = False
            notes.append("the kernel of the training LDOS is not known: energies are not unbroadened")
        if len(members_of(self.network)) > 1:
            notes.append(_about(self.calibration))
        n_electrons = float(sum(self.info.valence[symbol] for symbol in atoms.get_chemical_symbols()))
        physics = Physics(self.energy_grid, n_electrons, self.info.broadening_variance, unbroaden)
        clock = Clock()
        if long_run is not None:
            structure = (atoms.numbers, atoms.positions, atoms.cell.array, grid.shape)
            long_run.begin(self.hash, *structure, kelvins, descriptors, unbroaden, precision, ldos, VERSION)
        with clock("total"):
            chain = Chain(self, atoms, comm, descriptors, clock, long_run, precision=chosen)
            reduced, finals = run(chain, physics, grid, kelvins, ldos, progress)
            with clock("energies"):
                energies = [total_energies(self, atoms, grid, final, comm) for final in finals]
                spreads = [self._spread(atoms, grid, final, reduced, comm) for final in finals]
        options = {"unbroaden": unbroaden, "descriptors": descriptors, "precision": precision, "ldos": ldos}
        concerns = concerns_about(self.info, atoms, grid, kelvins)
        if energies[0].total_free is None:
            concerns.append("the model has no pseudopotentials: no XC and no total free energy")
        far = None if reduced.outside is None else concern(reduced.outside)
        concerns += [far] if far else []
        timings = clock.largest(comm)
        provenance = self._provenance(options, comm)
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
                provenance={**provenance, "fermi_interpolation": final.interpolation},
                notes=[*notes, *(long_run.notes if long_run else [])],
                warnings=list(concerns),
                part=reduced.part,
                comm=comm,
                spread=spread,
                outside=reduced.outside,
            )
            for kelvin, final, terms, spread in zip(kelvins, finals, energies, spreads, strict=True)
        ]
        _warn(results[0], stacklevel=3)
        return results

    def _spread(self, atoms: Atoms, grid: Grid, final: Final, reduced: Reduced, comm: Comm) -> Spread | None:
        """What the members say, each with its own Fermi level; None for one network. Collective."""
        if not final.members:
            return None
        terms = [total_energies(self, atoms, grid, member, comm) for member in final.members]
        each = [{**one.as_dict(), "internal": one.internal} for one in terms]
        density_std = np.stack([member.density for member in final.members]).std(axis=0, ddof=1)
        plain = Spread(
            energies=energies_by_member(each),  # type: ignore[arg-type]
            fermi_levels=np.array([member.observables.fermi_level for member in final.members]),
            dos_std=reduced.member_dos.std(axis=0, ddof=1),
            density_std=density_std,
            density_std_mean=mean_over_grid(density_std, grid.n_points, comm),
        )
        return plain if self.calibration is None else plain.calibrated(self.calibration)

    def _provenance(self, options: dict[str, Any], comm: Comm) -> dict[str, Any]:
        """What all results of one pass share; collective."""
        return {
            "malax_version": VERSION,
            "model_sha256": self.hash,
            "options": options,
            "complete_to": self.info.complete_to,
            "kernels": library.build_info(),
            "torch": torch.__version__,
            "threads": torch.get_num_threads(),
            "ranks": comm.size,
            "peak_memory_bytes": max(comm.bcast(comm.gather(machine.peak_resident()))),
            "mpi": mpi_version(),
            "machine": platform.node(),
            "created": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
        }


def _about(calibration: Calibration | None) -> str:
    """What is said of the error bars of an ensemble."""
    if calibration is None:
        return "error bars are the spread of the members as it is, not calibrated: they may be too small"
    return f"error bars are calibrated on {len(calibration.snapshots)} validation snapshots"


def _warn(result: Result, stacklevel: int) -> None:
    """Python's warnings for users of the library; the command line prints them itself."""
    if result.comm.rank == 0:
        for concern in result.warnings:
            warnings.warn(concern, ModelDomainWarning, stacklevel=stacklevel)
