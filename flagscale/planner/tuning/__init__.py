"""The choices of a tuner: its space, its legal candidates, the next one, and what trials have taught."""
