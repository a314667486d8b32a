"""Shards of a store that are open, or being opened by threads before they are wanted."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from threading import Lock
from typing import Literal, final

from dictlearn.activations.protocol import ActivationStore, Shard

log = logging.getLogger(__name__)

OnDamage = Literal["stop", "skip"]


@final
class OpenShards:
    """Opens shards ahead, and what a damaged one comes to.

    Args:
        sites: of each shard.
        threads: that open shards: they compare hashes, and fetch what is not on this machine.
        on_damage: "stop", or "skip" to leave out a shard that can't be read, with a warning.
    """

    def __init__(
        self, store: ActivationStore, sites: Sequence[str], threads: int, on_damage: OnDamage
    ):
        self._store, self._sites, self._skips = store, tuple(sites), on_damage == "skip"
        self._pool = ThreadPoolExecutor(threads, thread_name_prefix="shards")
        self._opening: dict[int, Future[Shard | None]] = {}
        self._left_out: set[int] = set()
        self._lock = Lock()

    def get(self, number: int, soon: Sequence[int] = ()) -> Shard | None:
        """A shard, None where it is left out. `soon` are those to have open; all others are closed.

        Raises ValueError, naming the file and the key, where a shard is damaged and not left out.
        """
        with self._lock:
            wanted = dict.fromkeys([number, *soon])
            self._opening = {n: f for n, f in self._opening.items() if n in wanted}
            for one in wanted:
                if one not in self._opening:
                    self._opening[one] = self._pool.submit(self._open, one)
            opening = self._opening[number]
        try:
            return opening.result()
        except BaseException:
            with self._lock:
                self._opening.pop(number, None)  # what is tried again may go well
            raise

    def _open(self, number: int) -> Shard | None:
        try:
            return self._store.shard(number, self._sites)
        except (ValueError, OSError) as error:
            if not self._skips:
                raise damage(error) from error
            self.leave_out(number, str(error))
            return None

    def leave_out(self, number: int, why: str) -> None:
        """Says once that a shard is left out."""
        if number not in self._left_out:
            self._left_out.add(number)
            log.warning("source.on_damage=skip leaves out a shard: %s", why)
        rows = self._store.info.shard_rows
        if not any(n and number not in self._left_out for number, n in enumerate(rows)):
            raise ValueError("source.path: no shard that can be read has a row")


def damage(error: Exception | str) -> ValueError:
    return ValueError(
        f"source.on_damage=stop: {error}; source.on_damage=skip leaves such a shard out, and "
        f"`dictlearn cache` with verify=true makes it anew"
    )
