"""Open the shards of a store in threads, before they are read."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from threading import Lock
from typing import Literal, final

from dictlearn.activations.protocol import Shard, Shards

log = logging.getLogger(__name__)

OnDamage = Literal["stop", "skip"]


@final
class OpenShards:
    """Opens shards ahead, and refuses or skips damaged ones.

    Args:
        sites: the sites to open of each shard.
        threads: threads that open shards; they compare hashes and download files.
        on_damage: "stop", or "skip" to leave out a shard that can't be read, with a warning.
    """

    def __init__(self, store: Shards, sites: Sequence[str], threads: int, on_damage: OnDamage):
        self._store, self._sites, self._skips = store, tuple(sites), on_damage == "skip"
        self._pool = ThreadPoolExecutor(threads, thread_name_prefix="shards")
        self._opening: dict[int, Future[Shard | None]] = {}
        self._left_out: set[int] = set()
        self._lock = Lock()

    def get(self, number: int, soon: Sequence[int] = ()) -> Shard | None:
        """A shard, or None if it is left out. Opens the shards in `soon` too, and closes all others.

        Raises ValueError, naming the file and the key, if the shard is damaged and not left out.
        """
        with self._lock:
            wanted = dict.fromkeys([number, *soon])
            if wanted.keys() != self._opening.keys():
                kept = {n: f for n, f in self._opening.items() if n in wanted}
                new = [n for n in wanted if n not in kept]
                self._opening = kept | {n: self._pool.submit(self._open, n) for n in new}
            opening = self._opening[number]
        try:
            return opening.result()
        except BaseException:
            with self._lock:
                self._opening.pop(number, None)  # a second try may succeed
            raise

    def _open(self, number: int) -> Shard | None:
        try:
            return self._store.shard(number, self._sites)
        except (ValueError, OSError) as error:
            if not self._skips:
                raise damage(error) from error
            self.leave_out(number, str(error))
            return None

    def leave_out(self, number: int, reason: str) -> None:
        """Leaves out a shard, with one warning."""
        if number not in self._left_out:
            self._left_out.add(number)
            log.warning("source.on_damage=skip leaves out a shard: %s", reason)
        rows = self._store.info.shard_rows
        if not any(n and number not in self._left_out for number, n in enumerate(rows)):
            raise ValueError("source.path: no shard that can be read has a row")


def damage(error: Exception | str) -> ValueError:
    return ValueError(
        f"source.on_damage=stop: {error}; source.on_damage=skip leaves such a shard out, and "
        f"`dictlearn cache` with verify=true makes one that it wrote again"
    )
