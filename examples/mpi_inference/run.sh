#!/usr/bin/env bash
# 16 aluminium atoms on two processes, then on one: the same command, the same numbers.
# MODEL=my.malax ./run.sh takes another model than the shipped one.
set -euo pipefail
cd "$(dirname "$0")"
mkdir -p out
model=${MODEL:-$(python -c "from malax import shipped; print(shipped.model())")}
export OMP_NUM_THREADS=1 # threads of each process

mpiexec -n 2 malax predict "$model" al.xyz --repeat 2 2 1 --temperature 298 \
  -o out/two.h5 --cube --overwrite
malax predict "$model" al.xyz --repeat 2 2 1 --temperature 298 -o out/one.h5 --overwrite

python compare.py out/one.h5 out/two.h5
