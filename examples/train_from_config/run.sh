#!/usr/bin/env bash
# Data, training and an evaluation, in seconds.
# MODEL and SNAPSHOT name another teacher and another DFT snapshot than the shipped ones.
set -euo pipefail
cd "$(dirname "$0")"
data=$(python -c "import malax; print(malax.__path__[0] + '/data')")
export OMP_NUM_THREADS=1

python make_data.py "${MODEL:-$data/al.malax}" out/data

malax train train.yaml --overwrite    # interrupted, it goes on with --resume
tail -n 4 out/small.run/errors.csv

# on a snapshot of its own kind, and on real DFT
malax evaluate out/small.malax out/data/al7.h5 "${SNAPSHOT:-$data/al_demo.h5}" --plots out/plots --overwrite
