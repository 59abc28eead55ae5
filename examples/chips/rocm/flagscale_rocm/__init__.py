"""AMD GPUs under ROCm: the objects for the launcher (`platform`) and for the training worker (`chip`)."""
