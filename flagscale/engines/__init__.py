"""Engine adapters: each turns an `Experiment` into a `Job`, and refuses what its engine cannot run."""
