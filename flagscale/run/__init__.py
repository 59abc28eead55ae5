"""The files of a run: the owners of every path, state file, log and environment variable."""
