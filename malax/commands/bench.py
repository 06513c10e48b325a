"""``malax bench``: what a grid point costs here."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from malax.commands.console import Console

if TYPE_CHECKING:
    from malax.bench_bispectrum import BispectrumCosts
    from malax.emulator import Emulator


def bench(model: Path | None, n_atoms: int, ranks: int, console: Console) -> None:
    """Measure, print, and estimate ``n_atoms`` on ``ranks``."""
    from malax import bench as benchmark
    from malax import bench_bispectrum, machine, shipped
    from malax.emulator import Emulator
    from malax.fits import gigabytes

    begun = machine.seconds_since_start()
    emulator = Emulator.load(model or shipped.model())
    start = machine.resident()
    costs = benchmark.measure(emulator)
    estimate = _estimate(emulator, n_atoms, ranks, start, begun)
    console.say(f"kernels  {_kernels(costs.kernels)}")
    console.say(f"system   {costs.system}, {costs.threads} threads")
    console.say()
    bispectrum = bench_bispectrum.measure(emulator.info.descriptor)
    _bispectrum(bispectrum, console)
    rows = [
        [f"descriptors, native ({costs.n_features})", f"{costs.native:.2f}"],
        ["descriptors, LAMMPS", "not installed" if costs.lammps is None else f"{costs.lammps:.2f}"],
        [f"network ({costs.n_energies} energies), to density and DOS", f"{costs.network:.2f}"],
        ["together, native", f"{costs.total:.2f}"],
        ["Hartree, XC, Ewald", f"{costs.energies:.2f}"],
    ]
    console.table(["stage", "us per grid point"], rows)
    console.say()
    console.say(
        f"{n_atoms} atoms ({estimate['points'] / n_atoms:.0f} points each) on {ranks} ranks like this "
        f"process: about {_duration(estimate['seconds'])},"
    )
    console.say(
        f"of it {_duration(estimate['energies_seconds'])} for Hartree, XC and Ewald; "
        f"{estimate['rank_gigabytes']:.1f} GB per rank; {gigabytes(estimate['output_bytes'])} of density"
    )
    console.finish({**costs.as_json(), "bispectrum": bispectrum.as_json(), "estimate": estimate})


def _estimate(emulator: Emulator, n_atoms: int, ranks: int, start: int, begun: float) -> dict[str, Any]:
    """What `malax predict --dry-run` says of such a structure: bytes, and seconds without the start."""
    from malax import bench as benchmark
    from malax import probe
    from malax.commands.estimate import node_like_this, report

    job, timed = benchmark.jobs(emulator, n_atoms, ranks)
    kelvin = min(emulator.info.training_temperatures)
    rates = probe.measure(emulator, timed, [kelvin], seconds=benchmark.TRIAL_SECONDS)
    there = [node_like_this(ranks, 1, start)]
    found = report(emulator, job, f"{n_atoms} atoms", rates, ["h5"], start, begun, there)
    stages = found.pop("seconds")
    return {
        **found,
        "atoms": n_atoms,
        "stage_seconds": stages,
        "streaming_seconds": stages["total"] - stages["energies"],
        "energies_seconds": stages["energies"],
        "seconds": stages["total"],
        "rank_gigabytes": found["peak_bytes"] / 1e9,
    }


def _bispectrum(costs: BispectrumCosts, console: Console) -> None:
    """Stages of the native bispectrum, and LAMMPS beside it."""
    console.say(
        f"bispectrum  {costs.system}, {costs.neighbours:.0f} neighbours, one core, {costs.isa}; "
        f"best of {costs.repeats}"
    )
    console.say(f"beside it   {costs.lammps_build or 'no LAMMPS: not installed'}")
    console.say()
    float32, float64 = costs.native["float32"], costs.native["float64"]
    rows = [[stage, f"{float32[stage]:.2f}", f"{float64[stage]:.2f}", ""] for stage in float32]
    lammps = "" if costs.lammps is None else f"{costs.lammps:.1f}"
    rows.append(["together", f"{costs.total('float32'):.2f}", f"{costs.total('float64'):.2f}", lammps])
    if costs.lammps is not None:
        ratios = [f"{costs.lammps / costs.total(dtype):.1f}" for dtype in costs.native]
        rows.append(["times faster", *ratios, "1"])
    console.table(["us per grid point", "float32", "float64", "LAMMPS"], rows)
    console.say(f"two threads are {costs.two_threads:.2f} times as fast as one (float32)")
    console.say()


def _kernels(built: dict[str, Any]) -> str:
    """What was built and what of it runs."""
    cuda = f"CUDA with {built.get('cuda_devices', 0)} devices" if built.get("cuda") else "no CUDA"
    openmp = "OpenMP" if built.get("openmp") else "no OpenMP: one thread"
    levels = ", ".join(built.get("isa_levels", []))
    return f"{built['version']}: instruction set {built['isa']} (of {levels}), {openmp}, {cuda}"


def _duration(seconds: float) -> str:
    if seconds < 90:
        return f"{seconds:.1f} s"
    return f"{seconds / 60:.1f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"
