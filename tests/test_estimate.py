"""What a prediction is said to need, against what it needs, and what is refused for it."""

from __future__ import annotations

import dataclasses
import json
import os
import tracemalloc
from pathlib import Path
from types import SimpleNamespace

import ase.io
import numpy as np
import pytest
import torch
from fakes import make_atoms
from models import tiny_model
from test_cli import alone, refused, run  # noqa: F401 - fixtures
from test_mpi import mpirun

from malax import cost_model, estimate, fits, machine, probe
from malax.comm import SerialComm
from malax.commands.estimate import node_like_this
from malax.emulator import Emulator
from malax.energies import total_free_energy_of
from malax.energies.xc import CHUNK
from malax.errors import InputError
from malax.estimate import Job
from malax.grid import Grid
from malax.tiles import Tiles


@pytest.fixture(scope="module")
def model() -> Emulator:
    return tiny_model()


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("estimate")
    ase.io.write(folder / "al.xyz", make_atoms(0), format="extxyz", parallel=False)
    tiny_model().save(folder / "m.malax")
    tiny_model(seed=1).save(folder / "n.malax")
    return folder


def bulk_job(points: int, **options) -> Job:
    """A cube of ``points`` along an axis at 0.25 A, with the density of aluminium."""
    side = 0.25 * points
    return Job(round(side**3 / 16.6), ("Al",), Grid(side * np.eye(3), (points,) * 3), **options)


def per_point(model: Emulator, stage: str, **options) -> float:
    """Bytes that a stage takes for each further point of a rank."""
    small, large = bulk_job(128, **options), bulk_job(256, **options)
    more = estimate.memory(model, large)[stage] - estimate.memory(model, small)[stage]
    atoms = estimate.ATOM * (large.n_atoms - small.n_atoms)
    return (more - atoms) / (estimate.share(large, 3.5).points - estimate.share(small, 3.5).points)


@pytest.mark.parametrize("k", [1, 3])
@pytest.mark.parametrize("kelvins", [1, 4])
def test_main_pass_bytes(model, k, kelvins):
    """Moments at seven chemical potentials and the densities, for all temperatures and members."""
    emulator = model if k == 1 else Emulator.combine([tiny_model(seed=i) for i in range(k)])
    wanted = 8 * (7 * k * kelvins + kelvins * (1 if k == 1 else k + 1))
    assert per_point(emulator, "main pass", n_temperatures=kelvins) == pytest.approx(wanted, rel=1e-6)
    in_memory = per_point(emulator, "main pass", n_temperatures=kelvins, ldos=True, in_file=False)
    assert in_memory == pytest.approx(wanted + 4 * len(emulator.energy_grid), rel=1e-6)
    in_file = per_point(emulator, "main pass", n_temperatures=kelvins, ldos=True)
    assert in_file == pytest.approx(wanted, rel=1e-6)


def test_ranks_share_the_memory(model):
    peaks = [estimate.peak(model, bulk_job(256, ranks=p)) for p in (1, 2, 4, 8)]
    always = estimate.LATER + estimate.ATOM * bulk_job(256).n_atoms
    for one, two in zip(peaks, peaks[1:], strict=False):
        assert 0.48 < (two - always) / (one - always) < 0.65
    # every rank has all atoms: more ranks do not help there
    assert estimate.peak(model, bulk_job(256, ranks=10**6)) > always


@pytest.mark.parametrize("ecutrho, n", [(None, 96), (400.0, 108)])
def test_bytes_of_the_energies_are_those_that_numpy_takes(ecutrho, n):
    """numpy tells tracemalloc of its arrays; torch, which evaluates the functional, does not."""
    emulator = tiny_model(ecutrho=ecutrho)
    atoms = make_atoms(0).repeat((3, 3, 3))
    grid = Grid(atoms.cell.array, (n, n, n))
    density = np.full(grid.n_points, 3 * len(atoms) / grid.volume)
    arguments = (density, grid, 0.0, 0.0, emulator.pseudopotentials, "PBE", ecutrho, SerialComm())
    tracemalloc.start()
    total_free_energy_of(atoms, *arguments)
    taken = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    untold = estimate.REAL * estimate.XC_ARRAYS * CHUNK
    said = estimate.energies_bytes(emulator, Job.of(atoms, grid))
    assert 0.9 * taken < said < 1.1 * (taken + untold)


