"""The files of a run: who owns each path, state file, log and environment variable."""
