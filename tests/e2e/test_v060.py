"""Real trainings with keys of FlagScale v0.6.0 that no engine knows."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from tests.e2e.conftest import Experiment

Make = Callable[..., Experiment]


@pytest.mark.slow
def test_a_single_mesh_with_uneven_layers_trains_like_even_stages(make_experiment: Make) -> None:
    """The layout of v0.6.0's example with one mesh, on two ranks."""
    common = ("train.model.num_layers=4", "train.model.train_iters=4")
    mesh = (
        "+train.system.enable_hetero=true",
        "+train.system.hetero_process_meshes=[1,1,1,1,2]",
        "+train.system.hetero_pipeline_layer_split=[3,1]",
        "+train.system.hetero_device_types=[A800]",
        "+train.system.hetero_current_device_type=A800",
    )
    curves = []
    for more in ((), mesh):
        job = make_experiment(*common, *more)
        done = job("test")
        assert done.code == 0, done.out + done.err
        assert "2 ranks on 1 host (pp2)" in done.out
        curves.append([record["lm_loss"] for record in job.metrics()])
    assert len(curves[0]) == 4
    assert curves[1] == pytest.approx(curves[0], abs=1e-6)
