"""Options that tools which prepare data share: how much they hold out, and whether numbers can be used."""

from flagscale.errors import Problem, UserError
from flagscale.formats import option_of

VALID_EVERY = 50
"""One record of so many is held out for validation."""


def check_numbers(valid_every: int, **at_least_one: int) -> None:
    """Raise UserError for values of `--valid-every` and of other options that cannot be used."""
    problems = []
    if valid_every == 1 or valid_every < 0:
        what = f"--valid-every {valid_every}: must be 2 or more, or 0 to hold out nothing"
        problems.append(Problem(what))
    for name, value in at_least_one.items():
        if value < 1:
            problems.append(Problem(f"{option_of(name)} {value}: must be 1 or more"))
    if problems:
        raise UserError(problems)
