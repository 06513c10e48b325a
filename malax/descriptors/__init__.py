"""What a network sees of the atoms around a point: bispectrum components, by our kernel or by LAMMPS."""

from malax.descriptors.snap import Descriptor, bispectrum, n_features

__all__ = ["Descriptor", "bispectrum", "n_features"]
