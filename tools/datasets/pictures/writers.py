"""Write parts in several processes, which end with the one that started them, however that ends."""

import multiprocessing
import os
import signal
from collections.abc import Iterable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path

from flagscale.errors import UserError
from flagscale.linux import die_with
from tools.datasets.pictures.shards import Part, Settings, Stored, write_part


def written(
    parts: Iterable[Part], folder: Path, settings: Settings, processes: int
) -> Iterator[tuple[Stored, bool]]:
    """Yield what `write_part` returns for each part, as they end; few parts are in memory at a time.

    Raises:
        OSError: of a part; parts that have begun end first.
        UserError: a process was killed.
    """
    if processes == 1:
        for part in parts:
            yield write_part(part, folder, settings)
        return
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(processes, context, _begin, (os.getpid(),)) as pool:
        begun: set[Future[tuple[Stored, bool]]] = set()
        try:
            for part in parts:
                begun.add(pool.submit(write_part, part, folder, settings))
                if len(begun) > processes:
                    done, begun = wait(begun, return_when=FIRST_COMPLETED)
                    yield from (one.result() for one in done)
            while begun:
                done, begun = wait(begun, return_when=FIRST_COMPLETED)
                yield from (one.result() for one in done)
        except BrokenProcessPool:
            raise UserError(
                "a process that writes a part was killed, perhaps for its memory; run the same command again "
                "to continue, with fewer --processes"
            ) from None
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise


def _begin(parent: int) -> None:
    """Leave Ctrl-C to the parent, and end if it was killed: its lock is free, and another run may begin."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    die_with(parent)