def test_share_of_real_atoms_is_that_of_the_tiles():
    """All atoms in one half: ranks with vacuum get more points, and the work is even."""
    atoms = make_atoms(0).repeat((6, 3, 3))
    atoms.cell[0] *= 2.0
    grid = Grid(atoms.cell.array, (96, 32, 32))
    cutoff = 6.0
    found = estimate.share(Job.of(atoms, grid, ranks=3), cutoff)
    even = estimate.share(Job(len(atoms), ("Al",), grid, ranks=3), cutoff)
    assert found.points > even.points and found.n_tiles == len(Tiles.of(grid))
    whole = estimate.share(Job.of(atoms, grid), cutoff)
    assert whole.points == grid.n_points
    assert whole.cost / 3 <= found.cost < 1.1 * whole.cost / 3


# what there is


def test_available_memory_is_the_least_of_node_and_groups(tmp_path):
    def write(name: str, text: str) -> None:
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)

    assert machine.available_memory(tmp_path) is None
    write("proc/meminfo", "MemTotal: 99 kB\nMemAvailable:    1000 kB\n")
    assert machine.available_memory(tmp_path) == 1024_000
    write("proc/self/cgroup", "0::/a/b\n")
    write("sys/fs/cgroup/a/b/memory.max", "max\n")
    write("sys/fs/cgroup/a/b/memory.current", "5000\n")
    assert machine.available_memory(tmp_path) == 1024_000
    # a limit above ours counts, and the files that the group could drop do not
    write("sys/fs/cgroup/a/memory.max", "500000\n")
    write("sys/fs/cgroup/a/memory.current", "200000\n")
    write("sys/fs/cgroup/a/memory.stat", "anon 1\ninactive_file 30000\n")
    assert machine.available_memory(tmp_path) == 330_000
    write("proc/self/cgroup", "4:cpu,memory:/c\n3:cpuset:/\n")
    write("sys/fs/cgroup/memory/c/memory.limit_in_bytes", "70000")
    write("sys/fs/cgroup/memory/c/memory.usage_in_bytes", "80000")
    assert machine.available_memory(tmp_path) == 0


def test_nodes_know_their_ranks_and_limits():
    assert fits.nodes(SerialComm(), available=7, addresses=9) == [fits.Node(1, 7)]
    assert fits.nodes(SerialComm(), available=7, addresses=3) == [fits.Node(1, 3)]
    (node,) = fits.nodes(SerialComm())
    assert node.ranks == 1 and node.available is not None and node.available > 1e6
    assert machine.resident() > 1e7 and machine.seconds_since_start() > 0


def test_refused_by_memory(model):
    job = bulk_job(200)
    needed = estimate.peak(model, job)
    fits.check_memory(model, job, "al", [fits.Node(1, int(needed) + 1), fits.Node(1, None)])
    there = [fits.Node(2, int(1.9 * needed))]
    with pytest.raises(InputError) as refusal:
        fits.check_memory(model, job, "al", there)
    text = str(refusal.value)
    for part in ("al on the grid 200 x 200 x 200 needs", "per rank", "available", "--no-fit-check"):
        assert part in text
    # what it recommends fits, and is not far from what does not
    ranks = int(text.split("available; ")[1].split()[0])
    assert 2 * estimate.peak(model, dataclasses.replace(job, ranks=ranks)) <= 1.9 * needed
    shape = tuple(int(n) for n in text.split("--grid ")[1].split(" would")[0].split())
    smaller = dataclasses.replace(job, grid=Grid(job.grid.cell, shape))
    assert 0.6 * needed < estimate.peak(model, smaller) <= 0.95 * needed
    with pytest.raises(InputError, match="no number of ranks would do"):
        fits.check_memory(model, job, "al", [fits.Node(1, 1000)])
    # no grid is recommended that the model's ecutrho forbids
    sharp = tiny_model(ecutrho=2000.0)
    with pytest.raises(InputError, match=r"\d+ ranks on \d+ such nodes would fit") as refusal:
        fits.check_memory(sharp, job, "al", [fits.Node(1, int(estimate.peak(sharp, job) / 6))])
    assert "--grid" not in str(refusal.value)


