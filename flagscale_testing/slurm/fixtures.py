"""Fixtures that make clusters of Slurm; a conftest imports those that its tests need."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack

import pytest

from flagscale_testing.slurm.cluster import SlurmCluster, slurm_cluster
from flagscale_testing.slurm.requirements import missing_for_cluster

type MakeSlurmCluster = Callable[..., SlurmCluster]


@pytest.fixture(scope="module")
def make_slurm_cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[MakeSlurmCluster]:
    """`make_slurm_cluster(**settings)` makes a cluster that lasts until the end of the module.

    The settings are those of `slurm_cluster`.
    """
    with ExitStack() as clusters:

        def make(**settings: object) -> SlurmCluster:
            if reason := missing_for_cluster(settings.get("proctrack", "linuxproc")):
                pytest.skip(reason)
            folder = tmp_path_factory.mktemp("slurm")
            return clusters.enter_context(slurm_cluster(folder, **settings))  # type: ignore[arg-type]

        yield make


@pytest.fixture(scope="module", name="slurm_cluster")
def one_slurm_cluster(make_slurm_cluster: MakeSlurmCluster) -> SlurmCluster:
    """A cluster of three nodes with the default settings."""
    return make_slurm_cluster()
