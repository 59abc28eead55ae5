"""The host's CPUs: every machine has them, and continuous integration uses nothing else."""

from flagscale.platforms import Platform

CPU = Platform(
    name="cpu",
    count_devices=lambda environ: 1,
    # Hides a GPU from torch if the user chose `cpu` on a machine that has one; one thread per rank, because
    # ranks that each start a thread per core slow each other down.
    env={"CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1"},
    backend="gloo",
    shares_devices=True,
    is_host_processor=True,
)
