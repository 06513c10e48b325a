"""Are the error bars of an ensemble right? Its predictions beside DFT, and the calibration from them."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence

import numpy as np

from malax.calibration import EDGES, Calibration, Scores, fit, histogram
from malax.checks import ModelDomainWarning
from malax.comm import Comm
from malax.emulator import Emulator
from malax.errors import InputError
from malax.io.snapshot import Snapshot
from malax.result import Result


def scores_of(result: Result, snapshot: Snapshot, complete_to: float) -> Scores | None:
    """The errors of a prediction of ``snapshot`` on its density grid; None of a single network; collective.

    ``complete_to`` (eV): up to where the DOS is compared. Density points in vacuum, below 1e-6 of the
    maximum, are left out, as in the mean absolute percentage error.
    """
    spread = result.spread
    if spread is None:
        return None
    dft = dict(snapshot.energies)
    if {"total_free", "entropy_term"} <= dft.keys():
        dft["internal"] = dft["total_free"] - dft["entropy_term"]
    terms = {t: v for t, v in result.terms().items() if v is not None and t in dft and t in spread.energies}
    density = dos = np.zeros(len(EDGES) - 1)
    if snapshot.density is not None:
        density = result.comm.allreduce(_density_counts(result, snapshot.density))
    axis, reference = result.energy_grid, snapshot.dos
    if reference is not None and np.array_equal(axis, snapshot.energy_grid):
        use = axis <= complete_to
        dos = histogram((result.dos - reference)[use], spread.dos_std[use])
    std = spread.std
    return Scores(
        name=snapshot.name,
        n_atoms=len(snapshot.atoms),
        errors={t: v - dft[t] for t, v in terms.items()},
        stds={t: std[t] for t in terms},
        members={t: spread.energies[t] for t in terms},
        fermi_level=(result.fermi_level - snapshot.fermi_level, spread.fermi_level_std),
        density=density,
        dos=dos,
    )


def _density_counts(result: Result, reference: np.ndarray) -> np.ndarray:
    """This rank's part of the histogram of the density."""
    assert result.spread is not None  # checked by the caller
    mine = reference.reshape(-1)[slice(*result.part)]
    matter = mine > 1e-6 * reference.max()
    error = result.density.reshape(-1) - mine
    return histogram(error[matter], result.spread.density_std.reshape(-1)[matter])


def calibrate(
    emulator: Emulator,
    snapshots: Sequence[Snapshot],
    comm: Comm,
    say: Callable[[str], None],
    progress: Callable[[str, int, int], None] | None = None,
) -> Calibration | None:
    """The calibration of an ensemble that has none, on snapshots that it was not fitted to; collective.

    A snapshot that the ensemble cannot predict (it may have no Fermi level yet) is left out, which is said;
    None if all are.

    Raises
    ------
    InputError
        one network, a calibrated ensemble, or no snapshots.
    """
    if emulator.calibration is not None or not snapshots:
        raise InputError("a calibration needs snapshots, and an ensemble that is not calibrated yet")
    scores = []
    for i, snapshot in enumerate(snapshots):
        if progress is not None:
            progress("calibrating the error bars", i, len(snapshots))
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ModelDomainWarning)
            try:
                result = emulator.predict(
                    snapshot.atoms, snapshot.temperature, grid=snapshot.density_grid, comm=comm
                )
            except InputError as error:
                say(f"the calibration leaves out {snapshot.name}: {error}")
                continue
        one = scores_of(result, snapshot, min(emulator.info.complete_to, snapshot.complete_to))
        if one is None:
            raise InputError("one network has no spread to calibrate: train with members of 2 or more")
        scores.append(one)
    if progress is not None:
        progress("calibrating the error bars", len(snapshots), len(snapshots))
    if not scores:
        say("no validation snapshot could be predicted: the error bars are not calibrated")
        return None
    say(f"error bars are calibrated on {len(scores)} validation snapshots")
    return fit(scores)
