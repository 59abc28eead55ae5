"""Real clusters of Slurm for the tests of this folder."""

from __future__ import annotations

from flagscale_testing.slurm.fixtures import (
    make_slurm_cluster,  # noqa: F401
    one_slurm_cluster,  # noqa: F401
)
