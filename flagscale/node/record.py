"""The state of a run on this host, as its supervisor records it."""

from __future__ import annotations

from pathlib import Path

from flagscale.run.state import HostState


class StateRecord:
    """A state, and the file that holds it."""

    def __init__(self, path: Path, state: HostState) -> None:
        self._path, self.state = path, state

    def write(self, **changes: object) -> None:
        """Record a change. Raises OSError if it cannot be written."""
        self.state = self.state.changed(**changes)
        self.state.write(self._path)

    def note(self, **changes: object) -> bool:
        """Record a change after a confirmed start, if that is possible; a full disk must not end a job."""
        try:
            self.write(**changes)
        except OSError as error:
            print(f"flagscale: cannot write the state of the run: {error}", flush=True)
            return False
        return True
