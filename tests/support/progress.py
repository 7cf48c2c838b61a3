"""Say at once what failed, and how a worker ended: a run that is cut off prints no summary."""

from __future__ import annotations

import resource
from typing import Any

import pytest


class Progress:
    """A plugin of the process that reports."""

    def __init__(self, config: pytest.Config) -> None:
        self._config = config

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """Name a failed test."""
        if report.failed:
            crash = getattr(report.longrepr, "reprcrash", None)
            why = crash.message if crash is not None else str(report.longrepr)
            self._say(f"{report.nodeid}: {report.when} failed after {report.duration:.1f} s: {why[:500]}")

    @pytest.hookimpl(optionalhook=True)
    def pytest_testnodedown(self, node: Any, error: object | None) -> None:
        """Tell the exit status of a worker that ended early: a negative one is a signal, -9 most often memory."""
        if error is not None:
            status = node.gateway._io.popen.wait(timeout=5)
            largest = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss // 1024
            self._say(f"{node.gateway.id} ended with status {status}; the largest process that ended had {largest} MiB")

    def _say(self, words: str) -> None:
        terminal = self._config.pluginmanager.get_plugin("terminalreporter")
        if terminal is not None:
            terminal.write_line(f"\n{words}")
