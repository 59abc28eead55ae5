"""What runs on each host around the engine: the supervisor, its guard, and the commands that start, stop and look."""
