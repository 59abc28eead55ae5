"""Stand-ins for parts of `torch.cuda` on a machine without CUDA: streams, events, memory, a device."""

from __future__ import annotations

import os
import types
from typing import Any


class Stream:
    """A CUDA stream on which everything runs in program order, so there is never anything to wait for."""

    def __init__(self, *args: Any, **kwargs: Any) -> None: ...

    def __enter__(self) -> Stream:
        return self

    def __exit__(self, *exc: object) -> None: ...

    def synchronize(self) -> None: ...

    def wait_stream(self, stream: Stream) -> None: ...

    def wait_event(self, event: Event) -> None: ...

    def record_event(self, event: Event | None = None) -> Event:
        return event or Event()

    def query(self) -> bool:
        return True


class Event:
    """A CUDA event that is always complete."""

    def __init__(self, *args: Any, **kwargs: Any) -> None: ...

    def record(self, stream: Stream | None = None) -> None: ...

    def wait(self, stream: Stream | None = None) -> None: ...

    def synchronize(self) -> None: ...

    def query(self) -> bool:
        return True

    def elapsed_time(self, end: Event) -> float:
        return 0.0


def resident_bytes() -> int:
    """Return the resident memory of this process, which stands for device memory on a CPU."""
    with open("/proc/self/statm", encoding="ascii") as statm:
        return int(statm.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def device_properties() -> types.SimpleNamespace:
    """Return stand-in device properties: the oldest architecture, with the memory of this host."""
    total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return types.SimpleNamespace(
        name="cpu", major=0, minor=0, total_memory=total, multi_processor_count=os.cpu_count()
    )


def memory_stats() -> dict[str, int]:
    """Return stand-in statistics of the allocator."""
    held = resident_bytes()
    names = ("reserved_bytes.all.current", "allocated_bytes.all.current", "allocated_bytes.all.peak")
    return {**dict.fromkeys(names, held), "allocation.all.current": 0}
