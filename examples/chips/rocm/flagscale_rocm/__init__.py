"""AMD GPUs under ROCm: what the launcher (`platform`) and the training worker (`chip`) ask of a chip."""
