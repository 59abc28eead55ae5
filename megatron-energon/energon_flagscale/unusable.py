"""The error of a sample that cannot be used: it is skipped and counted, and the training goes on."""


class UnusableSample(ValueError):
    """A sample that cannot be used; the message says why, as a user would want to read it."""