def test_refused_by_rank_0_which_gathers(model):
    names = ["h5", "xsf"]
    job = bulk_job(200, ranks=100)
    there = [fits.Node(1, int(1.2 * estimate.peak(model, job)))] * 2
    fits.check_memory(model, job, "al", there)
    with pytest.raises(InputError) as refusal:
        fits.check_memory(model, job, "al", there, fits.gathered_bytes(job, names))
    # more ranks do not make the whole grid smaller; what is recommended fits
    text = str(refusal.value)
    assert "such nodes" not in text and "or leaving out --xsf and --qe-save would fit" in text
    shape = tuple(int(n) for n in text.split("--grid ")[1].split(" or")[0].split())
    smaller = dataclasses.replace(job, grid=Grid(job.grid.cell, shape))
    assert 0.4 * job.grid.n_points < smaller.grid.n_points < job.grid.n_points
    fits.check_memory(model, smaller, "al", there, fits.gathered_bytes(smaller, names))
    # beside others that take less, on more nodes, rank 0 has the room
    job = bulk_job(200, ranks=40)
    gathered = fits.gathered_bytes(job, names)
    there = [fits.Node(20, int(estimate.node_bytes(model, job, 20, gathered)) - 1)] * 2
    with pytest.raises(InputError, match="ranks on [0-9]+ such nodes") as refusal:
        fits.check_memory(model, job, "al", there, gathered)
    ranks = int(str(refusal.value).split("available; ")[1].split()[0])
    assert ranks > 40
    fits.check_memory(model, dataclasses.replace(job, ranks=ranks), "al", there, gathered)


def test_refused_by_disk(tmp_path):
    sizes = {tmp_path / "a.h5": 6e8, tmp_path / "b.h5": 5e8}
    fits.check_disk(sizes, free=int(1.2e9))
    with pytest.raises(InputError, match=r"need 1.1 GB, 1 GB are free"):
        fits.check_disk(sizes, free=int(1e9))
    for path in sizes:
        path.touch()
    fits.check_disk(sizes, free=int(7e8))  # one is replaced after the other
    with pytest.raises(InputError, match="need 600 MB|need 0.6 GB"):
        fits.check_disk(sizes, free=int(5e8))


# times, from given rates

RATES = probe.Rates(
    main=dict.fromkeys(probe.STAGES, 1e-6),
    coarse=dict.fromkeys(probe.STAGES, 2e-6),
    fields=0.1,
    core=0.1,
    points=10**5,
    ewald=1e-5,
    setup=1e-6,
    text=1e-7,
)


def test_times_scale(model):
    one = probe.times(model, bulk_job(128), RATES, {})
    assert one["descriptors"] == pytest.approx(128**3 * 1e-6)
    assert one["total"] == pytest.approx(sum(value for name, value in one.items() if name != "total"))
    assert "writing" not in one and "exact pass" not in one
    four = probe.times(model, bulk_job(128, ranks=4), RATES, {})
    assert four["descriptors"] == pytest.approx(one["descriptors"] / 4)
    assert four["energies"] == pytest.approx(one["energies"] / 4, rel=0.1)
    assert four["set-up"] == one["set-up"]
    hot = probe.times(model, bulk_job(128, n_temperatures=3), RATES, {"h5": 5e8, "cube": 0.0})
    assert hot["energies"] == pytest.approx(3 * one["energies"])
    assert hot["writing"] == pytest.approx(3 * (5e8 / probe.DISK + 128**3 * 1e-7))
    tiles = probe.times(model, bulk_job(128, n_temperatures=3), RATES, {"h5": 5e8, "tiles": 2e8})
    assert tiles["writing"] == pytest.approx((3 * 5e8 + 2e8) / probe.DISK)
    members = Emulator.combine([tiny_model(seed=i) for i in range(3)])
    three = probe.times(members, bulk_job(128), dataclasses.replace(RATES, exact=True), {})
    assert three["energies"] == pytest.approx(4 * one["energies"])
    assert three["exact pass"] == pytest.approx(3 * three["descriptors"])


def test_probe_measures_every_stage(model):
    atoms = make_atoms(0).repeat((2, 1, 1))
    job = Job.of(atoms, Grid(atoms.cell.array, (24, 12, 12)))
    rates = probe.measure(model, job, [1000.0], seconds=0.05)
    stages = [rates.main["descriptors"], rates.main["network"], rates.coarse["descriptors"]]
    assert min(*stages, rates.fields, rates.core, rates.ewald, rates.setup, rates.text) > 0
    assert rates.samples >= 2 and not rates.exact
    assert rates.cost_per_point == pytest.approx(estimate.share(job, 3.5).cost / job.grid.n_points)
    # members with other Fermi levels need their own weights
    far = tiny_model(seed=3)
    far.network.ldos_scale *= 1.5
    both = Emulator.combine([model, far])
    assert probe.measure(both, job, [300.0], seconds=0.02).exact


