"""Fixtures that make farms; a conftest imports those that its tests need."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path

import pytest

from flagscale_testing.farm.loopback import LoopbackFarm, loopback_farm
from flagscale_testing.farm.namespaces import NamespaceFarm, namespace_farm
from flagscale_testing.farm.requirements import missing_for_loopback, missing_for_namespaces

type MakeLoopbackFarm = Callable[[int], LoopbackFarm]
type MakeNamespaceFarm = Callable[..., NamespaceFarm]


@pytest.fixture(scope="module")
def make_loopback_farm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[MakeLoopbackFarm]:
    """`make_loopback_farm(count)` makes a farm that lasts until the end of the module."""
    if reason := missing_for_loopback():
        pytest.skip(reason)
    with ExitStack() as farms:

        def make(count: int) -> LoopbackFarm:
            return farms.enter_context(loopback_farm(tmp_path_factory.mktemp("farm"), count))

        yield make


@pytest.fixture(scope="module")
def make_namespace_farm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[MakeNamespaceFarm]:
    """`make_namespace_farm(count=3, private=())` makes a farm that lasts until the end of the module."""
    if reason := missing_for_namespaces():
        pytest.skip(reason)
    with ExitStack() as farms:

        def make(count: int = 3, private: Sequence[Path] = ()) -> NamespaceFarm:
            return farms.enter_context(namespace_farm(tmp_path_factory.mktemp("farm"), count, private))

        yield make
