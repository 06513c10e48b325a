"""Imports run downward only (docs: layers), and nothing imports the package root."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

PACKAGE = Path(__file__).resolve().parents[1] / "malax"

LAYERS = (
    "cli commands validate_page bench bench_bispectrum demo config schema tune tune_report interfaces",
    "emulator result plots train generate evaluate baselines predict streaming model_file checks shipped "
    "checkpoint loss pw_job structures optimize scaling training train_config train_log validation "
    "selection status job_scripts recipe recipe_template distributed tune_config physics_loss domain "
    "train_finish interruption long_run preview series tiles inference estimate fits probe cost_model "
    "combination uncertainty active differences validate validate_data volume_curve finite_differences "
    "make_snapshot coarse_run coarse_probe pp_job",
    "equation_of_state observables energies dataset occupations fermi polylog feature_cache compatibility",
    "descriptors network ensemble calibration io",
    "grid fields fft comm comm_protocol launcher kernels kernels_adjoint kernels_gaussian kernels_network "
    "precision library settings machine",
    "units errors version",
)
"""From the top; a module may import from its own layer and from those below."""

LEVEL = {name: len(LAYERS) - i for i, layer in enumerate(LAYERS) for name in layer.split()}


def modules() -> list[Path]:
    return sorted(path for path in PACKAGE.rglob("*.py"))


def module_name(path: Path) -> str:
    parts = path.relative_to(PACKAGE.parent).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def imports(path: Path, at_load_only: bool = False) -> set[str]:
    """Full names of what a file imports from malax; imports for type checking only do not count."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    found: set[str] = set()
    known = {module_name(p) for p in modules()}
    for node in _nodes(tree, at_load_only):
        if isinstance(node, ast.Import):
            found.update(alias.name for alias in node.names if alias.name.split(".")[0] == "malax")
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            if (node.module or "").split(".")[0] != "malax":
                continue
            for alias in node.names:
                submodule = f"{node.module}.{alias.name}"
                found.add(submodule if submodule in known else str(node.module))
    return found


def _nodes(tree: ast.AST, at_load_only: bool):
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            continue
        if at_load_only and isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            continue
        yield node
        yield from _nodes(node, at_load_only)


def unit(name: str) -> str:
    """The entry of LAYERS that a module belongs to: its first part below malax."""
    return name.split(".")[1]


@pytest.mark.parametrize("path", modules(), ids=module_name)
def test_imports_run_downward(path):
    name = module_name(path)
    found = imports(path)
    if name == "malax":
        # the root knows its submodules by name only: importing it must stay light
        assert found == {"malax.version"}
        return
    assert unit(name) in LEVEL, f"{name} has no layer: add it to LAYERS in this test"
    for imported in found:
        assert imported != "malax", f"{name} imports the package root"
        assert LEVEL[unit(imported)] <= LEVEL[unit(name)], f"{name} imports {imported}, which is above it"


def test_no_cycles():
    graph = {module_name(p): imports(p, at_load_only=True) for p in modules()}
    done: set[str] = set()

    def visit(name: str, path: tuple[str, ...]) -> None:
        assert name not in path, f"cycle: {' -> '.join((*path, name))}"
        if name not in done:
            # a package's __init__ gathers its own modules, which may import each other directly
            for imported in graph.get(name, ()):
                visit(imported, (*path, name))
            done.add(name)

    for name in graph:
        visit(name, ())


def test_interfaces_are_leaves():
    for path in modules():
        name = module_name(path)
        leaves = [i for i in imports(path) if unit(i) == "interfaces"] if name != "malax" else []
        assert not leaves or unit(name) in ("interfaces", "cli", "commands"), f"{name} imports {leaves}"


def test_only_comm_knows_mpi4py():
    for path in modules():
        text = path.read_text(encoding="utf-8")
        tree = ast.parse(text)
        for node in ast.walk(tree):
            names = [a.name for a in node.names] if isinstance(node, ast.Import) else []
            names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            if any(n.split(".")[0] == "mpi4py" for n in names):
                assert module_name(path) == "malax.comm", f"{path} imports mpi4py"


def test_every_layer_entry_exists():
    there = {path.stem if path.parent == PACKAGE else path.parent.name for path in modules()}
    assert set(LEVEL) <= there
