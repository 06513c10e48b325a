"""Reading pseudopotentials: UPF 1 and 2, every way of writing them, and what must be refused."""

from __future__ import annotations

import hashlib
import math
import re
from pathlib import Path

import numpy as np
import pytest

from malax.errors import FileError, InputError
from malax.io.upf import Pseudopotential, functional_name, read_upf, resolve
from malax.units import BOHR

SHIPPED = Path(__file__).resolve().parents[1] / "malax" / "data" / "Al.pbe-nc.UPF"
DEBIAN = Path("/usr/share/espresso/pseudo")


def mesh(n: int = 201) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Radial mesh, its derivative, and a core charge; bohr."""
    r = 1e-4 * np.exp(np.arange(n) * 0.06)
    return r, 0.06 * r, 0.3 * np.exp(-2 * r**2)


def numbers(values: np.ndarray, form: str = "{:.15E}") -> str:
    words = [form.format(v) for v in values]
    return "\n".join(" ".join(words[i : i + 4]) for i in range(0, len(words), 4))


def upf1(
    kind: str = "NC",
    core: bool = True,
    functional: str = " SLA  PW   PBX  PBC    PBE",
    form: str = "{:.15E}",
    element: str = "Xe",
    z_valence: float = 6.5,
) -> str:
    r, rab, n_c = mesh()
    nlcc = f"<PP_NLCC>\n{numbers(n_c, form)}\n</PP_NLCC>\n" if core else ""
    return f"""<PP_INFO>
Made by a test; a < b and <PP_HEADER are only words here
</PP_INFO>


<PP_HEADER>
   0                   Version Number
  {element}                   Element
   {kind}                  Norm - Conserving pseudopotential
    {"T" if core else "F"}                  Nonlinear Core Correction
{functional}  Exchange-Correlation functional
    {z_valence:.11f}      Z valence
  -22.10000000000      Total energy
  0.0000000  0.0000000 Suggested cutoff for wfc and rho
    1                  Max angular momentum component
  {len(r)}                  Number of points in mesh
    1    1             Number of Wavefunctions, Number of Projectors
 Wavefunctions         nl  l   occ
                       3S  0  2.00
</PP_HEADER>


<PP_MESH>
  <PP_R>
{numbers(r, form)}
  </PP_R>
  <PP_RAB>
{numbers(rab, form)}
  </PP_RAB>
</PP_MESH>

{nlcc}
<PP_LOCAL>
{numbers(-1 / r)}
</PP_LOCAL>

<PP_RHOATOM>
{numbers(r * np.exp(-r))}
</PP_RHOATOM>
"""


def upf2(
    kind: str = "NC",
    core: bool = True,
    functional: str = "PBE",
    true: str = "true",
    false: str = "false",
    form: str = "{:.15E}",
    extra: str = "",
    z_valence: str = "6.500000000000E+00",
) -> str:
    r, rab, n_c = mesh()
    nlcc = (
        f'<PP_NLCC type="real" size="{len(r)}" columns="4">\n{numbers(n_c, form)}\n</PP_NLCC>' if core else ""
    )
    return f"""<UPF version="2.0.1">
  <PP_INFO>
    <PP_INPUTFILE>
&input  title='Xe', rcut>0 & more
    </PP_INPUTFILE>
  </PP_INFO>
  <PP_HEADER
   generated='Generated using "some" code, a > b'
   author="" element=" Xe"
   pseudo_type="{kind}"
   is_ultrasoft="{true if kind in ("US", "USPP") else false}"
   {extra}
   core_correction="{true if core else false}"
   functional="{functional}"
   z_valence="{z_valence}"
   mesh_size="{len(r)}"
   number_of_wfc="1"/>
  <PP_MESH dx="6.0E-02" mesh="{len(r)}">
    <PP_R type="real" size="{len(r)}"
          columns="4">
{numbers(r, form)}
    </PP_R>
    <PP_RAB>{numbers(rab, form)}</PP_RAB>
  </PP_MESH>
  {nlcc}
  <PP_LOCAL>
{numbers(-1 / r)}
  </PP_LOCAL>
