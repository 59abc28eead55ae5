"""Jobs without an engine: their plans, and the processes that stand for the engine."""
