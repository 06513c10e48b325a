"""``malax demo``: does it work here, how good is it, how fast?"""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING

from malax.comm import on_root, world
from malax.commands.console import Console, number

if TYPE_CHECKING:
    from malax.demo import Demo
    from malax.evaluate import SnapshotErrors

_NAMES = (
    ("band", "band"),
    ("entropy_term", "-TS"),
    ("hartree", "Hartree"),
    ("xc", "XC"),
    ("total_free", "total free energy"),
)


def demo(out: Path | None, json_only: bool, overwrite: bool) -> None:
    """Run the demonstration and say what to try next."""
    start = time.perf_counter()
    comm = world()
    console = Console(comm, json_only)
    from malax import demo as demonstration
    from malax import shipped

    emulator, snapshot = on_root(comm, demonstration.load)
    folder = on_root(comm, lambda: demonstration.output_folder(out, overwrite))
    trained = [s for s in emulator.info.training_snapshots if s.role == "training"]
    console.say(
        f"The shipped model of {', '.join(emulator.info.elements)}, trained on {len(trained)} snapshots,"
    )
    console.say(
        f"against DFT on {snapshot.name}: {len(snapshot.atoms)} atoms at {snapshot.temperature:g} K, "
        "which it has not seen."
    )
    console.say()
    found = demonstration.run(emulator, snapshot, comm, console.progress)
    if found.errors is None or found.supercell is None:  # another rank than 0
        return
    written = demonstration.write(found, folder)
    _show_errors(console, found.errors)
    _show_supercell(console, found)
    for path in written:
        console.say(f"written  {path}")
    console.say()
    model = shipped.model()
    console.say("Next, your own structure (any file that ASE reads), alone or on many cores:")
    console.say(f"  malax predict {model} STRUCTURE -o out.h5")
    console.say(f"  mpiexec -n 8 malax predict {model} STRUCTURE -o out.h5")
    seconds = time.perf_counter() - start
    console.say(f"This demonstration took {seconds:.0f} s.")
    console.finish(
        {
            "snapshot": found.errors.as_json(),
            "supercell": {**found.supercell.as_json(), "repeat": found.repeat},
            "files": [str(path) for path in written],
            "seconds": seconds,
        }
    )


def _show_errors(console: Console, one: SnapshotErrors) -> None:
    rows = []
    for term, name in _NAMES:
        mine, dft = one.predicted.get(term), one.dft[term]
        rows.append(
            [
                name,
                number(None if mine is None else mine / one.n_atoms, 4),
                number(dft / one.n_atoms, 4),
                number(one.errors.get(term), 2, True),
                number(one.floor_errors.get(term), 2, True),
                number(one.mean_errors.get(term), 1, True),
            ]
        )
    console.table(["", "malax", "DFT", "error", "floor", "training mean"], rows)
    console.say("malax and DFT in eV/atom; errors in meV/atom: of malax, of the same formulae on")
    console.say("DFT's own LDOS (floor), of guessing the training's mean at this temperature")
    console.say()
    console.say(
        f"Fermi level {one.fermi_level:.3f} eV (error {one.fermi_level_error:+.0f} meV), density "
        f"{number(one.density_mape, 2)} % off (mean absolute)"
    )
    console.say(
        f"uncorrected LDOS at DFT's Fermi level: {one.electrons_at_dft_level:.3f} electrons "
        f"(DFT's: {one.floor_electrons_at_dft_level:.3f} of {one.n_electrons:g})"
    )
    console.say()


def _show_supercell(console: Console, found: Demo) -> None:
    result, one = found.supercell, found.errors
    assert result is not None and one is not None
    n_atoms, seconds = len(result.atoms), result.timings["total"]
    repeat = " x ".join(map(str, found.repeat))
    console.say(f"A larger cell: {repeat} of these, {n_atoms} atoms, {result.grid.n_points} grid points")
    free = result.terms()["total_free"]
    small = one.predicted.get("total_free")
    console.say(
        f"  total free energy {number(None if free is None else free / n_atoms, 4)} eV/atom "
        f"(the small cell: {number(None if small is None else small / one.n_atoms, 4)})"
    )
    console.say(
        f"  {seconds:.1f} s, {1e3 * seconds / n_atoms:.0f} ms per atom, growing linearly (DFT: cubic)"
    )
    console.say()
