"""The code that runs on each host around the engine: supervisor, guard, and the commands of the launcher."""
