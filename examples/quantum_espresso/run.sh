#!/usr/bin/env bash
# From a folder of structures to a trained model, and back to a band structure: four commands.
set -euo pipefail
cd "$(dirname "$0")"
PSEUDO=$(python -c "import malax; print(malax.__path__[0] + '/data')")
export PSEUDO OMP_NUM_THREADS=1
rm -rf out && mkdir out

malax generate recipe.yaml
malax train train.yaml
malax predict out/al.malax new.xyz --qe-save out/qe --pseudo Al="$PSEUDO/Al.pbe-nc.UPF" --kpoints 3 3 3
cd out/qe && pw.x -in nscf.in >nscf.out && pw.x -in bands.in >bands.out

grep "Fermi energy" nscf.out
