"""What runs on each host around the engine: supervisor, guard, and the commands that start, stop and look."""
