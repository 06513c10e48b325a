"""Configuration files: strict, helpful about misspelt keys, relative to the file, files by pattern."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import pytest

from malax import config
from malax.errors import FileError, InputError
from malax.network import NetworkConfig
from malax.settings import FileList, FilePath, Settings


class Inner(Settings):
    rate: float = 1.0
    kind: Literal["cosine", "plateau"] = "cosine"


class Outer(Settings):
    output: FilePath
    """Where the model goes."""
    count: int = 3
    network: NetworkConfig = NetworkConfig()
    inner: Inner | None = None
    many: tuple[Inner, ...] = ()
    named: dict[str, Inner] = {}
    files: FileList = ()


def write(folder: Path, text: str) -> Path:
    path = folder / "c.yaml"
    path.write_text(text)
    return path


def read(folder: Path, text: str, *overrides: str) -> Outer:
    return config.load(write(folder, text), Outer, overrides)


def message(folder: Path, text: str, *overrides: str) -> str:
    with pytest.raises(InputError) as caught:
        read(folder, text, *overrides)
    line = str(caught.value)
    assert "\n" not in line
    return line


def test_values_arrive_as_written(tmp_path: Path) -> None:
    found = read(
        tmp_path, "output: m.malax\nnetwork: {hidden: [4, 5]}\ninner: {rate: 1e-3}\nmany: [{rate: 2}]\n"
    )
    assert found.network.hidden == (4, 5)
    assert found.inner == Inner(rate=1e-3)
    assert found.many == (Inner(rate=2.0),)
    assert found.output == tmp_path / "m.malax"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("netwrok: {}", "netwrok: unknown key; did you mean network?"),
        ("network: {hiden: [3]}", "network.hiden: unknown key; did you mean hidden?"),
        ("inner: {Rate: 3}", "inner.Rate: unknown key; did you mean rate?"),
        ("many: [{rate: 1}, {ratee: 3}]", "many.1.ratee: unknown key; did you mean rate?"),
        ("named: {a: {kindd: plateau}}", "named.a.kindd: unknown key; did you mean kind?"),
        ("inner: {zzz: 3}", "inner.zzz: unknown key; known: rate, kind"),
    ],
)
def test_unknown_key_names_the_right_one(tmp_path: Path, text: str, expected: str) -> None:
    assert message(tmp_path, f"output: m\n{text}\n") == f"{tmp_path}/c.yaml: {expected}"


def test_misspelt_required_key(tmp_path: Path) -> None:
    assert "outptu: unknown key; did you mean output?" in message(tmp_path, "outptu: m\n")


def test_missing_key_says_what_it_is(tmp_path: Path) -> None:
    assert "output is missing (Where the model goes)" in message(tmp_path, "count: 3\n")
    assert "output is missing" in message(tmp_path, "")


@pytest.mark.parametrize(
    ("text", "part"),
    [
        ("count: '10'", "count: input should be a valid integer, got '10'"),
        ("count: 1.5", "count: "),
        ("count: yes", "count: "),
        ("inner: {kind: cosin}", "inner.kind: input should be 'cosine' or 'plateau', got 'cosin'"),
        ("network: {hidden: [0]}", "network.hidden.0: input should be greater than 0, got 0"),
    ],
)
def test_wrong_value(tmp_path: Path, text: str, part: str) -> None:
    assert part in message(tmp_path, f"output: m\n{text}\n")


def test_overrides(tmp_path: Path) -> None:
    found = read(
        tmp_path, "output: m\ncount: 1\n", "count=7", "network.hidden=[8, 9]", "inner.rate=1e-4", "output=x/y"
    )
    assert (found.count, found.network.hidden, found.inner) == (7, (8, 9), Inner(rate=1e-4))
    assert found.output == tmp_path / "x" / "y"
    assert "--set needs key=value" in message(tmp_path, "output: m\n", "count")
    assert "count is a value" in message(tmp_path, "output: m\ncount: 1\n", "count.a=3")
    assert "did you mean count" in message(tmp_path, "output: m\n", "cuont=3")


def test_environment_variables(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MALAX_TEST_DIR", str(tmp_path / "elsewhere"))
    assert read(tmp_path, "output: $MALAX_TEST_DIR/m\n").output == tmp_path / "elsewhere" / "m"
    assert read(tmp_path, "output: ${MALAX_TEST_DIR}_b\n").output == tmp_path / "elsewhere_b"
    assert read(tmp_path, "output: a$$b\n").output == tmp_path / "a$b"
    monkeypatch.delenv("MALAX_TEST_DIR")
    assert "output: the environment variable MALAX_TEST_DIR is not set" in message(
        tmp_path, "output: $MALAX_TEST_DIR/m\n"
    )


def test_file_patterns(tmp_path: Path) -> None:
    for name in ("b2", "b1", "a1", "c[1]"):
        (tmp_path / f"{name}.h5").touch()

    def names(pattern: str) -> list[str]:
        return [path.stem for path in read(tmp_path, f"output: m\nfiles: {pattern}\n").files]

    assert names("[b*.h5, a1.h5, b1.h5]") == ["b1", "b2", "a1"]
    assert names("'*.h5'") == ["a1", "b1", "b2", "c[1]"]
    assert names("['c[1].h5']") == ["c[1]"]
    assert names("['*.h5', '!b?.h5']") == ["a1", "c[1]"]
    assert names(f"['{tmp_path}/a*.h5']") == ["a1"]
    assert names("[]") == []
    assert "files: no file matches 'd*.h5'" in message(tmp_path, "output: m\nfiles: [d*.h5]\n")
    assert "excludes none" in message(tmp_path, "output: m\nfiles: ['a1.h5', '!b1.h5']\n")
    assert "a list of files or patterns" in message(tmp_path, "output: m\nfiles: {a: 1}\n")


def test_files_that_are_no_configuration(tmp_path: Path) -> None:
    with pytest.raises(FileError, match="cannot read the configuration .*nothing.yaml: No such file"):
        config.load(tmp_path / "nothing.yaml", Outer)
    (tmp_path / "binary.yaml").write_bytes(b"\x89HDF\xff\xfe")
    with pytest.raises(FileError, match="not a text file"):
        config.load(tmp_path / "binary.yaml", Outer)
    assert "line 2" in message(tmp_path, "output: m\nfoo: [1, 2]: 3\n")
    assert "line 2: could not determine a constructor for the tag '!b*' (quote text" in message(
        tmp_path, "output: m\nfiles: [!b* ]\n"
    )
    assert "line 3: key 'output' stands twice" in message(tmp_path, "output: m\ncount: 3\noutput: n\n")
    assert "got a list" in message(tmp_path, "- 1\n- 2\n")


def test_frozen(tmp_path: Path) -> None:
    found = read(tmp_path, "output: m\n")
    with pytest.raises(ValueError, match="frozen"):
        found.count = 4  # type: ignore[misc]
