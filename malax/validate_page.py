"""What `malax validate` leaves: a table, one page of pictures, and JSON."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from malax.validate import Validation, sizes
from malax.volume_curve import Curve

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_OURS, _DFT = "#c1440e", "#1f4e79"
Row = tuple[str, float | None, float | None, str]
"""What, the model's value, DFT's or None, the unit."""


def rows(found: Validation) -> list[Row]:
    """The table: every number of the checks."""
    table: list[Row] = []
    for curve in found.curves:
        for name, unit in (("a0", "A"), ("V0", "A^3/atom"), ("B0", "GPa")):
            ours, theirs = (_of_fit(curve, fit, name) for fit in (curve.fit, curve.dft_fit))
            table.append((f"{name}, {curve.title}", ours, theirs, unit))
        # a fit says nothing where the energies do not follow it
        off = [None if fit is None else 1e3 * fit.residual for fit in (curve.fit, curve.dft_fit)]
        table.append((f"largest deviation from that fit, {curve.title}", off[0], off[1], "meV/atom"))
    for vacancy in found.vacancies:
        table.append((f"vacancy in {vacancy.n_atoms} atoms", vacancy.model, vacancy.dft, "eV"))
    at = found.invariance
    table.append((f"largest change by a shift, {at.title}", 1e3 * at.shift, 0.0, "meV/atom"))
    table.append((f"largest change by a rotation, {at.title}", 1e3 * at.rotation, 0.0, "meV/atom"))
    for one in found.forces:
        ours, theirs = (None if f is None else float(np.sqrt(np.mean(f**2))) for f in (one.model, one.dft))
        table.append((f"force (RMS), {one.title}", ours, theirs, "eV/A"))
        pressures = (None if s is None else -float(s[:3].mean()) for s in (one.stress, one.dft_stress))
        table.append((f"pressure, {one.title}", *map(_gpa, pressures), "GPa"))  # type: ignore[arg-type]
    forces, stress = overall(found)
    if forces is not None:
        table.append(("RMS error of all forces", forces, 0.0, "eV/A"))
    if stress is not None:
        table.append(("RMS error of all stresses", _gpa(stress), 0.0, "GPa"))
    for kelvin, theirs in found.entropy.dft:
        ours = float(np.interp(kelvin, found.entropy.temperatures, found.entropy.model))
        table.append((f"-TS at {kelvin:g} K, {found.entropy.title}", 1e3 * ours, 1e3 * theirs, "meV/atom"))
    if not found.entropy.dft:
        for kelvin, ours in zip(
            found.entropy.temperatures[[0, -1]], found.entropy.model[[0, -1]], strict=True
        ):
            table.append((f"-TS at {kelvin:g} K, {found.entropy.title}", 1e3 * ours, None, "meV/atom"))
    for size in sizes(found.errors):
        what = f"{size['snapshots']} cells of {size['n_atoms']} atoms ({size['unseen']} unseen)"
        table.append((f"mean error of F, {what}", size["total_free_mean"], 0.0, "meV/atom"))
        table.append((f"mean |error| of F, {what}", size["total_free_mae"], 0.0, "meV/atom"))
    return table


def overall(found: Validation) -> tuple[float | None, float | None]:
    """RMS errors of all forces (eV/A) and stresses (eV/A^3); None without DFT's."""
    forces = [one.model - one.dft for one in found.forces if one.dft is not None]
    stresses = [one.stress - one.dft_stress for one in found.forces if one.dft_stress is not None]
    pair = [float(np.sqrt(np.mean(np.concatenate(x) ** 2))) if x else None for x in (forces, stresses)]
    return pair[0], pair[1]


def as_json(found: Validation) -> dict[str, Any]:
    """Everything, as plain numbers."""

    def curve(one: Curve) -> dict[str, Any]:
        names = ("a0", "V0", "B0")
        return {
            "title": one.title,
            "volumes": one.volumes,
            "model": one.model,
            "dft": one.dft,
            "model_fit": {name: _of_fit(one, one.fit, name) for name in names},
            "dft_fit": None if one.dft_fit is None else {n: _of_fit(one, one.dft_fit, n) for n in names},
        }

    forces, stress = overall(found)
    return {
        "snapshots": found.n_snapshots,
        "equations_of_state": [curve(one) for one in found.curves],
        "vacancies": [dict(vars(one)) for one in found.vacancies],
        "invariance": dict(vars(found.invariance)),
        "forces": [dict(vars(one)) for one in found.forces],
        "forces_rms": forces,
        "stress_rms": stress,
        "entropy": dict(vars(found.entropy)),
        "sizes": sizes(found.errors),
        "errors": [one.as_json() for one in found.errors],
        "notes": found.notes,
    }


