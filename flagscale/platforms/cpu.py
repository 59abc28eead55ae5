"""The host's CPUs: every machine has them, and continuous integration uses nothing else."""

from flagscale.platforms import Platform

BACKEND = "gloo"
"""The collective backend of ranks on CPU; those on chips use their chip's, which only the worker knows."""

CPU = Platform(
    name="cpu",
    count_devices=lambda environ: 1,
    # Hides a GPU from torch if the user chose `cpu` on a machine that has one; one thread per rank, because
    # ranks that each start a thread per core slow each other down.
    env={"CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1"},
    shares_devices=True,
    is_host_processor=True,
)
