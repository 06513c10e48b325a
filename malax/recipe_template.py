"""A recipe's blanks filled from an input of pw.x: ``qe: {template: al.pwi}``."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from malax.errors import FileError
from malax.io.pw_input import OWNED, check_supported_keys
from malax.io.pw_template import Template, read_template


def with_template(tree: Any, folder: Path) -> Any:
    """The recipe (nested dicts, before it is checked) with what its ``qe.template`` says where it is silent.

    Parameters
    ----------
    folder : that relative paths count from

    Raises
    ------
    FileError, InputError
        a template that is missing, no input of pw.x, or of a run that no snapshot can hold.
    """
    name = tree.get("qe", {}).get("template") if isinstance(tree, dict) else None
    if not isinstance(name, str) or not isinstance(tree["qe"], dict):
        return tree
    path = folder / Path(name).expanduser()
    template = read_template(path)
    _check(template, path)
    return _filled(tree, template, path)


def _check(template: Template, path: Path) -> None:
    for name, keys in template.namelists.items():
        check_supported_keys(name, keys)
    if "HUBBARD" in template.cards:
        raise FileError(f"{path}: malax's snapshots cannot hold such a run (DFT+U)")


def _filled(tree: dict[str, Any], template: Template, path: Path) -> dict[str, Any]:
    qe = dict(tree["qe"])
    for name, owned in OWNED.items():
        theirs = {k: v for k, v in template.namelists.get(name, {}).items() if k.split("(")[0] not in owned}
        theirs.pop("startingpot", None)
        qe[name] = {**theirs, **(qe.get(name) or {})}
    filled = {**tree, "qe": qe}
    if "pseudopotentials" not in tree:
        place = path.parent / template.pseudo_dir
        filled["pseudopotentials"] = {
            element: str((place / file).resolve()) for element, file in template.pseudo_files.items()
        }
    system = template.namelists["system"]
    known = {"temperature": template.temperature, "kpoints": template.kpoints, "n_bands": system.get("nbnd")}
    defaults = {key: value for key, value in known.items() if value is not None}
    if isinstance(tree.get("groups"), dict):
        filled["groups"] = {
            name: {**defaults, **group} if isinstance(group, dict) else group
            for name, group in tree["groups"].items()
        }
    return filled
