"""The recipe of `malax generate`: which structures, computed how, written where."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

from pydantic import Field, model_validator

from malax.io.harvest import energy_axis
from malax.io.pw_input import Value, check_namelists
from malax.job_scripts import JobSettings
from malax.recipe_template import with_template
from malax.settings import FilePath, Settings
from malax.structures import Group, Positive


class LDOSSettings(Settings):
    """How the LDOS is sampled."""

    sigma: Positive = 0.2
    """Width of the Gaussian kernel in eV; at least the spacing of the energies."""
    energies: tuple[float, float, float] | Literal["auto"] = "auto"
    """Lowest, highest, spacing in eV. auto: from below the lowest states to above the highest occupied
    ones of all groups, from coarse runs, every sigma/2."""
    method: Literal["wavefunctions", "cubes"] = "wavefunctions"
    """From pw.x's wavefunctions (norm-conserving; seconds) or from cubes of pp.x (ultrasoft too; minutes)."""
    keep_cubes: bool = False
    """Keep the cubes of pp.x in the folder of the run; otherwise each is deleted once it is converted."""
    keep_bits: int | None = Field(default=13, ge=4, le=23)
    """Bits of the mantissa that are kept (13: 6e-5 relative); null keeps all."""

    @model_validator(mode="after")
    def _sampled(self) -> LDOSSettings:
        if self.energies == "auto":
            return self
        axis = energy_axis(self.energies)
        if self.sigma < 0.999 * (axis[1] - axis[0]):
            raise ValueError(
                f"sigma={self.sigma:g} eV is below the spacing of the energies; use at least that"
            )
        return self


class QESettings(Settings):
    """How Quantum ESPRESSO is called, and what its input holds besides what malax sets."""

    pw_command: str = "pw.x -in {input}"
    """Command line, e.g. ``mpirun -n 16 pw.x -npool 4 -in {input}``."""
    pp_command: str = "pp.x -in {input}"
    template: FilePath | None = None
    """An input of pw.x: its keys, pseudopotentials, k-points, bands and temperature are taken where the
    recipe does not say them."""
    control: dict[str, Value] = {}
    """Further keys of the namelist, with QE's names and units."""
    system: dict[str, Value]
    """At least ecutwfc (Ry)."""
    electrons: dict[str, Value] = {}
    keep_wavefunctions: bool = False
    """Keep wfc*.dat after the snapshot is written."""

    @property
    def namelists(self) -> dict[str, dict[str, Value]]:
        return {"control": self.control, "system": self.system, "electrons": self.electrons}

    @model_validator(mode="after")
    def _allowed(self) -> QESettings:
        check_namelists(self.namelists)
        if "ecutwfc" not in self.system:
            raise ValueError("qe.system needs ecutwfc (Ry)")
        for command in (self.pw_command, self.pp_command):
            if "{input}" not in command:
                raise ValueError(
                    f"the command {command!r} needs {{input}} where the name of the input file goes"
                )
        return self


class GenerateConfig(Settings):
    """A recipe: which structures, computed how, written where."""

    out: FilePath
    """Folder of the snapshots: <out>/<group><number>.h5."""
    runs: FilePath | None = None
    """Folder of the runs, by default <out>/runs."""
    seed: int = Field(ge=0)
    pseudopotentials: dict[str, FilePath]
    """Element -> UPF file."""
    qe: QESettings
    ldos: LDOSSettings = LDOSSettings()
    probe: bool = True
    """Run pw.x on few k-points first, for the most and the least dense structure of each group: picks what is
    left out of ldos.energies and n_bands, refuses what is too narrow. false: both must be given."""
    groups: dict[str, Group] = Field(min_length=1)
    job: JobSettings = JobSettings()
    """For ``malax generate CONFIG.yaml --jobs slurm``."""

    @classmethod
    def prepared(cls, tree: dict[str, Any], folder: Path) -> dict[str, Any]:
        """The recipe with what its template says where it is silent (called by `malax.config`)."""
        return with_template(tree, folder)

    @property
    def runs_folder(self) -> Path:
        return self.runs or self.out / "runs"