def test_cost_model_names_what_saturates(model):
    serial, fabric = cost_model.Serial(tree=1e-5, tile=1e-7), cost_model.Fabric()

    def at(ranks: int) -> dict[str, float]:
        return cost_model.stages(model, bulk_job(256, ranks=ranks), RATES, serial, fabric)

    one, some, many = at(1), at(128), at(2048)
    assert one["exchange"] == 0
    assert some["tiles"] == pytest.approx(one["tiles"] / 128, rel=0.2)
    assert some["transforms"] < one["transforms"] / 50
    assert many["transforms"] > some["transforms"] / 3  # 256 planes: no gain beyond as many ranks
    assert many["dos"] > 1.5 * some["dos"] and many["atoms"] >= one["atoms"]
    assert some["balance"] == one["balance"] and some["output"] == one["output"]
    fast = dataclasses.replace(fabric, bandwidth=1e30, latency=0.0)
    assert cost_model.stages(model, bulk_job(256, ranks=8), RATES, serial, fast)["exchange"] < 1e-9


# the command


def test_dry_run_says_it_and_writes_nothing(run, folder, tmp_path):  # noqa: F811
    out = tmp_path / "o.h5"
    arguments = ["predict", "m.malax", "al.xyz", "-o", out, "--ldos", "--cube", "--table", tmp_path / "t.csv"]
    arguments += ["--grid", 20, 18, 16, "--temperature", 950, 1000, "--dry-run"]
    before = sorted(folder.iterdir())
    code, printed, err = run(*arguments)
    assert code == 0 and err == "", err
    for part in ("20 x 18 x 16, 5760 points", "2 temperatures", "per rank at the peak", "network", "cube"):
        assert part in printed
    found = json.loads(run(*arguments, "--json")[1])
    assert not list(tmp_path.iterdir()) and sorted(folder.iterdir()) == before
    assert found["points"] == 5760 and found["temperatures"] == 2 and found["ranks"] == 1 and found["fits"]
    assert found["tiles"] == -(-5760 // found["tile_points"]) and found["members"] == 1
    assert found["peak_bytes"] == pytest.approx(found["start_bytes"] + max(found["stage_bytes"].values()))
    assert found["seconds"]["total"] > 0 and found["total_seconds"] > found["seconds"]["total"]
    assert found["output_bytes"] == pytest.approx(
        2 * (found["files_bytes"]["h5"] + found["files_bytes"]["cube"])
    )


def test_dry_run_of_an_ensemble_on_other_ranks(run):  # noqa: F811
    arguments = ["predict", "m.malax", "n.malax", "al.xyz", "--repeat", 2, 2, 2, "--spacing", 0.3, "--json"]
    found = json.loads(run(*arguments, "--dry-run", "--ranks", 4)[1])
    assert found["members"] == 2 and found["ranks"] == 4 and found["n_atoms"] == 32
    assert found["rank_points"] == pytest.approx(found["points"] / 4, rel=0.15)
    refused(run(*arguments, "--ranks", 4), "--ranks goes with --dry-run")


def test_ranks_that_do_not_run_yet_have_a_start(monkeypatch):
    monkeypatch.setattr(machine, "available_memory", lambda: 1000)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 2)
    monkeypatch.setattr(os, "cpu_count", lambda: 16)
    assert node_like_this(100, 1, 100) == fits.Node(8, 300)
    assert node_like_this(3, 1, 100) == fits.Node(3, 800)
    assert node_like_this(3, 4, 100) == fits.Node(3, 1000)
    assert node_like_this(100, 1, 500) == fits.Node(8, 0)
    monkeypatch.setattr(machine, "available_memory", lambda: None)
    assert node_like_this(100, 1, 100) == fits.Node(8, None)


