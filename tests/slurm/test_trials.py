"""Random faults in a row, a few of `python -m tests.slurm.trials`."""

from __future__ import annotations

from pathlib import Path

import pytest

from flagscale_testing.slurm.cluster import SlurmCluster
from tests.slurm.trials import Trials


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_no_checkpoint_is_lost_and_nothing_is_left_over(slurm_cluster: SlurmCluster, tmp_path: Path) -> None:
    trials = Trials(slurm_cluster, tmp_path / "job", seed=0)
    for number in range(1, 6):
        trials.run(number)
