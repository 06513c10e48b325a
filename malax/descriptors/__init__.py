"""What a network sees of the atoms around a point: bispectrum components or sums of Gaussians, by our
kernels or by LAMMPS."""

from malax.descriptors.differentiable import bispectrum_torch
from malax.descriptors.gaussian import gaussian, gaussian_torch
from malax.descriptors.snap import Descriptor, bispectrum, n_features

__all__ = ["Descriptor", "bispectrum", "bispectrum_torch", "gaussian", "gaussian_torch", "n_features"]