def test_run_that_cannot_fit_is_refused(run, tmp_path, monkeypatch):  # noqa: F811
    huge = ("predict", "m.malax", "al.xyz", "--grid", 30000, 30000, 30000)
    refused(run(*huge), "needs", "available", "--no-fit-check")
    code, _, err = run(*huge[:3], "--grid", 9, 9, 9, "--dry-run")
    assert code == 0 and err == ""
    monkeypatch.setattr(machine, "available_memory", lambda: 1000)
    little = ("predict", "m.malax", "al.xyz", "-o", tmp_path / "o.h5", "--table", tmp_path / "t.csv")
    refused(run(*little), "al.xyz on the grid 9 x 9 x 9 needs", "0.001 MB are available")
    assert not list(tmp_path.iterdir())
    code, _, err = run(*little, "--dry-run")
    assert code == 0 and "are available" in err
    assert run(*little, "--no-fit-check")[0] == 0 and (tmp_path / "o.h5").is_file()


def test_disk_that_an_ended_run_took_counts_once(run, tmp_path, monkeypatch):  # noqa: F811
    """Its LDOS is there already; of several structures the largest LDOS counts, whichever comes last."""

    def leave_free(size: float) -> None:
        disk = SimpleNamespace(disk_usage=lambda _: SimpleNamespace(free=size))
        monkeypatch.setattr(fits, "shutil", disk)

    large, small = make_atoms(0).repeat((2, 1, 1)), make_atoms(1)
    ase.io.write(tmp_path / "a.xyz", large, format="extxyz", parallel=False)
    ase.io.write(tmp_path / "b.xyz", small, format="extxyz", parallel=False)
    one = ["predict", "m.malax", tmp_path / "a.xyz", "--spacing", 0.25, "--ldos", "-o", tmp_path / "o.h5"]
    sizes = json.loads(run(*one, "--dry-run", "--json")[1])["files_bytes"]
    leave_free(1.1 * sizes["h5"])
    refused(run(*one), "are free on that disk")
    folder = tmp_path / ".o.h5.tiles"
    folder.mkdir()
    with open(folder / "main.0.ldos", "wb") as file:
        os.posix_fallocate(file.fileno(), 0, int(sizes["tiles"]))
    (folder / "main.1.ldos").write_bytes(bytes(int(sizes["tiles"])))  # of a run on more ranks: of no use
    assert fits.kept_ldos(folder, 1) == pytest.approx(sizes["tiles"], abs=4096)
    assert fits.kept_ldos(folder, 2) == pytest.approx(2 * sizes["tiles"], abs=8192)
    assert run(*one)[0] == 0 and not folder.exists()
    both = [*one[:3], tmp_path / "b.xyz", *one[3:-1], tmp_path / "p.h5"]
    # results of both (1.5 times the large one's) and the large one's tiles
    leave_free(2.2 * sizes["h5"])
    refused(run(*both), "are free on that disk")


def test_sizes_of_files_are_those_written(run, tmp_path):  # noqa: F811
    tiny_model(ecutrho=200.0).save(tmp_path / "e.malax")
    out = tmp_path / "o.h5"
    arguments = ["predict", tmp_path / "e.malax", "al.xyz", "--repeat", 2, 2, 1, "--grid", 30, 30, 24]
    arguments += ["-o", out, "--ldos", "--cube", "--xsf", "--dos", "--extxyz", "--preview"]
    arguments += ["--qe-save", tmp_path / "q", "--json"]
    said = json.loads(run(*arguments, "--dry-run")[1])["files_bytes"]
    assert run(*arguments)[0] == 0
    endings = {"h5": ".h5", "cube": ".cube", "xsf": ".xsf", "dos": ".dos", "extxyz": ".xyz"}
    written = {name: out.with_suffix(end).stat().st_size for name, end in endings.items()}
    written["preview"] = out.with_suffix(".preview.cube").stat().st_size
    written["qe-save"] = sum(path.stat().st_size for path in (tmp_path / "q").rglob("charge-density.dat"))
    assert set(said) == {*written, "tiles"}
    for name, size in written.items():
        assert said[name] == pytest.approx(size, rel=0.2, abs=300), name
    assert said["cube"] == written["cube"]
    assert said["h5"] == pytest.approx(written["h5"], rel=0.02)


def test_dry_run_over_ranks(folder):
    ran = mpirun(2, "-m", "malax.cli", "predict", "m.malax", "al.xyz", "--dry-run", "--json", cwd=folder)
    assert ran.returncode == 0, ran.stderr
    found = json.loads(ran.stdout)
    assert found["ranks"] == 2 and found["ranks_per_node"] == 2 and found["fits"]
    assert found["rank_points"] < 0.75 * found["points"]
