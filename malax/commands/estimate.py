"""``malax predict --dry-run``, and what is refused before a prediction starts because it cannot fit."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from malax import estimate, fits, machine, probe
from malax.checks import choose_grid, choose_temperatures
from malax.comm import Comm, on_root
from malax.commands.console import Console, duration
from malax.commands.series import tiles_folder
from malax.emulator import Emulator
from malax.ensemble import members_of
from malax.errors import InputError
from malax.estimate import Job
from malax.fits import gigabytes
from malax.grid import Grid
from malax.long_run import INTERVAL

if TYPE_CHECKING:
    from malax.commands.predict_options import PredictOptions, Structure

STAGES = {
    "set-up": "checking and sorting atoms",
    "first pass": "first pass, for the Fermi level",
    "descriptors": "descriptors",
    "network": "network, density and DOS",
    "domain": "distance to the training data",
    "exact pass": "another pass, for the members",
    "energies": "Hartree, XC, Ewald",
}
"""The stages of `malax.probe.times`, as they are printed."""


def job_of(emulator: Emulator, structure: Structure, options: PredictOptions, ranks: int) -> Job:
    """The prediction that the options ask for. InputError for a structure without a sound cell, or a grid."""
    grid: Any = options.grid
    if options.spacing is not None:
        grid = Grid.from_spacing(structure.atoms.cell.array, options.spacing)
    return Job.of(
        structure.atoms,
        choose_grid(emulator.info, structure.atoms, grid),
        ranks=ranks,
        n_temperatures=max(1, len(options.temperatures)),
        ldos=options.ldos,
        in_file=options.output is not None,
        backend=options.descriptors,
        precision=options.precision,
    )


def wanted_files(options: PredictOptions) -> list[str]:
    """What of `malax.fits.file_sizes` these options write."""
    names = [] if options.output is None else ["h5", *options.beside]
    names += ["tiles"] if options.output is not None and options.ldos else []
    return names + (["qe-save"] if options.qe_save is not None else [])


def check(
    emulator: Emulator,
    todo: Sequence[Structure],
    outputs: Sequence[Path],
    options: PredictOptions,
    comm: Comm,
) -> None:
    """InputError on all ranks if a prediction does not fit into memory, or its files on the disk; collective.

    ``outputs`` : one HDF5 file for each result, or none.
    """
    there = fits.nodes(comm)

    def refuse() -> None:
        sizes: dict[Path, float] = {}
        kept = 0.0
        for i, structure in enumerate(todo):
            try:
                job = job_of(emulator, structure, options, comm.size)
                estimate.density_sphere(emulator, job)
            except InputError:
                continue  # it says so itself when its turn comes
            gathered = fits.gathered_bytes(job, wanted_files(options))
            fits.check_memory(emulator, job, structure.label, there, gathered)
            found = fits.file_sizes(emulator, job, wanted_files(options))
            first, tiles = i * job.n_temperatures, found.pop("tiles", 0.0)
            for j in range(job.n_temperatures):
                sizes |= _paths(found, outputs, first + j, options)
            if tiles:  # only one structure's at a time; what an ended run left is used, and goes with it
                folder = tiles_folder(options, outputs[first : first + job.n_temperatures], i)
                kept += fits.kept_ldos(folder, comm.size)
                path = outputs[0].with_name(".tiles")
                sizes[path] = max(tiles - kept, sizes.get(path, 0.0))
        fits.check_disk(sizes)

    on_root(comm, refuse)


def _paths(
    sizes: dict[str, float], outputs: Sequence[Path], index: int, options: PredictOptions
) -> dict[Path, float]:
    """The files of one result and their sizes."""
    found = {}
    for name, size in sizes.items():
        if name == "qe-save":
            assert options.qe_save is not None
            found[options.qe_save / f"{index:04d}"] = size
        else:
            suffix = outputs[index].suffix if name == "h5" else options.beside[name]
            found[outputs[index].with_suffix(suffix)] = size
    return found


def dry_run(
    emulator: Emulator,
    todo: Sequence[Structure],
    options: PredictOptions,
    comm: Comm,
    console: Console,
) -> None:
    """Print what each prediction would need, for ``options.ranks`` ranks or those of ``comm``; collective."""
    start = max(comm.bcast(comm.gather(machine.resident())))
    begun = max(comm.bcast(comm.gather(machine.seconds_since_start())))
    ranks = options.ranks or comm.size
    there = fits.nodes(comm)
    if ranks != comm.size:
        there = [node_like_this(ranks, there[0].ranks, start)]
    kelvins, _ = choose_temperatures(emulator.info, options.temperatures or None)
    measured: dict[Any, probe.Rates] = {}
    objects = []
    for structure in todo:
        job = on_root(comm, lambda s=structure: job_of(emulator, s, options, ranks))  # type: ignore[misc]
        same = (job.n_atoms, job.elements, job.grid.shape)
        if same not in measured:  # frames of one trajectory cost the same
            measured[same] = probe.measure(emulator, job, kelvins, comm)
        found = report(
            emulator, job, structure.label, measured[same], wanted_files(options), start, begun, there
        )
        show(console, structure.label, found)
        objects.append({"structure": structure.label, "formula": structure.formula, **found})
    together = {name: sum(one[name] for one in objects) for name in ("total_seconds", "output_bytes")}
    if len(objects) > 1:
        console.say(
            f"together     {duration(together['total_seconds'])} for {len(objects)} structures, "
            f"{gigabytes(together['output_bytes'])} of output"
        )
    console.finish(objects[0] if len(objects) == 1 else {"structures": objects, **together})


def node_like_this(ranks: int, running: int, start: float) -> fits.Node:
    """A node like this one with as many of the ranks as it has cores for.

    ``running`` of them have taken the bytes ``start`` of a process with the model loaded already; those of
    the others are not available.
    """
    per_node = min(ranks, max(1, (os.cpu_count() or 1) // torch.get_num_threads()))
    available = machine.available_memory()
    if available is not None:
        available = max(0, available - int(max(0, per_node - running) * start))
    return fits.Node(per_node, available)


def report(
    emulator: Emulator,
    job: Job,
    label: str,
    rates: probe.Rates,
    files: Sequence[str],
    start: float,
    begun: float,
    there: Sequence[fits.Node],
) -> dict[str, Any]:
    """What a job needs, as ``--json`` prints it; bytes and seconds.

    Parameters
    ----------
    files : of `wanted_files`
    start, begun : bytes and seconds of a process with the model loaded
    there : the nodes
    """
    share = estimate.share(job, emulator.info.descriptor.cutoff)
    stages = estimate.memory(emulator, job)
    sizes = fits.file_sizes(emulator, job, files)
    output = job.n_temperatures * sum(size for name, size in sizes.items() if name != "tiles")
    seconds = probe.times(emulator, job, rates, sizes)
    if "h5" in sizes and seconds["total"] > INTERVAL:
        sizes["tiles"] = sizes.get("tiles", 0.0) + fits.kept_bytes(emulator, job)
    fault = None
    try:
        fits.check_memory(emulator, job, label, there, fits.gathered_bytes(job, files))
    except InputError as error:
        fault = str(error)
    return {
        "n_atoms": job.n_atoms,
        "grid": list(job.grid.shape),
        "points": job.grid.n_points,
        "tiles": share.n_tiles,
        "tile_points": share.tile_points,
        "rank_points": share.points,
        "ranks": job.ranks,
        "ranks_per_node": max(node.ranks for node in there),
        "threads": rates.threads,
        "members": len(members_of(emulator.network)),
        "temperatures": job.n_temperatures,
        "start_bytes": start,
        "stage_bytes": stages,
        "peak_bytes": start + max(stages.values()),
        "available_bytes": min((n.available for n in there if n.available is not None), default=None),
        "fits": fault is None,
        "fault": fault,
        "seconds": seconds,
        "start_seconds": begun,
        "total_seconds": begun + seconds["total"] + seconds.get("writing", 0.0),
        "files_bytes": sizes,
        "output_bytes": output,
    }


def show(console: Console, label: str, found: dict[str, Any]) -> None:
    """Print what `report` found."""
    shape = " x ".join(map(str, found["grid"]))
    console.say(f"structure    {label}: {found['n_atoms']} atoms")
    console.say(
        f"grid         {shape}, {found['points']} points in {found['tiles']} tiles of {found['tile_points']}"
    )
    several = [f"{found[name]} {name}" for name in ("members", "temperatures") if found[name] > 1]
    if several:
        console.say(f"for          {', '.join(several)}")
    console.say(
        f"ranks        {found['ranks']}, threads each {found['threads']}; "
        f"at most {found['rank_points']} points on a rank"
    )
    _show_memory(console, found)
    console.table(
        ["time", "s"],
        [
            [text, f"{found['seconds'][name]:.1f}"]
            for name, text in STAGES.items()
            if name in found["seconds"]
        ],
    )
    rest = [f"{found['start_seconds']:.0f} s to start"]
    rest += [f"{duration(found['seconds']['writing'])} to write"] if "writing" in found["seconds"] else []
    console.say(f"together     {duration(found['seconds']['total'])}, and {' and '.join(rest)}")
    for name, size in found["files_bytes"].items():
        times = f" x {found['temperatures']}" if found["temperatures"] > 1 and name != "tiles" else ""
        gone = ", until the result is written" if name == "tiles" else ""
        console.say(f"output       {name}: {gigabytes(size)}{times}{gone}")
    if found["fault"]:
        console.warn(found["fault"])
    console.say()


def _show_memory(console: Console, found: dict[str, Any]) -> None:
    console.say(
        f"memory       {gigabytes(found['peak_bytes'])} per rank at the peak, "
        f"{gigabytes(found['start_bytes'])} of it at the start"
    )
    for stage, size in found["stage_bytes"].items():
        console.say(f"             {stage}: {gigabytes(size)}")
    if found["available_bytes"] is not None:
        console.say(
            f"             {gigabytes(found['available_bytes'])} available on a node, "
            f"for {found['ranks_per_node']} of the ranks"
        )
