"""The command line: parse, call, print. Errors become one line and an exit code here and only here."""

from __future__ import annotations

import os
import sys
import time
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated, Any, NoReturn

import typer

from malax import comm as communication
from malax.commands import arguments as args
from malax.commands.console import Console
from malax.errors import MachineError, MalaxError
from malax.version import VERSION

app = typer.Typer(
    name="malax",
    help="Emulate finite-temperature Kohn-Sham DFT: atoms -> LDOS -> total free energy.",
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 80},
)


@app.callback(invoke_without_command=True)
def _top(
    context: typer.Context,
    version: Annotated[bool, typer.Option("--version", help="Print the version.")] = False,
) -> None:
    if version:
        print(f"malax {VERSION}")
    elif context.invoked_subcommand is None:
        print(context.get_help())


@app.command(short_help="The shipped model against DFT: does it work here?")
def demo(
    out: Annotated[Path | None, typer.Option("--out", metavar="DIR", help="Where plots and cube go.")] = None,
    json_only: args.Json = False,
    overwrite: args.Overwrite = False,
) -> None:
    """Run the shipped aluminium model against DFT, then on a larger cell."""
    from malax.commands import demo as command

    command.demo(out, json_only, overwrite)


@app.command(short_help="Make snapshots, by a recipe or from QE runs.")
def generate(
    config: args.Recipe = None,
    runs: args.Runs = None,
    output: args.Snapshots = None,
    sigma: args.Sigma = None,
    stride: args.Stride = None,
    energies: args.Energies = None,
    only: args.Only = None,
    jobs: args.Jobs = None,
    active: args.Active = None,
    take: args.Take = 4,
    overwrite: args.Overwrite = False,
) -> None:
    """Make snapshots: run pw.x and pp.x by a recipe, or read finished QE runs."""
    from malax.commands import generate as command

    options = {"sigma": sigma, "stride": stride, "energies": energies}
    chosen = only or []
    if active is not None:
        from malax.commands import active as selection

        chosen = selection.choose(config, active, take, chosen, output)
    command.generate(config, runs or [], output, options, overwrite, chosen, jobs)


@app.command(short_help="Train a model from a configuration file.")
def train(
    config: Annotated[Path | None, typer.Argument(metavar="CONFIG.yaml")] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on from the last checkpoint.")] = False,
    settings: args.Set = None,
    schema: args.Schema = False,
    overwrite: args.Overwrite = False,
) -> None:
    """Train a model from a configuration file."""
    from malax.commands import train as command

    if schema:
        if launched_rank() == 0:
            command.schema()
    else:
        command.train(config, resume, settings or [], overwrite)


@app.command(short_help="Search for better settings of a training.")
def tune(
    config: Annotated[Path | None, typer.Argument(metavar="CONFIG.yaml")] = None,
    settings: args.Set = None,
    workers: Annotated[int, typer.Option("--workers", metavar="N", min=1, help="Trainings at a time.")] = 1,
    schema: args.Schema = False,
    json_only: args.Json = False,
    overwrite: args.Overwrite = False,
    is_worker: Annotated[bool, typer.Option("--worker", hidden=True)] = False,
) -> None:
    """Search over network, descriptor and optimiser; run again to go on."""
    from malax.commands import tune as command

    if not schema:
        command.tune(config, settings or [], workers, json_only, overwrite, is_worker)
    elif launched_rank() == 0:
        command.schema()


@app.command(short_help="Compare a model with DFT, term by term.")
def evaluate(
    model: Annotated[Path, typer.Argument(metavar="MODEL")],
    snapshots: Annotated[list[Path], typer.Argument(metavar="SNAPSHOT")],
    plots: Annotated[
        Path | None, typer.Option("--plots", metavar="DIR", help="Write PNG plots here.")
    ] = None,
    json_only: args.Json = False,
    descriptors: args.Descriptors = "native",
    overwrite: args.Overwrite = False,
) -> None:
    """Compare a model with DFT, term by term, beside the floor and two baselines."""
    from malax.commands import evaluate as command

    command.evaluate(model, snapshots, plots, json_only, descriptors, overwrite)


