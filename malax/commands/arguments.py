"""Options that take several values after one name, which typer does not know."""

from __future__ import annotations

from collections.abc import Sequence

_LISTS = {
    "--temperature": float,
    "--from": str,
    "--set": str,
    "--pseudo": str,
    "--only": str,
    "--table": str,
    "--data": str,
}
"""Options that take several values after one name, as in ``--temperature 298 933``."""


def spread(arguments: Sequence[str]) -> list[str]:
    """Give each of several values its own option name: ``--temperature 298 933`` -> ``--temperature 298
    --temperature 933``."""
    spread_out: list[str] = []
    current: str | None = None
    n_values = 0
    for argument in arguments:
        if argument in _LISTS:
            current, n_values = argument, 0
            spread_out.append(argument)
            continue
        if current is not None and n_values > 0 and _is_value(argument, current):
            spread_out.append(current)
        elif n_values > 0:
            current = None
        n_values += 1
        spread_out.append(argument)
    return spread_out


def _is_value(argument: str, option: str) -> bool:
    if _LISTS[option] is float:
        try:
            float(argument)
        except ValueError:
            return False
        return True
    return not argument.startswith("-") and (option != "--set" or "=" in argument)
