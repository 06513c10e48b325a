"""``python -m malax.commands.install_horovod``: build Horovod against the torch and the MPI that are here.

Horovod 0.28.1, the last release, asks for C++14 where the headers of torch need C++20. Its CMake files cannot
be told; but CMake reads a toolchain file first, and that file can name a file (itself) to be read in
Horovod's ``project()``, where it changes the option that stands for C++14.
"""

from __future__ import annotations

import argparse
import os
import platform
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from importlib import metadata
from pathlib import Path

from malax.errors import InputError, MachineError, MalaxError

VERSION = "0.28.1"
COMMAND = "python -m malax.commands.install_horovod"

_TOOLCHAIN = """\
set(CMAKE_PROJECT_horovod_INCLUDE "${CMAKE_CURRENT_LIST_FILE}")
set(CMAKE_CXX14_STANDARD_COMPILE_OPTION "-std=c++20")
"""

_SWITCHES = {
    "HOROVOD_WITH_MPI": "1",
    "HOROVOD_WITH_PYTORCH": "1",
    "HOROVOD_WITHOUT_GLOO": "1",
    "HOROVOD_WITHOUT_TENSORFLOW": "1",
    "HOROVOD_WITHOUT_MXNET": "1",
}


def install(wheels: Path | None = None, jobs: int = 1) -> Path:
    """Install Horovod into the running Python; the wheel that was installed.

    Parameters
    ----------
    wheels : folder in which a wheel is kept, one for each Python, torch and MPI; a wheel that is there is
        installed without building. None: nothing is kept.
    jobs : compiler processes

    Raises
    ------
    InputError
        torch, an MPI compiler, a C++ compiler or CMake is missing.
    MachineError
        the build failed; its log is named.
    """
    environment = _environment(jobs)
    compiler = _check_tools(environment)
    with tempfile.TemporaryDirectory(prefix="malax-horovod-") as scratch:
        folder = Path(scratch) / "wheels" if wheels is None else wheels / _key(compiler)
        wheel = _find(folder)
        if wheel is None:
            toolchain = Path(scratch) / "cxx20.cmake"
            toolchain.write_text(_TOOLCHAIN, encoding="utf-8")
            # what builds it; not isolated, because the build must see the torch that is installed
            _pip("install", "-q", "setuptools", "wheel", "packaging", env=environment)
            _build(folder, {**environment, "CMAKE_TOOLCHAIN_FILE": str(toolchain)})
            wheel = _find(folder)
            if wheel is None:
                raise MachineError(f"pip built no wheel of Horovod in {folder}")
        _pip("install", "-q", "cloudpickle", "psutil", "pyyaml", "packaging", env=environment)
        _pip("install", "-q", "--no-deps", "--force-reinstall", str(wheel), env=environment)
        _check(environment)
        return Path(wheel.name) if wheels is None else wheel


def _environment(jobs: int) -> dict[str, str]:
    """This environment; programs beside the running Python (MPI of the mpich wheel) come first."""
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")])
    return {
        **os.environ,
        **_SWITCHES,
        "PATH": path,
        "MAKEFLAGS": f"-j{jobs}",
        "CMAKE_BUILD_PARALLEL_LEVEL": str(jobs),
    }


def _check_tools(environment: dict[str, str]) -> str:
    """The MPI compiler's path."""
    for package in ("torch", "mpi4py"):
        try:
            metadata.version(package)
        except metadata.PackageNotFoundError as error:
            raise InputError(
                f"Horovod is built against {package}, which is not installed: pip install 'malax[mpi]'"
            ) from error
    paths = {name: shutil.which(name, path=environment["PATH"]) for name in ("mpicxx", "cmake", "c++")}
    hints = {
        "mpicxx": "pip install 'malax[mpi]', or load the MPI that mpi4py uses",
        "cmake": "pip install cmake",
        "c++": "install g++ 10 or later (it must know C++20)",
    }
    for name, path in paths.items():
        if path is None:
            raise InputError(f"Horovod cannot be built: there is no {name} on the PATH; {hints[name]}")
    return str(paths["mpicxx"])


def _key(compiler: str) -> str:
    """Name of the folder for wheels that fit here: Python, torch, MPI."""
    done = subprocess.run([compiler, "-show"], capture_output=True, text=True, check=False)
    mpi = "openmpi" if "openmpi" in done.stdout + compiler else "mpi"
    try:
        mpi = f"mpich-{metadata.version('mpich')}"
    except metadata.PackageNotFoundError:
        pass
    python = f"py{sys.version_info[0]}.{sys.version_info[1]}"
    return f"horovod-{VERSION}-{python}-torch-{metadata.version('torch')}-{mpi}-{platform.machine()}"


def _find(folder: Path) -> Path | None:
    found = sorted(folder.glob("horovod-*.whl")) if folder.is_dir() else []
    return found[0] if found else None


def _build(folder: Path, environment: dict[str, str]) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    log = Path(tempfile.gettempdir()) / f"malax-horovod-{os.getpid()}.log"
    print(f"building Horovod {VERSION} (2 minutes on one core; log: {log})", file=sys.stderr, flush=True)
    options = ("--no-build-isolation", "--no-deps", "--no-cache-dir", "--wheel-dir", str(folder))
    command = [sys.executable, "-m", "pip", "wheel", "-v", *options, f"horovod=={VERSION}"]
    with open(log, "w", encoding="utf-8") as file:
        done = subprocess.run(command, stdout=file, stderr=subprocess.STDOUT, env=environment, check=False)
    if done.returncode != 0:
        lines = log.read_text(encoding="utf-8", errors="replace").splitlines()
        errors = [line.strip() for line in lines if "error:" in line.lower()]
        raise MachineError(f"the build of Horovod failed ({(errors or lines or ['?'])[0]}); see {log}")
    log.unlink()


def _pip(*arguments: str, env: dict[str, str]) -> None:
    done = subprocess.run([sys.executable, "-m", "pip", *arguments], env=env, check=False)
    if done.returncode != 0:
        raise MachineError(f"pip {' '.join(arguments)} failed with code {done.returncode}")


def _check(environment: dict[str, str]) -> None:
    """A build that does not load, or has no MPI, is not done. In a new process: nothing is loaded there."""
    code = "import horovod.torch as hvd; assert hvd.mpi_built(); hvd.init(); assert hvd.size() == 1"
    environment = {k: v for k, v in environment.items() if not k.startswith(("PMI", "OMPI_"))}
    done = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=False
    )
    if done.returncode != 0:
        last = (done.stderr.strip().splitlines() or ["no message"])[-1]
        raise MachineError(f"Horovod was installed but does not work: {last}")


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog=COMMAND, description="Build and install Horovod for malax train.")
    parser.add_argument("--wheels", type=Path, metavar="DIR", help="keep the wheel here, and use it again")
    parser.add_argument("--jobs", type=int, default=1, metavar="N", help="compiler processes (default: 1)")
    given = parser.parse_args(arguments)
    try:
        wheel = install(given.wheels, given.jobs)
    except MalaxError as error:
        print(f"malax: {error}", file=sys.stderr)
        return error.exit_code
    print(f"installed {wheel}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
