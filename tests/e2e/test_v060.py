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


@pytest.mark.slow
def test_a_training_follows_the_stablelm2_schedule(make_experiment: Make) -> None:
    """Four samples per step. The logged rate is that of the next step, so it counts the samples trained."""
    prefix = "+train.model.optimizer.lr_decay_stablelm2"
    job = make_experiment(
        "train.model.train_iters=9",
        "train.model.optimizer.lr_warmup_iters=2",
        "train.model.optimizer.lr_decay_style=stablelm2-scheduler",
        f"{prefix}_cosine_samples=16",
        f"{prefix}_cosine_max_lr=0.01",
        f"{prefix}_cosine_period_samples=32",
        f"{prefix}_rsqrt_samples=8",
        f"{prefix}_decay_samples=8",
        f"{prefix}_alpha=0.01",
        f"{prefix}_beta=3",
        "train.system.checkpoint.save_interval=5",
        "train.model.optimizer.override_opt_param_scheduler=false",
        "train.model.eval_interval=100",
    )
    done = job("test", "+train.system.exit_interval=5")
    assert done.code == 0, done.out + done.err
    resumed = job("test")
    assert resumed.code == 0, resumed.out + resumed.err
    warm_up = [0.0015, 0.003]
    cosine = [0.001 + 0.0045 * (1 - 0.5**0.5), 0.001]
    root = [0.01 / 8**0.5, 0.01 / 9**0.5]
    decay = [(0.01 / 3 + 0.0003) / 2, 0.0003, 0.0003]
    rates = [record["learning_rate"] for record in job.metrics()]
    assert rates == pytest.approx([*warm_up, *cosine, *root, *decay], rel=1e-6)
