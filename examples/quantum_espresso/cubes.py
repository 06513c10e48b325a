"""Densities as cube files: read malax's back, write that of DFT beside it, compare the two."""

import sys

import numpy as np

import malax
from malax.io.cube import read_cube, write_cube
from malax.units import BOHR

snapshot_file, result_file, our_cube, dft_cube = sys.argv[1:5]
snapshot, result = malax.load(snapshot_file), malax.load(result_file)

# cube files hold densities in 1/bohr^3, malax in 1/A^3
cube = read_cube(our_cube)
ours = cube.values / BOHR**3
rounding = np.abs(ours - result.density).max() / result.density.max()
print(f"{our_cube}: grid {cube.grid.shape}, {ours.sum() * cube.grid.point_volume:.6f} electrons,")
print(f"equal to the density of {result_file} to {rounding:.0e} of its maximum")

write_cube(dft_cube, snapshot.atoms, snapshot.density * BOHR**3, "DFT density in 1/bohr^3")
dft = read_cube(dft_cube).values / BOHR**3
deviation = 100 * np.abs(ours - dft).sum() / dft.sum()
print(f"{dft_cube}: DFT's density; that of malax deviates by {deviation:.2f} % (integral of |difference|)")
if rounding > 1e-6:
    sys.exit("the cube file is not the density of the result")