@app.command(short_help="Physics checks of a model: one page and a table.")
def validate(
    model: Annotated[Path, typer.Argument(metavar="MODEL")],
    data: Annotated[
        list[Path] | None, typer.Option("--data", metavar="DIR...", help="Snapshots, or folders of them.")
    ] = None,
    structure: Annotated[
        Path | None, typer.Option(metavar="FILE", help="The crystal where there are no data.")
    ] = None,
    forces: Annotated[int, typer.Option(metavar="N", min=0, help="Snapshots for forces and stress.")] = 4,
    output: Annotated[
        Path | None,
        typer.Option("-o", "--output", metavar="DIR", help="Write the page and the numbers here."),
    ] = None,
    json_only: args.Json = False,
    overwrite: args.Overwrite = False,
) -> None:
    """Equation of state, vacancy, rigid motions, forces, entropy, error against size."""
    from malax.commands import validate as command

    command.validate(model, data or [], structure, forces, output, json_only, overwrite)


@app.command(short_help="Free energy, density and DOS of structures.")
def predict(
    model: Annotated[Path, typer.Argument(metavar="MODEL")],
    structures: args.Structures,
    output: args.Output = None,
    index: args.Index = "-1",
    species: args.Species = None,
    format: args.Format = None,
    temperature: args.Temperature = None,
    grid: args.GridPoints = None,
    spacing: args.Spacing = None,
    repeat: args.Repeat = None,
    descriptors: args.Descriptors = "native",
    precision: args.Precision = "float32",
    cube: args.Cube = False,
    ldos: args.Ldos = False,
    xsf: args.Xsf = False,
    dos: args.Dos = False,
    extxyz: args.Extxyz = False,
    qe_save: args.QeSave = None,
    pseudo: args.Pseudo = None,
    kpoints: args.Kpoints = None,
    ecutwfc: args.Ecutwfc = None,
    bands: args.Bands = None,
    qe_hdf5: args.QeHdf5 = False,
    preview: args.Preview = False,
    table: args.TableFiles = None,
    max_time: args.MaxTime = None,
    dry_run: args.DryRun = False,
    ranks: args.Ranks = None,
    no_fit_check: args.NoFitCheck = False,
    json_only: args.Json = False,
    overwrite: args.Overwrite = False,
) -> None:
    """Predict free energy, density and density of states of structures.

    Several models before the structures make an ensemble: its predictions carry error bars.
    """
    from malax.commands.predict import predict as command
    from malax.commands.predict_options import PredictOptions, seconds

    options = PredictOptions(
        output=output,
        index=index,
        species=species,
        format=format,
        temperatures=tuple(temperature or ()),
        grid=grid,
        spacing=spacing,
        repeat=repeat,
        descriptors=descriptors,
        precision=precision,
        cube=cube,
        ldos=ldos,
        xsf=xsf,
        dos=dos,
        extxyz=extxyz,
        qe_save=qe_save,
        pseudo=tuple(pseudo or ()),
        kpoints=kpoints,
        ecutwfc=ecutwfc,
        bands=bands,
        qe_hdf5=qe_hdf5,
        preview=preview,
        tables=tuple(table or ()),
        max_time=None if max_time is None else seconds(max_time),
        dry_run=dry_run,
        ranks=ranks,
        fit_check=not no_fit_check,
        json_only=json_only,
        overwrite=overwrite,
    )
    command(model, structures, options)


@app.command(short_help="What a model, snapshot or result holds.")
def info(file: Annotated[Path, typer.Argument(metavar="FILE")], json_only: args.Json = False) -> None:
    """Say what a model, snapshot or result holds."""
    from malax.commands import info as command

    if launched_rank() == 0:
        command.info(file, Console(json_only=json_only))