def page(found: Validation) -> Figure:
    """One page: six pictures, and the table below them."""
    from matplotlib.figure import Figure

    table = rows(found)
    height = 8.5 + 0.16 * (len(table) + len(found.notes))
    figure = Figure(figsize=(12.0, height), layout="constrained")
    parts: Any = figure.subfigures(2, 1, height_ratios=[8.0, height - 8.0])
    top, bottom = parts
    axes = top.subplots(2, 3)
    _draw_curves(axes[0, 0], found)
    _draw_vacancies(axes[0, 1], found)
    _draw_invariance(axes[0, 2], found)
    _draw_forces(axes[1, 0], found)
    _draw_entropy(axes[1, 1], found)
    _draw_sizes(axes[1, 2], found)
    top.suptitle(f"malax validate: {', '.join(found.elements)}, {found.n_snapshots} snapshots of DFT")
    lines = [f"{'':58s}{'malax':>12s}{'DFT':>12s}"]
    lines += [f"{what:58s}{text_of(ours):>12s}{text_of(dft):>12s}  {unit}" for what, ours, dft, unit in table]
    bottom.text(0.02, 0.98, "\n".join(lines + found.notes), family="monospace", fontsize=8, va="top")
    return figure


def _draw_curves(ax: Axes, found: Validation) -> None:
    for curve in found.curves:
        lowest = curve.model.min() if curve.dft is None else curve.dft.min()
        fine = np.linspace(curve.volumes.min(), curve.volumes.max(), 100)
        sets = ((curve.model, curve.fit, _OURS, "malax"), (curve.dft, curve.dft_fit, _DFT, "DFT"))
        for values, fit, color, label in sets:
            if values is None:
                continue
            ax.plot(curve.volumes, 1e3 * (values - lowest), "o", color=color, label=f"{label}, {curve.title}")
            if fit is not None:
                ax.plot(fine, 1e3 * (fit.energy(fine) - lowest), color=color, lw=1)
    _label(ax, "equation of state", "volume (Å³/atom)", "F (meV/atom)")


def _draw_vacancies(ax: Axes, found: Validation) -> None:
    names = [f"{one.n_atoms} atoms" for one in found.vacancies]
    where = np.arange(len(names))
    ax.bar(where - 0.2, [one.model for one in found.vacancies], 0.35, color=_OURS, label="malax")
    known = [(x, one.dft) for x, one in zip(where, found.vacancies, strict=True) if one.dft is not None]
    if known:
        ax.bar([x + 0.2 for x, _ in known], [e for _, e in known], 0.35, color=_DFT, label="DFT")
    ax.set_xticks(where, names)
    ax.set_xlim(-0.8, len(names) - 0.2)
    _label(ax, "vacancy, not relaxed", "", "formation energy (eV)")


def _draw_invariance(ax: Axes, found: Validation) -> None:
    values = [1e3 * found.invariance.shift, 1e3 * found.invariance.rotation]
    bars = ax.bar(["shift", "rotation"], values, color=_OURS)
    ax.bar_label(bars, [f"{value:.2g}" for value in values])
    _label(ax, "rigid motions", "", "largest change of F (meV/atom)", legend=False)


def _draw_forces(ax: Axes, found: Validation) -> None:
    for one in found.forces:
        if one.dft is None:
            ax.plot(one.model, "o", color=_OURS, label=f"malax, {one.title}")
        else:
            ax.plot(one.dft, one.model, "o", ms=4, label=one.title)
    forces, _ = overall(found)
    if forces is None:
        _label(ax, "forces (no DFT data)", "coordinate", "malax (eV/Å)")
        return
    low, high = ax.get_xlim()
    ax.plot([low, high], [low, high], color="0.6", lw=0.8)
    _label(ax, f"forces, RMS error {forces:.3f} eV/Å", "DFT (eV/Å)", "malax, finite differences (eV/Å)")


def _draw_entropy(ax: Axes, found: Validation) -> None:
    one = found.entropy
    ax.plot(one.temperatures, 1e3 * one.model, "o-", ms=3, color=_OURS, label="malax")
    if one.dft:
        ax.plot(*zip(*[(t, 1e3 * e) for t, e in one.dft], strict=True), "s", color=_DFT, label="DFT")
    _label(ax, f"entropy, {one.title}", "temperature (K)", "-TS (meV/atom)")


def _draw_sizes(ax: Axes, found: Validation) -> None:
    if not found.errors:
        ax.text(0.5, 0.5, "no DFT data", ha="center", transform=ax.transAxes)
    for seen, color in ((True, "0.6"), (False, _OURS)):
        some = [e for e in found.errors if (e.seen is not None) == seen]
        if some:
            label = "seen in training" if seen else "unseen"
            ax.plot([e.n_atoms for e in some], [e.errors["total_free"] for e in some], "o", color=color,
                    label=label)  # fmt: skip
    ax.axhline(0.0, color="0.6", lw=0.8)
    _label(ax, "error against size", "atoms in the cell", "F, malax - DFT (meV/atom)", bool(found.errors))


def _label(ax: Axes, title: str, x: str, y: str, legend: bool = True) -> None:
    ax.set_title(title, fontsize=10)
    ax.set_xlabel(x)
    ax.set_ylabel(y)
    if legend:
        ax.legend(frameon=False, fontsize=8)


def _of_fit(curve: Curve, fit: Any, name: str) -> float | None:
    if fit is None:
        return None
    if name == "a0":
        return curve.lattice_constant(fit)
    return float(fit.volume if name == "V0" else fit.bulk_modulus)


def _gpa(value: float | None) -> float | None:
    from malax.equation_of_state import EV_PER_A3

    return None if value is None else value * EV_PER_A3


def text_of(value: float | None) -> str:
    """A number of the table."""
    return "-" if value is None else f"{value:.4f}"
