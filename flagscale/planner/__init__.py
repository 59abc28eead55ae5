"""Pure models of what a job needs, from the engine's arguments: memory of layers."""
