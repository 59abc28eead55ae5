"""Pure models of what a job needs and how long it takes, from the engine's arguments; see docs/planner.md."""
