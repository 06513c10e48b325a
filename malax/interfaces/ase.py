"""malax as a calculator of ASE."""

from __future__ import annotations

import os
from typing import Any

from ase import Atoms
from ase.calculators.calculator import Calculator, PropertyNotImplementedError, all_changes

from malax.emulator import Emulator
from malax.errors import InputError
from malax.result import Result


class MalaxCalculator(Calculator):
    """Energies of a malax model.

    ``energy`` and ``free_energy`` are both the total free energy F at the electronic temperature, as ASE's
    reader of QE output has it (forces of finite-temperature DFT are the derivatives of F). The full
    prediction (density, DOS, terms) of the last structure stands in ``result``.

    Parameters
    ----------
    model : an `Emulator` or the path of a model file
    **predict_options : as of `Emulator.predict`: temperature, grid, comm, descriptors, ...

    Raises
    ------
    InputError
        on calculation, for structures that the model cannot be asked about, or a model without
        pseudopotentials.
    """

    implemented_properties = ["energy", "free_energy"]

    def __init__(self, model: Emulator | str | os.PathLike[str], **predict_options: Any) -> None:
        super().__init__()
        self.emulator = model if isinstance(model, Emulator) else Emulator.load(model)
        self.predict_options = predict_options
        self.result: Result | None = None

    def calculate(
        self,
        atoms: Atoms | None = None,
        properties: list[str] | None = None,
        system_changes: list[str] = all_changes,
    ) -> None:
        """Called by ASE. Everything that it can have comes from one prediction."""
        super().calculate(atoms, properties, system_changes)
        missing = set(properties or []) - set(self.implemented_properties)
        if missing:
            raise PropertyNotImplementedError(f"malax gives no {', '.join(sorted(missing))} yet")
        result = self.emulator.predict(self.atoms, **self.predict_options)
        free = result.energies.total_free
        if free is None:
            raise InputError("the model has no pseudopotentials, so it gives no total free energy")
        self.result = result
        self.results = {"energy": free, "free_energy": free}
