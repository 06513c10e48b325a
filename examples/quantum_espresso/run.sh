#!/usr/bin/env bash
# Quantum ESPRESSO in: pw.x run -> snapshot. Prediction of the same structure. Density out: a cube file.
# MODEL=my.malax ./run.sh takes another model than the shipped one.
set -euo pipefail
cd "$(dirname "$0")"
data=$(python -c "import malax; print(malax.__path__[0] + '/data')")
model=${MODEL:-$data/al.malax}
export OMP_NUM_THREADS=1

# 1. DFT, in a folder of its own
mkdir -p out/al2
cp "$data/Al.pbe-nc.UPF" al.pwi out/al2/
(cd out/al2 && pw.x -in al.pwi >al.pwo)

# 2. the finished run as a snapshot: LDOS from the wavefunctions, density, energies, forces if there are any
malax generate --from out/al2 -o out/dft.h5 --sigma 0.2 --overwrite
malax info out/dft.h5

# 3. malax on the same structure (read from pw.x's input) and grid, the density also as a cube file
malax predict "$model" al.pwi --temperature 933 --grid 15 15 24 -o out/malax.h5 --cube --overwrite

# 4. term by term against DFT
malax evaluate "$model" out/dft.h5

# 5. the cube read back, and DFT's density as one
python cubes.py out/dft.h5 out/malax.h5 out/malax.cube out/dft.cube
