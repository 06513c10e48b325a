#!/bin/bash
# One prediction on several nodes. When the time is nearly up the run saves its tiles and ends with exit code 75;
# the job then submits itself again and goes on. qsub pbs.sh
#PBS -N malax
#PBS -l select=4:ncpus=128:mpiprocs=32:ompthreads=4
#PBS -l walltime=04:00:00
#PBS -j oe
set -u
cd "${PBS_O_WORKDIR:-$PWD}" || exit 1

MODEL=${MODEL:-model.malax}
STRUCTURE=${STRUCTURE:-structure.xyz}
OUT=${OUT:-out.h5}
# the file's own name, for the next job: PBS runs a copy of it from elsewhere
SCRIPT=${SCRIPT:-$PWD/pbs.sh}

export OMP_NUM_THREADS=${OMP_NUM_THREADS:-1}
# . /path/to/venv/bin/activate   (a folder that all nodes see; built against the site's MPI, see docs/mpi.md)

# one line of the node file per rank; Open MPI built with PBS support, Intel MPI and MPICH take hosts from PBS
mpiexec -n "$(wc -l <"$PBS_NODEFILE")" malax predict "$MODEL" "$STRUCTURE" -o "$OUT" --max-time 3:45:00
code=$?
if [ "$code" -eq 75 ]; then
  qsub -v MODEL="$MODEL",STRUCTURE="$STRUCTURE",OUT="$OUT",SCRIPT="$SCRIPT" "$SCRIPT"
fi
exit "$code"
