"""Which snapshots show what: told by their structures, not by their names."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import numpy as np
from ase.geometry import find_mic

from malax.grid import same_cell
from malax.io.snapshot import Snapshot
from malax.model_file import ModelInfo


def volume_series(snapshots: Sequence[Snapshot]) -> list[list[Snapshot]]:
    """Snapshots of one structure at five volumes or more, by volume: equal up to the size of the cell."""
    found: list[list[Snapshot]] = []
    for snapshot in snapshots:
        for group in found:
            if _same_but_volume(group[0], snapshot):
                group.append(snapshot)
                break
        else:
            found.append([snapshot])
    series = [sorted(group, key=lambda s: s.grid.volume) for group in found]
    return [group for group in series if len({round(s.grid.volume, 4) for s in group}) >= 5]


def _same_but_volume(a: Snapshot, b: Snapshot) -> bool:
    if not np.array_equal(a.atoms.numbers, b.atoms.numbers) or abs(a.temperature - b.temperature) > 0.5:
        return False
    one, two = (s.atoms.cell.array / s.grid.volume ** (1 / 3) for s in (a, b))
    shift = a.atoms.get_scaled_positions(wrap=False) - b.atoms.get_scaled_positions(wrap=False)
    return bool(np.abs(one - two).max() < 1e-4 and np.abs(shift - np.round(shift)).max() < 1e-4)


def vacancy_pairs(snapshots: Sequence[Snapshot]) -> list[tuple[Snapshot, Snapshot]]:
    """(perfect, with a vacancy): cell and temperature are the same, one atom is missing, the others (RMS) are
    within 0.12 A: relaxed they may be, but not another sample of a hot crystal."""
    pairs = []
    for perfect, defect in itertools.permutations(snapshots, 2):
        one_less = len(defect.atoms) == len(perfect.atoms) - 1
        alike = one_less and abs(perfect.temperature - defect.temperature) < 0.5
        if alike and same_cell(perfect.atoms.cell.array, defect.atoms.cell.array, 1e-4):
            vectors = defect.atoms.positions[:, None] - perfect.atoms.positions
            _, distances = find_mic(vectors.reshape(-1, 3), perfect.atoms.cell)
            distances = distances.reshape(vectors.shape[:2])
            moved = np.sqrt(np.mean(distances.min(axis=1) ** 2))
            if moved < 0.12 and len(set(distances.argmin(axis=1))) == len(defect.atoms):
                pairs.append((perfect, defect))
    return pairs


def with_forces(info: ModelInfo, snapshots: Sequence[Snapshot], number: int) -> list[Snapshot]:
    """Snapshots whose forces say something (perfect crystals have none), the unseen and the small first."""
    seen = {s.sha256 for s in info.training_snapshots}
    useful = [s for s in snapshots if s.forces is not None and np.abs(s.forces).max() > 0.05]
    useful.sort(key=lambda s: (s.sha256 in seen, len(s.atoms), s.name))
    return useful[:number]


def same_but_temperature(a: Snapshot, b: Snapshot) -> bool:
    if not np.array_equal(a.atoms.numbers, b.atoms.numbers):
        return False
    cells = same_cell(a.atoms.cell.array, b.atoms.cell.array, 1e-5)
    return cells and bool(np.abs(a.atoms.positions - b.atoms.positions).max() < 1e-5)
