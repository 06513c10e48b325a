"""The bands of the emulated density against DFT's: a plot, and by how much they differ."""

import sys
from pathlib import Path

import numpy as np

from malax import plots
from malax.interfaces.quantum_espresso import band_path
from malax.io.espresso import read_xml

folder, picture = Path(sys.argv[1]), Path(sys.argv[2])
ours = read_xml(folder / "malax.save" / "data-file-schema.xml")
dft = read_xml(folder / "atoms" / "malax.save" / "data-file-schema.xml")
path = band_path(dft.atoms)
plots.save(plots.band_structures(path, dft, ours, dft.atoms.get_chemical_formula()), picture)

# bands that matter: up to 1 eV above the Fermi level
low = dft.eigenvalues < dft.fermi_level + 1.0
deviation = (ours.eigenvalues - dft.eigenvalues)[low]
print(f"Fermi level      malax's density {ours.fermi_level:.4f} eV, DFT {dft.fermi_level:.4f} eV")
print(f"bands up to 1 eV above it: mean deviation {1e3 * deviation.mean():.1f} meV,")
print(
    f"rms after removing it {1e3 * deviation.std():.1f} meV, largest {1e3 * np.abs(deviation).max():.1f} meV"
)
print(f"written          {picture}")
