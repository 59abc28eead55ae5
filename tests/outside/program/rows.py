"""The data: rows of digits, computed rather than read."""

import random

SEPARATOR = 10


def row(number, digits, values, task):
    """Return the tokens of one sample: question, separator and answer."""
    question = random.Random(number).choices(values, k=digits)
    answer = question[::-1] if task == "reverse" else question
    return [*question, SEPARATOR, *answer, SEPARATOR]