</UPF>
"""


def fortran(value: str) -> str:
    """How Fortran writes large exponents: 1.0D-05 and 1.0-105."""
    return re.sub(r"E([+-]\d{3})", r"\1", value).replace("E", "D")


def write(folder: Path, text: str, name: str = "Xe.UPF") -> Path:
    path = folder / name
    path.write_text(text)
    return path


def assert_is_the_mesh(pseudopotential: Pseudopotential, core: bool = True) -> None:
    r, rab, n_c = mesh()
    np.testing.assert_allclose(pseudopotential.r, r * BOHR, rtol=1e-14)
    np.testing.assert_allclose(pseudopotential.rab, rab * BOHR, rtol=1e-14)
    if core:
        np.testing.assert_allclose(pseudopotential.core_density, n_c / BOHR**3, rtol=1e-14, atol=1e-200)
    else:
        assert pseudopotential.core_density is None


def test_the_shipped_file():
    al = read_upf(SHIPPED)
    assert (al.element, al.z_valence, al.functional, al.kind) == ("Al", 3.0, "PBE", "NC")
    assert al.name == "Al.pbe-nc.UPF"
    assert al.sha256 == hashlib.sha256(SHIPPED.read_bytes()).hexdigest()
    assert len(al.r) == len(al.rab) == len(al.core_density) == 1135
    assert al.r[0] == pytest.approx(7.014476658111663e-05 * BOHR, rel=1e-15)
    # the mesh is exp(x_min + i dx) / Z: dr/di = r dx
    np.testing.assert_allclose(al.rab, al.r * 0.0125, rtol=1e-10)
    # 10 core electrons, of which the pseudized charge keeps the part outside of 1.8 bohr and some inside
    electrons = (4 * math.pi * al.r**2 * al.core_density * al.rab).sum()
    assert 0 < electrons < 10


@pytest.mark.parametrize("kind", ["NC", "US"])
@pytest.mark.parametrize("core", [True, False])
def test_upf_1_and_2_hold_the_same(tmp_path, kind, core):
    one = read_upf(write(tmp_path, upf1(kind, core), "one.UPF"))
    two = read_upf(write(tmp_path, upf2(kind, core), "two.UPF"))
    for found in (one, two):
        assert (found.element, found.z_valence, found.functional, found.kind) == ("Xe", 6.5, "PBE", kind)
        assert_is_the_mesh(found, core)
    assert one.sha256 != two.sha256


def test_upf_1_from_the_shipped_file(tmp_path):
    """The same data written as UPF 1 reads the same."""
    al = read_upf(SHIPPED)
    text = upf1(element="Al", z_valence=al.z_valence)
    r, rab, n_c = (numbers(a) for a in (al.r / BOHR, al.rab / BOHR, al.core_density * BOHR**3))
    for section, values in (("PP_R", r), ("PP_RAB", rab), ("PP_NLCC", n_c)):
        text = re.sub(rf"(?s)<{section}>.*</{section}>", f"<{section}>\n{values}\n</{section}>", text)
    text = text.replace("201   ", "1135   ")
    found = read_upf(write(tmp_path, text))
    assert (found.element, found.z_valence, found.functional) == ("Al", 3.0, "PBE")
    for name in ("r", "rab", "core_density"):
        np.testing.assert_allclose(getattr(found, name), getattr(al, name), rtol=2e-15, atol=1e-300)


@pytest.mark.parametrize("true, false", [("T", "F"), (".true.", ".false."), (".TRUE.", ".FALSE.")])
def test_logicals(tmp_path, true, false):
    found = read_upf(write(tmp_path, upf2("USPP", True, true=true, false=false)))
    assert found.kind == "US" and found.core_density is not None
    found = read_upf(write(tmp_path, upf2("NC", False, true=true, false=false)))
    assert found.kind == "NC" and found.core_density is None


@pytest.mark.parametrize("write_text", [upf1, upf2])
def test_fortran_exponents(tmp_path, write_text):
    class Fortran(str):
        def format(self, value):
            return fortran(f"{value:.15E}")

    text = write_text(form=Fortran())
    assert re.search(r"\d-\d{3}\s", text) and "D-0" in text  # both forms occur
    assert_is_the_mesh(read_upf(write(tmp_path, text)))


@pytest.mark.parametrize(
    "text, expected",
    [
        ("PBE", "PBE"),
        (" SLA  PW   PBX  PBC", "PBE"),
        ("SLA PW PBX PBC", "PBE"),
        (" SLA  PW   PBE  PBE ", "PBE"),
        ("SLA  PW   PBE  PBE     PBE", "PBE"),
        ("sla+pw+pbx+pbc", "PBE"),
        ("PBESOL", "PBESOL"),
        ("PBEsol", "PBESOL"),
        (" SLA  PW   PSX  PSC", "PBESOL"),
        (" SLA  PW   PSX  PSC    PBESOL", "PBESOL"),
        ("PZ", "PZ"),
        (" SLA  PZ   NOGX NOGC", "PZ"),
        (" SLA  PZ   NOGX NOGC   PZ", "PZ"),
        ("LDA                 ", "PZ"),
        ("PW", "PW"),
        ("SLA PW NOGX NOGC", "PW"),
        # others keep their name, and nothing that only begins like one of ours becomes it
        (" SLA  LYP  B88  BLYP", "SLA LYP B88 BLYP"),
        ("SLA PW TPSS TPSS", "SLA PW TPSS TPSS"),
        ("SLA PW PBX PBC VV10", "SLA PW PBX PBC VV10"),
        ("SLA PW GGX GGC", "SLA PW GGX GGC"),
        ("PBE0", "PBE0"),
        ("SCAN", "SCAN"),
    ],
)
def test_functional_names(tmp_path, text, expected):
    assert functional_name(text) == expected
    assert read_upf(write(tmp_path, upf2(functional=text))).functional == expected


@pytest.mark.parametrize("functional", [" SLA  PZ   NOGX NOGC   PZ", "SLA  PW   PSX  PSC"])
def test_functional_line_of_upf_1(tmp_path, functional):
    assert read_upf(write(tmp_path, upf1(functional=functional))).functional == functional_name(functional)


@pytest.mark.parametrize(
    "text", [upf1("PAW"), upf2("PAW"), upf2("US", extra='is_paw="true"')], ids=["upf1", "upf2", "flag"]
)
def test_paw_is_refused_by_name(tmp_path, text):
    path = write(tmp_path, text)
    with pytest.raises(FileError, match=f"{path}: PAW is not supported"):
        read_upf(path)


@pytest.mark.parametrize("write_text", [upf1, upf2])
def test_truncated_files(tmp_path, write_text):
    """Cut anywhere, a file is refused in one line that names it."""
    text = write_text()
    end = len(text.rstrip())
    for length in [0, 1, *np.linspace(10, end - 1, 60, dtype=int)]:
        path = write(tmp_path, text[:length])
        with pytest.raises(FileError) as caught:
            read_upf(path)
        assert str(path) in str(caught.value) and "\n" not in str(caught.value), length


@pytest.mark.parametrize("write_text", [upf1, upf2])
@pytest.mark.parametrize(
    "pattern, replacement, message",
    [
        (r"(<PP_NLCC[^>]*>\s*)\S+", r"\1", "PP_NLCC holds 200 numbers; the mesh has 201 points"),
        (r"(<PP_NLCC[^>]*>\s*)\S+", r"\1NaN", "PP_NLCC holds 'NaN', which is not finite"),
        (r"(<PP_RAB[^>]*>\s*)\S+", r"\1*****", r"PP_RAB holds '\*\*\*\*\*', which is not a number"),
        (r"(<PP_R\b[^>]*>\s*)\S+", r"\g<1>9.0", "does not increase"),
        (r"6\.50+(E\+00)?", "-1.0", "z_valence is -1.0; it must be positive"),
        (r"6\.50+(E\+00)?", "many", "z_valence holds 'many'"),
        (r"\bNC\b", "XY", "unknown pseudo_type 'XY'"),
        (r"</?PP_RAB>", "", "no complete <PP_RAB> section"),
    ],
)
def test_malformed_files(tmp_path, write_text, pattern, replacement, message):
    text = write_text()
    changed = re.sub(pattern, replacement, text, count=0 if "</" in pattern else 1)
    assert changed != text
    with pytest.raises(FileError, match=message):
        read_upf(write(tmp_path, changed))


@pytest.mark.parametrize("name", ["pseudo_type", "z_valence", "core_correction", "element", "mesh_size"])
def test_missing_attribute(tmp_path, name):
    text = re.sub(rf'{name}="[^"]*"', "", upf2())
    with pytest.raises(FileError, match=f"PP_HEADER has no {name}"):
        read_upf(write(tmp_path, text))


def test_not_a_pseudopotential(tmp_path):
    with pytest.raises(FileError, match="nowhere.UPF: No such file"):
        read_upf(tmp_path / "nowhere.UPF")
    with pytest.raises(FileError, match="cannot read"):
        read_upf(tmp_path)
    path = tmp_path / "binary"
    path.write_bytes(bytes(range(256)) * 20)
    with pytest.raises(FileError, match="is not a UPF pseudopotential"):
        read_upf(path)


@pytest.mark.parametrize("core", [True, False])
def test_arrays_and_back(tmp_path, core):
    before = read_upf(write(tmp_path, upf2("US", core)))
    arrays, meta = before.to_arrays()
    assert all(isinstance(value, (str, float)) for value in meta.values())
    after = Pseudopotential.from_arrays(arrays, meta)
    assert after.to_arrays()[1] == meta
    if core:
        for name in ("r", "rab", "core_density"):
            assert np.array_equal(getattr(after, name), getattr(before, name))
    else:
        assert not arrays and after.core_density is None
    del meta["z_valence"]
    with pytest.raises(FileError, match="z_valence"):
        Pseudopotential.from_arrays(arrays, meta)


def test_resolve(tmp_path):
    al = read_upf(SHIPPED)
    assert resolve({"Al": al, "H": "unused.UPF"}, ["Al", "Al"])["Al"] is al
    assert resolve({"Al": str(SHIPPED)}, ["Al"])["Al"].sha256 == al.sha256
    with pytest.raises(InputError, match="no pseudopotential for Be; there are: Al"):
        resolve({"Al": al}, ["Al", "Be"])
    with pytest.raises(InputError, match=r"given for Be, Al\.pbe-nc\.UPF, is of Al"):
        resolve({"Be": SHIPPED}, ["Be"])


def test_the_files_of_quantum_espresso():
    """Every UPF file of Debian's quantum-espresso-data; their names say what they are."""
    files = sorted(
        p for p in DEBIAN.glob("*.UPF") if re.match(r"[A-Z][a-z]?\.(rel-)?(pz|pbe|pbesol)-", p.name)
    )
    if not files:
        pytest.skip(f"no pseudopotentials in {DEBIAN} (apt-get install quantum-espresso-data)")
    read = 0
    for path in files:
        if re.search(r'pseudo_type="PAW"', path.read_text(errors="replace")):
            with pytest.raises(FileError, match="PAW is not supported"):
                read_upf(path)
            continue
        found = read_upf(path)
        element, functional = re.match(r"([A-Z][a-z]?)\.(?:rel-)?(pz|pbesol|pbe)-", path.name).groups()
        assert (found.element, found.functional) == (element, functional.upper()), path
        assert found.kind == ("US" if re.search("rrkjus|van|kjpaw", path.name) else "NC"), path
        assert found.z_valence > 0 and found.r[-1] > 5 * BOHR
        read += 1
    assert read > 20
