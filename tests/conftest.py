"""What every test folder shares: `--slow`, and the marks of tests that need special hardware."""

from __future__ import annotations

import gc
import signal
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

# No deadlines: a machine that pauses is no mistake of ours. An example that fails can be tried again.
settings.register_profile(
    "flagscale", deadline=None, suppress_health_check=[HealthCheck.too_slow], print_blob=True
)
settings.load_profile("flagscale")

# A shell that runs the tests in the background makes them, and so all jobs that they start, ignore SIGINT.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)


_FILES: set[Path] = set()


def pytest_runtest_setup(item: pytest.Item) -> None:
    """Spare the collector what is there when a file of tests begins: the tests themselves, and all imports.

    Once tests have imported an engine, it takes a third of the time of the unit tests.
    """
    if item.path not in _FILES:
        _FILES.add(item.path)
        gc.collect()
        gc.freeze()


def pytest_addoption(parser: pytest.Parser, pluginmanager: pytest.PytestPluginManager) -> None:
    parser.addoption("--slow", action="store_true", help="run the slow tests too (make test-all)")
    if pluginmanager.hasplugin("xdist"):
        pluginmanager.import_plugin("tests.scheduling")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if not config.getoption("--slow"):
        slow = [item for item in items if item.get_closest_marker("slow")]
        config.hook.pytest_deselected(items=slow)
        items[:] = [item for item in items if item not in slow]


def pytest_make_parametrize_id(val: object, argname: str) -> str | None:
    """Name bytes by their argument: compressed ones hold the time, but all processes must agree on names."""
    return argname if isinstance(val, bytes) else None
