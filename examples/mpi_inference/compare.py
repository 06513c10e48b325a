"""Two results of one structure, from different numbers of ranks: do they hold the same numbers?"""

import sys

import numpy as np

import malax

one, two = (malax.load(path) for path in sys.argv[1:3])
print(f"{'':16}{one.provenance['ranks']:>8} rank {two.provenance['ranks']:>9} ranks")
for term, value in one.terms().items():
    print(f"{term:12}{value:16.6f}{two.terms()[term]:16.6f} eV")
print(f"{'time':12}{one.timings['total']:16.2f}{two.timings['total']:16.2f} s")

energies = max(abs(value - two.terms()[term]) for term, value in one.terms().items())
density = np.abs(one.density - two.density).max()
print(f"largest difference: {energies:.1e} eV, density {density:.1e} per A^3")
if energies > 1e-6 or density > 1e-9:
    sys.exit("the results differ")
