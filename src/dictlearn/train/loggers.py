"""Loggers that never end a run: their errors are counted, reported once, and the call is tried again."""

from __future__ import annotations

from argparse import Namespace
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol, final, runtime_checkable

from lightning.pytorch.loggers import Logger, WandbLogger
from lightning.pytorch.utilities import rank_zero_only

from dictlearn import escape

HELD_OUT = "held_out/"  # before the names of the final figures


@runtime_checkable
class KeepsRows(Protocol):
    """A logger that keeps what it could not write, and tries again with the next row."""

    @property
    def unwritten(self) -> int: ...


def wandb_logger(
    project: str = "dictlearn",
    name: str | None = None,
    save_dir: str = ".",
    offline: bool = True,
    group: str | None = None,
    tags: Sequence[str] = (),
    log_dictionary: bool = False,
    **options: Any,
) -> WandbLogger:
    """Lightning's WandbLogger, which also receives `options`. Only `guarded` reads `log_dictionary`.

    Each has a run of its own in W&B, whatever others this process has begun.
    """
    del log_dictionary
    own = {"reinit": "create_new", **options}
    return WandbLogger(
        name, save_dir, offline=offline, project=project, group=group, tags=list(tags), **own
    )


@final
class Guarded(Logger):
    """A logger of any kind, under the user's key for it. The run survives its failures.

    `start` is the exception: the user can mend a failure before any work is done.
    """

    def __init__(self, key: str, inner: Logger, log_dictionary: bool = False):
        super().__init__()
        self.key, self.inner, self.log_dictionary = key, inner, log_dictionary
        self.lost = 0  # rows that could not be written
        self.failure: str | None = None  # the last call's
        self._said = False

    @property
    def name(self) -> str | None:
        return self.inner.name

    @property
    def version(self) -> int | str | None:
        return self.inner.version

    @property
    def save_dir(self) -> str | None:
        return self.inner.save_dir

    @rank_zero_only
    def start(self, config: Mapping[str, Any]) -> None:
        """Opens the logger's connection or file, and gives it the configuration.

        Raises:
            ValueError: whatever is wrong, such as a server that cannot be reached.
        """
        try:
            self.inner.log_hyperparams(dict(config))
        except Exception as error:
            without = f"~{self.key} trains without it"
            if isinstance(self.inner, WandbLogger):
                without = f"{self.key}.offline=true keeps the record here, {without}"
            raise ValueError(f"{self.key}: cannot start: {_line(error)}; {without}") from error

    @rank_zero_only
    def log_hyperparams(
        self, params: dict[str, Any] | Namespace, *args: Any, **kwargs: Any
    ) -> None:
        self._try(lambda: self.inner.log_hyperparams(params, *args, **kwargs))

    @rank_zero_only
    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        if not self._try(lambda: self.inner.log_metrics(dict(metrics), step)):
            self.lost += 1

    @rank_zero_only
    def save(self) -> None:
        self._try(self.inner.save)

    @rank_zero_only
    def finalize(self, status: str) -> None:
        self._try(lambda: self.inner.finalize(status))

    @rank_zero_only
    def finish(self, figures: Mapping[str, float | None], step: int, dictionary: Path) -> None:
        """Logs the held-out figures, except to the run's own files, which have them.

        W&B also receives the dictionary, if `log_dictionary` asks for it.
        """
        if isinstance(self.inner, KeepsRows):
            return
        known = {HELD_OUT + name: value for name, value in figures.items() if value is not None}
        self.log_metrics(known, step)
        if isinstance(self.inner, WandbLogger) and self.log_dictionary:
            run = self.inner.experiment
            self._try(lambda: _upload(run, dictionary))

    @rank_zero_only
    def close(self, failed: bool) -> None:
        """Ends W&B's record, so that the next run in this process begins another."""
        if isinstance(self.inner, WandbLogger) and self.inner._experiment is not None:
            run = self.inner.experiment
            self._try(lambda: run.finish(exit_code=int(failed)))

    @property
    def summary(self) -> str | None:
        """A sentence on the rows that are missing from the record; None if none are."""
        lost = self.inner.unwritten if isinstance(self.inner, KeepsRows) else self.lost
        if not lost and self.failure is None:
            return None
        rows = f"{lost} row{'s' * (lost != 1)} of metrics could not be written" if lost else ""
        return f"{self.key}: {'; '.join(filter(None, (rows, self.failure)))}"

    def _try(self, call: Callable[[], object]) -> bool:
        try:
            call()
        except Exception as error:
            self.failure = _line(error)
            if not self._said:
                self._said = True
                escape.say(f"{self.key}: {self.failure}; training goes on, and it is tried again")
            return False
        self.failure = None
        return True


@contextmanager
def guarded(loggers: Mapping[str, Logger], config: Mapping[str, Any]) -> Iterator[list[Guarded]]:
    """The loggers of `logger.<name>`, started. At the end it reports the rows that each could not write.

    Raises:
        ValueError: before work starts, if a logger cannot start.
    """
    keys = config.get("logger") or {}
    guards = [
        Guarded(f"logger.{name}", logger, bool((keys.get(name) or {}).get("log_dictionary")))
        for name, logger in loggers.items()
    ]
    failed = True
    try:
        for guard in guards:
            guard.start(config)
        yield guards
        failed = False
    finally:
        for guard in guards:
            guard.close(failed)
            if rank_zero_only.rank == 0 and guard.summary:  # type: ignore[attr-defined]
                escape.say(guard.summary)


def _upload(run: Any, dictionary: Path) -> None:
    from wandb import Artifact

    artifact = Artifact(f"dictionary-{run.id}", type="dictionary")
    artifact.add_dir(str(dictionary))
    run.log_artifact(artifact)


def _line(error: BaseException) -> str:
    """The first line of an error, or its class if it has no text."""
    return str(error).strip().partition("\n")[0] or type(error).__name__
