"""The error of a sample that cannot be used: a training skips and counts it, a tool reports it."""


class UnusableSample(ValueError):
    """A sample that cannot be used; the message says why, as a user would want to read it."""
