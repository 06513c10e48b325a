"""``malax train --schema``: every key is there, with type, limits, default and documentation."""

from __future__ import annotations

from pathlib import Path

import pytest
from pydantic import BaseModel

from malax import cli
from malax.schema import describe, documentation, models_in, type_name
from malax.train_config import TrainConfig


def keys(model: type[BaseModel], prefix: str = "") -> dict[str, object]:
    found: dict[str, object] = {}
    for name, field in model.model_fields.items():
        found[prefix + name] = field
        for inner in models_in(field.annotation):
            found |= keys(inner, f"{prefix}{name}.")
    return found


def test_every_key_is_documented_and_printed() -> None:
    every = keys(TrainConfig)
    assert len(every) > 45 and "loss.energy_weights.weight" in every
    assert [key for key, field in every.items() if not documentation(field)] == []  # type: ignore[arg-type]
    lines = describe(TrainConfig).splitlines()
    printed = [line.strip() for line in lines if not line.strip().startswith("#")]
    assert [line.partition(":")[0] for line in printed if line] == [key.split(".")[-1] for key in every]


@pytest.mark.parametrize(
    "line",
    [
        "output: path (required)",
        "  training: list of files or patterns of 1 or more (required)",
        "  points_per_snapshot: whole number > 0 or number > 0 and < 1 or null (default: null)",
        "  hidden: list of whole number > 0 (default: [256, 256, 256])",
        "  activation: leaky_relu | relu | gelu | silu | tanh (default: \"silu\")",
        "  gradient_clip: number > 0 or null (default: 1.0)",
        "early_stopping: section or null (a section; the defaults of its keys)",
        "  snapshot_weights: mapping from text to number (default: {})",
    ],
)  # fmt: skip
def test_lines(line: str) -> None:
    assert line in describe(TrainConfig).splitlines()


def test_types_in_words() -> None:
    assert type_name(tuple[float, float]) == "[number, number]"
    assert type_name(list[str]) == "list of text"
    assert type_name(Path | None) == "path or null"
    assert "None" not in describe(TrainConfig)  # null, as in YAML


def test_the_command(capsys: pytest.CaptureFixture[str]) -> None:
    def run(*arguments: str) -> tuple[int, str, str]:
        with pytest.raises(SystemExit) as leave:
            cli.main(arguments)
        out, err = capsys.readouterr()
        return int(leave.value.code or 0), out, err

    assert run("train", "--schema") == (0, describe(TrainConfig) + "\n", "")
    code, _, err = run("train")
    assert code == 2 and "needs a CONFIG.yaml" in err
