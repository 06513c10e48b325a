"""The bispectrum under torch's autograd."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from ase import Atoms
from systems import SYSTEMS

from malax.descriptors import Descriptor, bispectrum_torch
from malax.descriptors.structure import numbered_species
from malax.errors import InputError
from malax.kernels_adjoint import bispectrum_adjoint

SMALL = Descriptor(twojmax=3, cutoff=3.4, weights={"Al": 1.0, "Be": 0.6, "O": -0.8})


def tensors(atoms: Atoms, n_points: int = 3, dtype=torch.float64) -> tuple[torch.Tensor, ...]:
    """Positions, cell and points that ask for gradients."""
    points = np.random.default_rng(2).random((n_points, 3)) @ (atoms.cell.array + 3 * np.diag(~atoms.pbc))
    arrays = (atoms.positions, atoms.cell.array, points)
    return tuple(torch.tensor(array, dtype=dtype, requires_grad=True) for array in arrays)


def function(atoms: Atoms, descriptor: Descriptor = SMALL, **options):
    types, weights = numbered_species(atoms, descriptor.weights)

    def features(positions, cell, points):
        options.setdefault("pbc", atoms.pbc)
        return bispectrum_torch(positions, cell, points, types, weights, descriptor, **options)

    return features


def slab() -> Atoms:
    """Periodic along two vectors, the third zero."""
    atoms = SYSTEMS["triclinic"]()
    return Atoms(atoms, cell=[*atoms.cell.array[:2], [0, 0, 0]], pbc=[True, True, False])


@pytest.mark.parametrize("volume", [False, True])
@pytest.mark.parametrize("name", SYSTEMS)
def test_gradcheck(name, volume):
    descriptor = SMALL.model_copy(update={"atomic_volume": volume})
    atoms = SYSTEMS[name]()
    # few features, because every one is differentiated numerically; a step that seldom crosses the cutoff
    features, some = function(atoms, descriptor), slice(None) if volume else slice(3, None)
    assert torch.autograd.gradcheck(
        lambda *at: features(*at)[:, some],
        tensors(atoms, n_points=2),
        eps=1e-6,
        atol=1e-5,
        rtol=1e-5,
        check_forward_ad=True,
        nondet_tol=0.0,
        fast_mode=volume,
    )


def test_directions_that_are_open():
    assert torch.autograd.gradcheck(
        function(slab()), tensors(slab())[:1] + _fixed(slab()), check_forward_ad=True
    )
    positions, cell, points = tensors(slab())
    function(slab())(positions, cell, points).sum().backward()
    assert not cell.grad[2].any() and cell.grad[:2].all()


def _fixed(atoms: Atoms) -> tuple[torch.Tensor, ...]:
    return tuple(tensor.detach() for tensor in tensors(atoms)[1:])


@pytest.mark.parametrize("name", SYSTEMS)
def test_strain_is_that_of_the_kernel(name):
    atoms = SYSTEMS[name]()
    positions, cell, points = (tensor.detach() for tensor in tensors(atoms, n_points=20))
    strain = torch.zeros(3, 3, dtype=torch.float64, requires_grad=True)
    features = function(atoms)(*(x + x @ strain for x in (positions, cell, points)))
    weight = torch.randn(features.shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    (found,) = torch.autograd.grad((features * weight).sum(), strain)
    types, weights = numbered_species(atoms, SMALL.weights)
    wanted = bispectrum_adjoint(
        atoms.positions,
        types,
        atoms.cell.array,
        atoms.pbc,
        points.numpy(),
        weight.numpy(),
        twojmax=3,
        cutoff=3.4,
        rfac0=SMALL.rfac0,
        rmin0=0.0,
        switchflag=True,
        bzeroflag=False,
        weights=weights,
    ).strain
    np.testing.assert_allclose(found.numpy(), wanted, rtol=1e-10, atol=1e-11 * np.abs(wanted).max())


def test_values_are_those_of_the_descriptor():
    atoms = SYSTEMS["three_species"]()
    descriptor = SMALL.model_copy(update={"atomic_volume": True, "bzeroflag": True})
    positions, cell, points = tensors(atoms, n_points=6)
    for dtype, name in ((torch.float64, "float64"), (torch.float32, "float32")):
        found = function(atoms, descriptor, dtype=dtype)(positions, cell, points)
        wanted = descriptor.at_points(atoms, points.detach().numpy(), dtype=name)
        assert found.dtype == dtype and np.array_equal(found.detach().numpy(), wanted)


def test_single_precision():
    atoms = SYSTEMS["orthogonal"]()
    exact, single = tensors(atoms), tensors(atoms, dtype=torch.float32)
    function(atoms)(*exact).sum().backward()
    features = function(atoms)(*single)
    features.sum().backward()
    assert features.dtype == torch.float32
    for a, b in zip(exact, single, strict=True):
        assert b.grad.dtype == torch.float32
        assert (a.grad - b.grad).abs().max() < 2e-5 * a.grad.abs().max()


def test_gradient_that_is_not_contiguous():
    atoms = SYSTEMS["orthogonal"]()
    inputs = tensors(atoms)
    weight = torch.randn(function(atoms)(*inputs).shape[::-1], dtype=torch.float64).T
    found = torch.autograd.grad((function(atoms)(*inputs) * weight).sum(), inputs)
    wanted = torch.autograd.grad((function(atoms)(*inputs) * weight.contiguous()).sum(), inputs)
    assert all(torch.equal(a, b) for a, b in zip(found, wanted, strict=True))


def test_a_second_derivative_is_refused():
    inputs = tensors(SYSTEMS["one_atom"]())
    gradient = torch.autograd.grad(
        function(SYSTEMS["one_atom"]())(*inputs).square().sum(), inputs, create_graph=True
    )
    with pytest.raises(RuntimeError, match="once_differentiable"):
        gradient[2].sum().backward()


@pytest.mark.parametrize(
    ("index", "value", "message"),
    [
        (0, np.zeros((4, 3)), "positions must be a torch tensor, got ndarray"),
        (0, torch.zeros(4, 3, dtype=torch.int64), "dtype must be torch.float32 or torch.float64"),
        (0, torch.zeros(3, 3, dtype=torch.float64), "types must hold one integer per atom"),
        (1, torch.zeros(3, 3, dtype=torch.float64), "cell is degenerate"),
        (1, torch.eye(2, dtype=torch.float64), r"cell must have shape \(3, 3\)"),
        (2, torch.full((2, 3), torch.nan, dtype=torch.float64), "points holds NaN"),
        (2, torch.zeros(2, 3, device="meta"), "points must be on the CPU"),
    ],
    ids=str,
)
def test_bad_input(index, value, message):
    atoms = SYSTEMS["orthogonal"]()
    inputs = list(tensors(atoms))
    inputs[index] = value
    with pytest.raises(InputError, match=message) as caught:
        function(atoms)(*inputs)
    assert "\n" not in str(caught.value)
