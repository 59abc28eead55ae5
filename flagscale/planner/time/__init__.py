"""The time of a step: kernels, layers, collectives, stages, and the step as a whole."""
