"""Models of earlier versions give the same numbers for ever.

The files under ``golden/`` were written, and their numbers computed, by the versions that ``golden/make.py``
names. Descriptors and networks are single precision: another instruction set, BLAS or number of threads adds
in another order, which changes a feature or an LDOS by some 1e-7 of itself. Energies here are sums of terms
up to twice as large as they are, of opposite signs. So 1e-6, relative, is rounding; a changed formula,
default or scaler shows at 1e-3 or more.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from golden import make

from malax.emulator import Emulator
from malax.ensemble import members_of

GOLDEN = Path(__file__).with_name("golden")
NAMES = sorted(path.stem for path in GOLDEN.glob("*.malax"))
pytestmark = pytest.mark.filterwarnings("ignore::malax.checks.ModelDomainWarning")


def close(found: Any, expected: Any, scale: float, place: str) -> None:
    """Within 1e-6 of the larger of the number itself and ``scale``."""
    found, expected = np.asarray(found), np.asarray(expected)
    assert found.shape == expected.shape, place
    allowed = 1e-6 * np.maximum(np.abs(expected), scale)
    assert (np.abs(found - expected) <= allowed).all(), (place, found, expected)


def compare(found: dict[str, Any], expected: dict[str, Any], place: str) -> None:
    terms = expected["energies"]
    assert found["energies"].keys() >= terms.keys()
    for term, value in terms.items():
        # -TS and Hartree are small here beside the band energy, with whose rounding they come
        close(found["energies"][term], value, abs(terms["band"]), f"{place} {term}")
    close(found["fermi_level"], expected["fermi_level"], 1.0, f"{place} Fermi level")
    for name in ("dos", "density"):
        close(found[name], expected[name], max(expected[name]), f"{place} {name}")
    assert found.keys() == expected.keys()
    if "members" in expected:
        for term, values in expected["members"].items():
            close(found["members"][term], values, max(map(abs, expected["members"]["band"])), place + term)
        close(found["dos_std"], expected["dos_std"], max(expected["dos"]), place + " spread of the DOS")
        close(found["outside"], expected["outside"], 1.0, place + " outside")


def test_every_format_has_its_file() -> None:
    from malax.model_file import FORMAT_VERSION

    assert NAMES == [f"format{n}" for n in range(1, FORMAT_VERSION + 1)]


@pytest.mark.parametrize("name", NAMES)
def test_old_models_give_the_numbers_they_gave(name: str) -> None:
    emulator = Emulator.load(GOLDEN / f"{name}.malax")
    assert emulator.info.format_version == int(name.removeprefix("format"))
    assert len(members_of(emulator.network)) == (1 if name == "format1" else 2)
    expected = json.loads((GOLDEN / f"{name}.json").read_text(encoding="utf-8"))
    found = make.numbers(emulator)
    assert found.keys() == expected.keys()
    for structure in expected:
        compare(found[structure], expected[structure], f"{name} {structure}")  # type: ignore[arg-type]


@pytest.mark.parametrize("name", NAMES)
def test_old_models_can_be_written_again(name: str, tmp_path: Path) -> None:
    """Loading and saving loses nothing: the same weights, the same numbers."""
    first = Emulator.load(GOLDEN / f"{name}.malax")
    again = Emulator.load(first.save(tmp_path / "m.malax"))
    assert again.info == first.info
    for a, b in zip(members_of(first.network), members_of(again.network), strict=True):
        assert all(np.array_equal(a.state_dict()[k], b.state_dict()[k]) for k in a.state_dict())
    atoms = make.structures()["triclinic"]
    one, two = (m.predict(atoms, 1000.0, make.GRIDS["triclinic"]) for m in (first, again))
    assert one.energies == two.energies


def test_the_comparison_sees_a_small_change() -> None:
    expected = json.loads((GOLDEN / "format1.json").read_text(encoding="utf-8"))["cubic"]
    changed = json.loads(json.dumps(expected))
    changed["energies"]["total_free"] *= 1 + 1e-5
    with pytest.raises(AssertionError, match="total_free"):
        compare(changed, expected, "cubic")
