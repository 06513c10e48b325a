"""Fixtures that more than one test file uses, and the rule that a skip is never silently a pass."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

SHARED = Path(os.environ.get("MALAX_SHARED", Path(__file__).resolve().parents[2] / "shared"))

# CI sets this to the peers that it has installed itself (say "lammps,pw.x,mpi4py,pyscf"): a test that
# skips for one of them then fails the run.
REQUIRED_PEERS = [word for word in os.environ.get("MALAX_REQUIRED_PEERS", "").lower().split(",") if word]
_forbidden_skips: list[str] = []


@pytest.fixture(scope="session")
def shared_al() -> Path:
    """Real QE data of Al, which lies beside a developer's checkout only."""
    folder = SHARED / "data" / "al"
    if not folder.is_dir():
        pytest.skip(f"no shared QE data at {folder} (set MALAX_SHARED)")
    return folder


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    _note_skip(report)


def pytest_collectreport(report: pytest.CollectReport) -> None:
    _note_skip(report)


def _note_skip(report: pytest.TestReport | pytest.CollectReport) -> None:
    if report.skipped and not hasattr(report, "wasxfail"):
        reason = str(report.longrepr[2] if isinstance(report.longrepr, tuple) else report.longrepr)
        if any(peer in reason.lower() for peer in REQUIRED_PEERS):
            _forbidden_skips.append(f"{report.nodeid}: {reason}")


def pytest_sessionfinish(session: pytest.Session) -> None:
    if _forbidden_skips and session.exitstatus == pytest.ExitCode.OK:
        session.exitstatus = pytest.ExitCode.TESTS_FAILED


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    if _forbidden_skips:
        terminalreporter.section("skips of peers that must be here (MALAX_REQUIRED_PEERS)", red=True)
        for line in _forbidden_skips:
            terminalreporter.line(line)
