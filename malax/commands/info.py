"""``malax info``: what a model, snapshot or result holds."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from malax.commands.console import Console, number
from malax.ensemble import members_of

if TYPE_CHECKING:
    from malax.emulator import Emulator
    from malax.io.snapshot import Snapshot
    from malax.result import Result

_HDF5_SIGNATURE = b"\x89HDF\r\n\x1a\n"


def info(path: Path, console: Console) -> None:
    """Describe a file of malax, whichever of the three kinds it is."""
    from malax.errors import FileError

    try:
        with open(path, "rb") as file:
            is_hdf5 = file.read(8) == _HDF5_SIGNATURE
    except OSError as error:
        raise FileError(
            f"{path}: {error.strerror}; a model, snapshot or result of malax is needed"
        ) from error
    if not is_hdf5:
        from malax.emulator import Emulator

        pairs = describe_model(Emulator.load(path))
    else:
        from malax.result import Result, load

        found = load(path)
        pairs = describe_result(found) if isinstance(found, Result) else describe_snapshot(found)
    width = max(len(name) for name, _, _ in pairs)
    for name, text, _ in pairs:
        first, *more = text.split("\n")
        console.say(f"{name:{width}}  {first}")
        for line in more:
            console.say(f"{'':{width}}  {line}")
    console.finish({name.replace(" ", "_"): value for name, _, value in pairs})


Line = tuple[str, str, Any]
"""Name, text for people, value for programs."""


def _broadening(one: Any) -> str:
    return "not known" if one.sigma is None else f"{one.kernel}, sigma {one.sigma:g} eV"


def describe_model(emulator: Emulator) -> list[Line]:
    """The lines about a model."""
    one = emulator.info
    grid = emulator.energy_grid
    trained = [s for s in one.training_snapshots if s.role == "training"]
    validation = len(one.training_snapshots) - len(trained)
    layers = [one.descriptor.n_features, *one.network.hidden, len(grid)]
    n_parameters = sum(p.numel() for p in emulator.network.parameters())
    kelvins, volumes = one.training_temperatures, one.training_volumes
    lines: list[Line] = [
        ("kind", "model", "model"),
        ("made by", f"malax {one.malax_version}", one.malax_version),
        ("sha256", emulator.hash, emulator.hash),
        ("elements", _valence(one), one.valence),
        ("descriptor", _descriptor(one), one.descriptor.model_dump(mode="json")),
        (
            "network",
            f"{'-'.join(map(str, layers))}, {one.network.activation}, {n_parameters} parameters",
            layers,
        ),
        (
            "energy grid",
            f"{grid[0]:g} to {grid[-1]:g} eV, {len(grid)} energies",
            [grid[0], grid[-1], len(grid)],
        ),
        ("complete to", f"{one.complete_to:.3f} eV", one.complete_to),
        ("broadening", _broadening(one), [one.kernel, one.sigma]),
        ("grid spacing", f"{one.grid_spacing:.4f} A", one.grid_spacing),
        ("functional", one.xc, one.xc),
        ("ecutrho", "-" if one.ecutrho is None else f"{one.ecutrho:.2f} eV", one.ecutrho),
        ("temperatures", f"{', '.join(f'{t:g}' for t in sorted(set(kelvins)))} K", sorted(set(kelvins))),
        ("volumes", f"{min(volumes):.2f} to {max(volumes):.2f} A^3/atom", [min(volumes), max(volumes)]),
        (
            "pseudopotentials",
            ", ".join(f"{e}: {p.name} ({p.kind})" for e, p in emulator.pseudopotentials.items()) or "none",
            {e: p.sha256 for e, p in emulator.pseudopotentials.items()},
        ),
        (
            "trained on",
            f"{_names([s.name for s in trained])}" + (f"; {validation} for validation" if validation else ""),
            [s.model_dump(mode="json") for s in one.training_snapshots],
        ),
    ]
    members = len(members_of(emulator.network))
    if members > 1:
        lines.append(("members", f"{members} networks, the first is described above", members))
        known = emulator.calibration
        text = "not calibrated" if known is None else f"calibrated on {_names(list(known.snapshots))}"
        lines.append(("error bars", text, None if known is None else known.to_plain()))
    if emulator.domain is not None:
        lines.append(
            (
                "domain",
                f"{emulator.domain.axes.shape[1]} axes, limit {emulator.domain.limit:.3f}",
                emulator.domain.limit,
            )
        )
    if one.config:
        lines.append(("configuration", _cut(_nested(one.config)), one.config))
    if one.test_errors:
        lines.append(("test errors", _nested(one.test_errors), one.test_errors))
    return lines


def describe_snapshot(snapshot: Snapshot) -> list[Line]:
    """The lines about a snapshot."""
    atoms, grid = snapshot.atoms, snapshot.energy_grid
    n_atoms = len(atoms)
    return [
        ("kind", "snapshot", "snapshot"),
        ("name", snapshot.name, snapshot.name),
        ("sha256", snapshot.sha256, snapshot.sha256),
        ("structure", f"{atoms.get_chemical_formula()}, {n_atoms} atoms", atoms.get_chemical_formula()),
        ("volume", f"{snapshot.grid.volume / n_atoms:.3f} A^3/atom", snapshot.grid.volume / n_atoms),
        ("temperature", f"{snapshot.temperature:g} K", snapshot.temperature),
        ("electrons", f"{snapshot.n_electrons:g}", snapshot.n_electrons),
        ("fermi level", f"{snapshot.fermi_level:.4f} eV", snapshot.fermi_level),
        (
            "energy grid",
            f"{grid[0]:g} to {grid[-1]:g} eV, {len(grid)} energies",
            [grid[0], grid[-1], len(grid)],
        ),
        ("complete to", f"{snapshot.complete_to:.3f} eV", snapshot.complete_to),
        ("broadening", f"{snapshot.kernel}, sigma {snapshot.sigma:g} eV", [snapshot.kernel, snapshot.sigma]),
        ("ldos grid", _grid(snapshot.grid), snapshot.grid.shape),
        (
            "density grid",
            "-" if snapshot.density is None else _grid(snapshot.density_grid),
            None if snapshot.density is None else snapshot.density_grid.shape,
        ),
        ("functional", snapshot.xc, snapshot.xc),
        ("ecutrho", f"{snapshot.ecutrho:.2f} eV", snapshot.ecutrho),
        ("forces", "yes" if snapshot.forces is not None else "no", snapshot.forces is not None),
        ("stress", "yes" if snapshot.stress is not None else "no", snapshot.stress is not None),
        ("energies", _energies(snapshot.energies, n_atoms), snapshot.energies),
        ("provenance", _nested(snapshot.provenance), snapshot.provenance),
    ]


def describe_result(result: Result) -> list[Line]:
    """The lines about a result."""
    as_json = result.as_json()
    lines: list[Line] = [
        ("kind", "result", "result"),
        ("structure", f"{as_json['formula']}, {len(result.atoms)} atoms", as_json["formula"]),
        ("temperature", f"{result.temperature:g} K", result.temperature),
        ("fermi level", f"{result.fermi_level:.4f} eV", result.fermi_level),
        ("electrons", f"{result.n_electrons:.6f}", result.n_electrons),
        ("grid", _grid(result.grid), result.grid.shape),
        ("ldos", "yes" if result.ldos is not None else "no", result.ldos is not None),
        ("energies", _energies(as_json["energies"], len(result.atoms)), as_json["energies"]),
        ("provenance", _nested(result.provenance), result.provenance),
        ("timings", ", ".join(f"{k} {v:.2f} s" for k, v in result.timings.items()), result.timings),
    ]
    for name in ("notes", "warnings"):
        if as_json[name]:
            lines.append((name, "; ".join(as_json[name]), as_json[name]))
    return lines


def _valence(one: Any) -> str:
    return ", ".join(f"{element} ({one.valence[element]:g} electrons)" for element in one.elements)


def _descriptor(one: Any) -> str:
    d = one.descriptor
    return f"{d.kind}, twojmax {d.twojmax}, cutoff {d.cutoff:g} A, {d.n_features} features"


def _grid(grid: Any) -> str:
    return f"{' x '.join(map(str, grid.shape))}, spacing {' x '.join(f'{s:.3f}' for s in grid.spacing)} A"


def _names(names: list[str]) -> str:
    shown = ", ".join(names[:12])
    return f"{len(names)} snapshots: {shown}" + (", ..." if len(names) > 12 else "")


def _energies(energies: Mapping[str, float | None], n_atoms: int) -> str:
    """One term a line, in eV/atom."""
    width = max(len(name) for name in energies)
    per_atom = {name: None if value is None else value / n_atoms for name, value in energies.items()}
    return "\n".join(f"{name:{width}}{number(value, 5):>12} eV/atom" for name, value in per_atom.items())


def _nested(value: Mapping[str, Any]) -> str:
    """A nested dict, one key a line."""
    return "\n".join(f"{key}: {_inline(item)}" for key, item in value.items())


def _cut(text: str, width: int = 160) -> str:
    """Lines of at most ``width`` characters: lists of many snapshots are in --json."""
    return "\n".join(line if len(line) <= width else line[: width - 3] + "..." for line in text.split("\n"))


def _inline(item: Any) -> str:
    """Something nested on one line; long texts cut."""
    if isinstance(item, Mapping):
        return ", ".join(f"{key} {_inline(inner)}" for key, inner in item.items())
    if isinstance(item, list | tuple):
        return " ".join(_inline(inner) for inner in item)
    text = f"{item:.6g}" if isinstance(item, float) else str(item)
    return text if len(text) <= 100 else text[:97] + "..."
