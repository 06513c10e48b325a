#!/usr/bin/env bash
# The emulated density into Quantum ESPRESSO: its band structure beside DFT's, and an scf that starts from it.
# MODEL=my.malax ./run.sh takes another model than the shipped one.
set -euo pipefail
cd "$(dirname "$0")"
data=$(python -c "import malax; print(malax.__path__[0] + '/data')")
model=${MODEL:-$data/al.malax}
export OMP_NUM_THREADS=1
rm -rf out && mkdir out

# 1. the density of the structure as pw.x's save folder, with inputs to go on from it
malax predict "$model" al.pwi --temperature 933 --qe-save out/qe --kpoints 8 8 6
cd out/qe

# 2. Fermi level and band structure of the emulated density
pw.x -in nscf.in >nscf.out
pw.x -in bands.in >bands.out

# 3. DFT: to self-consistency from the emulated density and, to compare, from superposed atoms
pw.x -in scf.in >scf.out
sed "/startingpot/d; s|'./scf'|'./atoms'|" scf.in >atoms.in
pw.x -in atoms.in >atoms.out
grep -H "convergence has been achieved" atoms.out scf.out

# 4. DFT's bands, and both in one plot
sed "s|outdir = '.'|outdir = './atoms'|" bands.in >dft_bands.in
pw.x -in dft_bands.in >dft_bands.out
cd ../..
python plot.py out/qe out/bands.png
