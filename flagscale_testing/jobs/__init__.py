"""Jobs without an engine: their plans, and fake processes in place of the engine."""
