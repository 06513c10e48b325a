"""The scripts of examples/cluster, with stand-ins for the scheduler's commands."""

from __future__ import annotations

import os
import re
import subprocess
from pathlib import Path

import pytest

CLUSTER = Path(__file__).resolve().parents[1] / "examples" / "cluster"
SCRIPTS = sorted(CLUSTER.glob("*.sh"))


@pytest.fixture
def job(tmp_path):
    """Run a script where every command of a scheduler writes down how it was called; the launcher's code."""

    def run(script: str, code: int, *arguments: str, **environment: str) -> tuple[int, list[str], str]:
        bin_folder = tmp_path / "bin"
        bin_folder.mkdir(exist_ok=True)
        calls = tmp_path / "calls"
        calls.unlink(missing_ok=True)
        for name in ("srun", "mpiexec", "scontrol", "qsub"):
            ends = code if name in ("srun", "mpiexec") else 0
            stand_in = bin_folder / name
            stand_in.write_text(f'#!/bin/sh\necho {name} "$@" >>{calls}\nexit {ends}\n')
            stand_in.chmod(0o755)
        (tmp_path / "nodes").write_text("n1\nn1\nn2\nn2\n")
        path = f"{bin_folder}{os.pathsep}{os.environ['PATH']}"
        ended = subprocess.run(
            ["bash", CLUSTER / script, *arguments],
            cwd=tmp_path,
            env={"PATH": path, "PBS_NODEFILE": str(tmp_path / "nodes"), **environment},
            capture_output=True,
            text=True,
        )
        said = calls.read_text().splitlines() if calls.exists() else []
        return ended.returncode, said, ended.stdout + ended.stderr

    return run


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.name)
def test_scripts_are_bash(script):
    assert os.access(script, os.X_OK)
    subprocess.run(["bash", "-n", script], check=True)


@pytest.mark.parametrize("code", [0, 1, 2, 75])
def test_slurm_requeues_what_was_stopped_and_nothing_else(job, code):
    ended, said, _ = job("slurm.sh", code, SLURM_JOB_ID="7", PMI="pmi2", STRUCTURE="big.xyz")
    line = "srun --mpi=pmi2 --cpu-bind=cores malax predict model.malax big.xyz -o out.h5 --max-time 3:45:00"
    assert ended == code and said == [line, *(["scontrol requeue 7"] if code == 75 else [])]


@pytest.mark.parametrize("code", [0, 1, 75])
def test_pbs_submits_again_what_was_stopped_and_nothing_else(job, code, tmp_path):
    ended, said, _ = job("pbs.sh", code, OUT="o.h5")
    line = "mpiexec -n 4 malax predict model.malax structure.xyz -o o.h5 --max-time 3:45:00"
    script = tmp_path / "pbs.sh"
    again = f"qsub -v MODEL=model.malax,STRUCTURE=structure.xyz,OUT=o.h5,SCRIPT={script} {script}"
    assert ended == code and said == [line, *([again] if code == 75 else [])]


def test_time_limits_leave_time_to_save():
    for script, limit in (("slurm.sh", r"--time=(\S+)"), ("pbs.sh", r"walltime=(\S+)")):
        text = (CLUSTER / script).read_text()
        job_ends, run_ends = (
            sum(60**i * int(part) for i, part in enumerate(reversed(found[1].split(":"))))
            for found in (re.search(limit, text), re.search(r"--max-time (\d\S+)", text))
        )
        assert job_ends - run_ends >= 600, script


def test_a_gpu_per_rank(job):
    show = ("sh", "-c", "echo $CUDA_VISIBLE_DEVICES")
    given = "0,2,GPU-4f"
    for rank, gpu in enumerate(["0", "2", "GPU-4f", "0"]):
        found = job("gpu_per_rank.sh", 0, *show, SLURM_LOCALID=str(rank), CUDA_VISIBLE_DEVICES=given)
        assert found[0] == 0 and found[2].strip() == gpu
    alone = job("gpu_per_rank.sh", 0, *show, OMPI_COMM_WORLD_LOCAL_RANK="3", CUDA_VISIBLE_DEVICES="1")
    assert alone[2].strip() == "1"
    code, _, said = job("gpu_per_rank.sh", 0, *show, CUDA_VISIBLE_DEVICES="0")
    assert code == 2 and "no launcher says" in said


def test_both_containers_are_made_by_the_same_commands():
    definition = (CLUSTER / "malax.def").read_text()
    post = re.search(r"%post\n(.*?)\n%", definition, re.DOTALL)[1]
    commands = [line.strip() for line in post.strip().splitlines()]
    subprocess.run(["bash", "-n"], input="\n".join(commands), text=True, check=True)
    docker = (CLUSTER / "Dockerfile").read_text()
    run = re.search(r"^RUN (.*?)(?<!\\)\n", docker, re.DOTALL | re.MULTILINE)[1]
    assert [part.strip() for part in run.replace("\\\n", "\n").replace(";", "").splitlines()] == commands
