#!/bin/bash
# One prediction on several nodes. When the time is nearly up the run saves its tiles and ends with exit code 75;
# the job then puts itself back into the queue and goes on. sbatch slurm.sh
#SBATCH --job-name=malax
#SBATCH --nodes=4
#SBATCH --ntasks-per-node=32
#SBATCH --cpus-per-task=4
#SBATCH --time=04:00:00
#SBATCH --requeue
#SBATCH --open-mode=append
set -u
# submitted with `sbatch`, SLURM runs a copy of this file elsewhere: paths count from the folder of the submission
cd "${SLURM_SUBMIT_DIR:-$PWD}" || exit 1

MODEL=${MODEL:-model.malax}
STRUCTURE=${STRUCTURE:-structure.xyz}
OUT=${OUT:-out.h5}
# pmix for Open MPI, pmi2 for MPICH and Intel MPI; `srun --mpi=list` shows what there is
PMI=${PMI:-pmix}

export OMP_NUM_THREADS=${SLURM_CPUS_PER_TASK:-1}
# . /path/to/venv/bin/activate   (a folder that all nodes see; built against the site's MPI, see docs/mpi.md)

# --max-time below --time: what is left is for the last tile and for saving
srun --mpi="$PMI" --cpu-bind=cores malax predict "$MODEL" "$STRUCTURE" -o "$OUT" --max-time 3:45:00
code=$?
if [ "$code" -eq 75 ]; then
  scontrol requeue "$SLURM_JOB_ID"
fi
exit "$code"
