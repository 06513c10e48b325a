"""Plots of predictions, alone and against DFT. matplotlib is imported when something is drawn."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from malax.fields import plane
from malax.io.files import atomic_path

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from malax.evaluate import SnapshotErrors
    from malax.io.pw_run import PwRun
    from malax.result import Result

_OURS, _DFT, _GREY = "#c1440e", "#1f4e79", "0.45"


def dos(result: Result, ax: Axes | None = None) -> Axes:
    """The density of states per atom with the Fermi level."""
    ax = _axes(ax)
    n_atoms = len(result.atoms)
    ax.plot(result.energy_grid, result.dos / n_atoms, color=_OURS, label="malax")
    ax.axvline(result.fermi_level, color=_GREY, lw=0.8, ls="--", label="Fermi level")
    _label_dos(ax, f"{result.atoms.get_chemical_formula()}, {result.temperature:g} K")
    return ax


def density_slice(result: Result, axis: str = "z", position: float = 0.5, ax: Axes | None = None) -> Axes:
    """The density in a lattice plane."""
    ax = _axes(ax)
    x, y, values = plane(result.density, result.grid.cell, axis, position)
    image = ax.pcolormesh(x, y, values, shading="gouraud", cmap="viridis")
    ax.figure.colorbar(image, ax=ax, label="density (1/Å³)")
    _label_plane(ax, f"{result.atoms.get_chemical_formula()}, {axis} = {position:g}")
    return ax


def overview(result: Result) -> Figure:
    """DOS and a density slice of one result side by side."""
    figure = _figure(10.0, 4.0)
    left, right = figure.subplots(1, 2)
    dos(result, left)
    density_slice(result, ax=right)
    return figure


def against_dft(one: SnapshotErrors) -> Figure:
    """DOS against DFT above, a density slice against DFT below (if DFT's density is known)."""
    curves = one.curves
    with_density = "plane" in curves
    figure = _figure(10.0, 7.4 if with_density else 3.8)
    if with_density:
        parts: Any = figure.subfigures(2, 1)
        top, bottom = parts
        _density_against_dft(bottom, one)
    else:
        top = figure
    ax = top.subplots()
    ax.plot(curves["dft_energy_grid"], curves["dft_dos"] / one.n_atoms, color=_DFT, lw=2.2, label="DFT")
    ax.plot(curves["energy_grid"], curves["dos"] / one.n_atoms, color=_OURS, lw=1.2, label="malax")
    ax.axvline(one.dft_fermi_level, color=_GREY, lw=0.8, ls="--", label="Fermi level (DFT)")
    end = float(curves["dft_energy_grid"][-1])
    if curves["complete_to"] < end:
        ax.axvspan(float(curves["complete_to"]), end, color="0.92", label="beyond the data")
    _label_dos(ax, f"{one.name}: {one.n_atoms} atoms, {one.temperature:g} K")
    return figure


def _density_against_dft(figure: Any, one: SnapshotErrors) -> None:
    x, y = one.curves["plane_x"], one.curves["plane_y"]
    ours, theirs = one.curves["plane"], one.curves["dft_plane"]
    low, high = min(ours.min(), theirs.min()), max(ours.max(), theirs.max())
    axes = figure.subplots(1, 3)
    for ax, values, title in zip(axes[:2], (theirs, ours), ("DFT", "malax"), strict=True):
        image = ax.pcolormesh(x, y, values, shading="gouraud", cmap="viridis", vmin=low, vmax=high)
        _label_plane(ax, f"density, {title}, z = 0.5")
        figure.colorbar(image, ax=ax, shrink=0.8, label="1/Å³")
    largest = max(float(np.abs(ours - theirs).max()), 1e-12)
    image = axes[2].pcolormesh(
        x, y, ours - theirs, shading="gouraud", cmap="RdBu_r", vmin=-largest, vmax=largest
    )
    _label_plane(axes[2], f"malax - DFT (MAPE {one.density_mape:.2f} %)")
    figure.colorbar(image, ax=axes[2], shrink=0.8, label="1/Å³")


def parity(snapshots: Sequence[SnapshotErrors]) -> Figure:
    """Total free energy against DFT, and the errors of band and total free energy beside their floor."""
    figure = _figure(10.0, 4.2)
    left, right = figure.subplots(1, 2, width_ratios=[1, 1.35])
    _draw_parity(left, [one for one in snapshots if "total_free" in one.predicted])
    places = np.arange(len(snapshots))
    for offset, term, color, name in ((-0.2, "band", _DFT, "band"), (0.2, "total_free", _OURS, "total free")):
        right.bar(
            places + offset, [one.errors.get(term, 0.0) for one in snapshots], 0.38, color=color, label=name
        )
        floors = [one.floor_errors[term] for one in snapshots]
        label = "floor (DFT's own LDOS)" if term == "total_free" else None
        right.plot(places + offset, floors, ls="", marker="_", ms=9, mew=2, color="black", label=label)
    right.axhline(0, color=_GREY, lw=0.8)
    names = [one.name + ("*" if one.seen else "") for one in snapshots]
    right.set_xticks(places, names, rotation=0 if len(names) <= 8 else 90)
    right.set_ylabel("error (meV/atom)")
    right.set_title("malax - DFT" + ("   (* seen in training)" if any(one.seen for one in snapshots) else ""))
    right.legend(frameon=False, fontsize=8, loc="upper center", bbox_to_anchor=(0.5, -0.12), ncol=3)
    return figure


def _draw_parity(ax: Axes, snapshots: Sequence[SnapshotErrors]) -> None:
    """Energies relative to the mean of DFT's, so that meV are visible."""
    ax.set_xlabel("DFT (meV/atom)")
    ax.set_ylabel("malax (meV/atom)")
    ax.set_title("total free energy")
    if not snapshots:
        return
    dft = np.array([1e3 * one.dft["total_free"] / one.n_atoms for one in snapshots])
    ours = np.array([1e3 * one.predicted["total_free"] / one.n_atoms for one in snapshots])
    center = dft.mean()
    kinds = [(one.n_atoms, round(one.temperature)) for one in snapshots]
    for kind in sorted(set(kinds)):
        chosen = np.array([k == kind for k in kinds])
        ax.plot(dft[chosen] - center, ours[chosen] - center, "o", ms=6, label=f"{kind[0]} atoms, {kind[1]} K")
    low = min(dft.min(), ours.min()) - center
    high = max(dft.max(), ours.max()) - center
    margin = 0.08 * max(high - low, 1.0)
    ends = [low - margin, high + margin]
    ax.plot(ends, ends, color=_GREY, lw=0.8)
    ax.set_xlim(*ends)
    ax.set_ylim(*ends)
    ax.set_aspect("equal")
    ax.set_xlabel(f"DFT - ({center / 1e3:.3f} eV) (meV/atom)")
    ax.legend(frameon=False, fontsize=8)


def band_structures(path: Any, dft: PwRun, ours: PwRun, title: str = "") -> Figure:
    """The bands of the emulated density over those of DFT along a path, energies from DFT's Fermi level.

    Parameters
    ----------
    path : ase.dft.kpoints.BandPath
    dft, ours : runs of pw.x with calculation='bands' on the k-points of the path
    """
    figure = _figure(7.0, 4.8)
    ax = figure.subplots()
    x, ticks, labels = path.get_linear_kpoint_axis()
    zero = dft.fermi_level or 0.0
    # where the path jumps, two of its points share one place: the lines end there
    jumps = np.flatnonzero(np.diff(x) < 1e-12) + 1
    broken = np.insert(x, jumps, np.nan)
    for run, style, name in (
        (dft, ("-", _DFT, 2.2), "DFT"),
        (ours, ("--", _OURS, 1.2), "malax's density"),
    ):
        line, color, width = style
        levels = np.insert(run.eigenvalues - zero, jumps, np.nan, axis=0)
        ax.plot(broken, levels, ls=line, color=color, lw=width)[0].set_label(name)
        if run.fermi_level is not None:
            ax.axhline(run.fermi_level - zero, color=color, lw=0.8, ls=":")
    names: dict[float, str] = {}
    for tick, label in zip(ticks, labels, strict=True):
        label = label.replace("G", "Γ")
        names[tick] = f"{names[tick]}|{label}" if tick in names else label
        ax.axvline(tick, color=_GREY, lw=0.5)
    ax.set_xticks(list(names), list(names.values()))
    ax.set_xlim(x[0], x[-1])
    ax.set_ylabel("energy - Fermi level of DFT (eV)")
    ax.set_title(title)
    ax.legend(frameon=True, fontsize=8, loc="upper right")
    return figure


def save(figure: Figure, path: Path) -> Path:
    """Write a figure as PNG, whole or not at all."""
    with atomic_path(path) as temporary:
        figure.savefig(temporary, format="png", dpi=130)
    return path


def _axes(ax: Axes | None) -> Axes:
    if ax is not None:
        return ax
    # pyplot, so that a figure shows itself in a notebook and by plt.show()
    import matplotlib.pyplot as plt

    return plt.subplots(layout="constrained")[1]


def _figure(width: float, height: float) -> Figure:
    from matplotlib.figure import Figure

    return Figure(figsize=(width, height), layout="constrained")


def _label_dos(ax: Axes, title: str) -> None:
    ax.set_xlabel("energy (eV)")
    ax.set_ylabel("DOS (1/eV/atom)")
    ax.set_ylim(bottom=0)
    ax.margins(x=0)
    ax.set_title(title)
    ax.legend(frameon=False)


def _label_plane(ax: Axes, title: str) -> None:
    ax.set_xlabel("Å")
    ax.set_ylabel("Å")
    ax.set_aspect("equal")
    ax.set_title(title, fontsize=10)