@app.command(short_help="This machine's cost per grid point.")
def bench(
    json_only: args.Json = False,
    atoms: Annotated[int, typer.Option(metavar="N", help="Atoms of the estimate.", min=1)] = 100_000,
    ranks: Annotated[int, typer.Option(metavar="P", help="Ranks of the estimate.", min=1)] = 128,
    model: Annotated[Path | None, typer.Option(metavar="MODEL", help="Default: the shipped one.")] = None,
) -> None:
    """Measure this machine's cost per grid point; estimate N atoms on P ranks."""
    from malax.commands import bench as command

    if launched_rank() == 0:
        command.bench(model, atoms, ranks, Console(json_only=json_only))


def main(arguments: Sequence[str] | None = None) -> NoReturn:
    """The entry point. Exit code 0: done; 2: the user's mistake; 1: the machine's or malax's."""
    try:
        given = sys.argv[1:] if arguments is None else arguments
        code = app(args.spread(given), standalone_mode=False, prog_name="malax")
    except MachineError as error:
        # not through the interpreter's teardown: HDF5 crashes there on a file that the disk could not take
        _fail(str(error), error.exit_code, leave=os._exit)
    except MalaxError as error:
        _fail(str(error), error.exit_code)
    except typer.Exit as request:
        sys.exit(request.exit_code)
    except (KeyboardInterrupt, typer.Abort):
        _fail("interrupted", 130)
    except BrokenPipeError:  # the reader of our output has gone: nobody to tell
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)
    except Exception as error:
        if _is_usage_error(error):
            _fail(_usage(error), 2)
        _fail(_unexpected(error), 1)
    if code == 130:  # what typer makes of an interrupt
        _fail("interrupted", 130)
    sys.exit(code or 0)


def launched_rank() -> int:
    """This process's rank as its launcher tells it, before there is a communicator."""
    for name in ("PMI_RANK", "PMIX_RANK", "OMPI_COMM_WORLD_RANK", "MV2_COMM_WORLD_RANK", "SLURM_PROCID"):
        if os.environ.get(name, "").isdigit():
            return int(os.environ[name])
    return 0


def _fail(message: str, code: int, leave: Callable[[int], NoReturn] = sys.exit) -> NoReturn:
    """One line on stderr, once; then the end of all ranks."""
    line = f"malax: {' '.join(message.split())}"
    world = communication.started_world()
    if world is None:  # nothing is connected yet: every process is here for the same reason
        if launched_rank() == 0:
            print(line, file=sys.stderr, flush=True)
        leave(code)
    if world.all_fail():
        if world.rank == 0:
            print(line, file=sys.stderr, flush=True)
        sys.exit(code)
    # some rank works on or waits for us and cannot be reached: it must be ended. Lower ranks speak first.
    time.sleep(0.1 * min(world.rank, 50))
    print(f"{line} (rank {world.rank})", file=sys.stderr, flush=True)
    world.abort(code)
    sys.exit(code)


def _is_usage_error(error: Exception) -> bool:
    # by name: typer carries its own copy of click or uses the installed one, depending on its version
    return any(kind.__name__ == "UsageError" for kind in type(error).__mro__)


def _usage(error: Any) -> str:
    context = getattr(error, "ctx", None)
    path = getattr(context, "command_path", "malax") or "malax"
    return f"{error.format_message().rstrip('.')} (see {path} --help)"


def _unexpected(error: Exception) -> str:
    if os.environ.get("MALAX_TRACEBACK"):
        traceback.print_exc()
    if isinstance(error, MemoryError):
        return f"out of memory: {error or 'use more ranks or a coarser grid'}"
    if isinstance(error, OSError):
        return f"{error.filename or 'input/output'}: {error.strerror or error}"
    return f"{type(error).__name__}: {error} (unexpected; MALAX_TRACEBACK=1 shows where)"


if __name__ == "__main__":
    main()
