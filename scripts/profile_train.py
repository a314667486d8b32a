"""Where the time of `python train.py` goes, on pico: who has which share of a step.

    python scripts/profile_train.py                       # dict=sae, clt and molt, 192 steps each
    python scripts/profile_train.py --kinds sae --set dict.k=64
    python scripts/profile_train.py --quick --anyway      # a rehearsal; its figures mean nothing

Timers around the real functions; each has the time that is not spent in another of them, so that the
shares add up to one:

    model        the language model's forward pass, up to the last site
    forward      encoder, selection, decoder and losses        backward    their gradients
    optimiser    projecting, measuring and clipping gradients, Adam, decoder rows back to norm 1
    data         text, tokens and the shuffle buffer           logging     metrics, and writing them
    other        Lightning's loop and what nobody above has

Steps are counted in whole refills of the buffer, since the model runs at refills alone. Checkpoints are
timed apart: the one at the end of the run, as a share where there is one every 1000 steps. Figures are
appended to benchmarks/results/profile.json.
"""

from __future__ import annotations

import argparse
import logging
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any
from unittest.mock import patch

import lightning
import torch
from hydra.utils import get_class
from omegaconf import DictConfig

sys.path.insert(0, str(Path(__file__).resolve().parent))
from benches import machine
from benches.page import PARTS, profile_table
from peers import results
from peers.speed import synchronise

from dictlearn.config import compose
from dictlearn.sources import reader
from dictlearn.train.callbacks.checkpoint import CheckpointCallback
from dictlearn.train.callbacks.metrics import RunLogger
from dictlearn.train.module import DictionaryTraining
from dictlearn.train.trainee import Trainee
from dictlearn.verbs import build
from dictlearn.verbs.train import SAMPLE_TOKENS, fit

WORK = ("model", "forward", "backward", "optimiser")  # model, dictionary and optimiser
BAR = 0.1  # of a step, at most, outside WORK
CHECKPOINT, CHECKPOINT_EVERY = "checkpoint", 1000


class Clock:
    """Seconds by part; a part that is inside another stops the other's clock."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = defaultdict(float)
        self.running = False
        self._parts = ["other"]
        self._last = 0.0

    def tick(self) -> None:
        """Gives the time since the last tick to the part that it was spent in."""
        synchronise()
        now = time.perf_counter()
        if self.running:
            self.seconds[self._parts[-1]] += now - self._last
        self._last = now

    @contextmanager
    def part(self, name: str) -> Iterator[None]:
        self.tick()
        self._parts.append(name)
        try:
            yield
        finally:
            self.tick()
            self._parts.pop()

    def timed(self, name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        def wrapper(*args: Any, **kwargs: Any) -> Any:
            with self.part(name):
                return function(*args, **kwargs)

        return wrapper


class Window:
    """Runs the clock from one request for a batch to another, some steps later."""

    def __init__(self, clock: Clock, warm: int, steps: int):
        self.clock, self.first, self.last = clock, warm, warm + steps
        self.requests = 0

    def request(self) -> None:
        if self.requests in (self.first, self.last):
            self.clock.tick()
            self.clock.running = self.requests == self.first
        self.requests += 1


@contextmanager
def timers(cfg: DictConfig, clock: Clock, window: Window) -> Iterator[None]:
    """Puts the clock's parts around the functions of a run."""
    source, optimiser = get_class(cfg.source._target_), get_class(cfg.optim._target_)
    parts = {
        (reader, "capture_inputs"): "model",
        (Trainee, "forward"): "forward",
        (lightning.LightningModule, "backward"): "backward",
        (DictionaryTraining, "on_before_optimizer_step"): "optimiser",
        (Trainee, "after_step"): "optimiser",
        (DictionaryTraining, "_log"): "logging",
        (RunLogger, "log_metrics"): "logging",
    }
    next_batch, step = clock.timed("data", source.next_batch), optimiser.step
    save = CheckpointCallback._save

    def requested(self: Any) -> Any:
        window.request()
        return next_batch(self)

    def stepped(self: Any, closure: Callable[[], Any] | None = None) -> Any:
        # Lightning calls the module from within the optimiser's step.
        with clock.part("optimiser"):
            return step(self, None if closure is None else clock.timed("other", closure))

    def saved(*args: Any) -> None:
        start = time.perf_counter()
        save(*args)
        clock.seconds[CHECKPOINT] += time.perf_counter() - start  # after the last step

    with ExitStack() as stack:
        for (owner, name), part in parts.items():
            stack.enter_context(patch.object(owner, name, clock.timed(part, getattr(owner, name))))
        stack.enter_context(patch.object(source, "next_batch", requested))
        stack.enter_context(patch.object(optimiser, "step", stepped))
        stack.enter_context(patch.object(CheckpointCallback, "_save", saved))
        yield


def profile(cfg: DictConfig, warm: int, steps: int) -> dict[str, float]:
    """Seconds of each part over `steps` steps of the run that cfg says, after `warm` others."""
    clock = Clock()
    window = Window(clock, warm, steps)
    info = build.build_info(cfg)
    lightning.seed_everything(cfg.seed, workers=True, verbose=False)
    dictionary = build.build_dictionary(cfg, info)
    training = build.build_training(cfg, dictionary, build.build_beside(cfg, dictionary))
    lm = build.build_model(cfg)
    build.connect(cfg, training, lm)
    source = build.build_source(cfg, lm, dictionary, "train")
    sample = source.sample(SAMPLE_TOKENS)
    for _, trainee in training.named_trainees():
        trainee.to(source.device).begin(sample)
    Path(cfg.run_dir).mkdir(parents=True, exist_ok=True)
    with timers(cfg, clock, window):
        fit(cfg, training, source, None)
    return clock.seconds


def refill(cfg: DictConfig) -> int:
    """Steps from one refill of the shuffle buffer to the next."""
    return max(1, cfg.source.buffer_tokens // 2 // cfg.batch_tokens)


def described(kind: str, overrides: list[str], steps: int, folder: Path) -> dict[str, Any]:
    words = [f"dict={kind}", "trainer=auto", "callbacks.bar=null", f"run_dir={folder}", *overrides]
    every = refill(compose("train", words))
    measured = -(-steps // every) * every
    # One step more: the clock stops at the request for its batch.
    cfg = compose("train", [*words, f"steps={every + measured + 1}"])
    watch = machine.Watch()
    seconds = profile(cfg, every, measured)
    share = watch.share()
    saved = seconds.pop(CHECKPOINT, 0.0)
    total = sum(seconds.values())
    shares = {part: seconds[part] / total for part in PARTS}
    step = total / measured
    return {
        "kind": kind,
        "overrides": overrides,
        "device": build.accelerator(cfg),
        "batch_tokens": cfg.batch_tokens,
        "steps": measured,
        "others": round(share, 4),
        "ms_a_step": 1e3 * step,
        "shares": shares,
        "outside": 1 - sum(shares[part] for part in WORK),
        "checkpoint_ms": 1e3 * saved,
        "checkpoint_share": saved / CHECKPOINT_EVERY / step,
    }


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--kinds", nargs="+", default=["sae", "clt", "molt"])
    parser.add_argument("--set", nargs="*", default=[], help="overrides for every run")
    parser.add_argument("--steps", type=int, default=192, help="at least; whole refills are taken")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--quick", action="store_true", help="tiny and short: a rehearsal")
    parser.add_argument("--anyway", action="store_true", help="also where others use the cores")
    parser.add_argument("--results", type=Path, help="folder for the figures")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    overrides = list(options.set)
    if options.quick:
        overrides += ["batch_tokens=512", "source.buffer_tokens=4096", "source.lm_batch_windows=1"]
        options.steps = 8
    rows = []
    try:
        if not options.anyway:
            machine.refuse_busy()
        with tempfile.TemporaryDirectory() as scratch:
            for kind in options.kinds:
                rows.append(described(kind, overrides, options.steps, Path(scratch) / kind))
                print(profile_table(rows[-1:]), flush=True)
        if not options.anyway and any(row["others"] > machine.QUIET for row in rows):
            raise ValueError(
                "other processes used the cores meanwhile: not recorded; want "
                f"{machine.QUIET:.0%} at most, or --anyway"
            )
    except ValueError as mistake:
        print(mistake, file=sys.stderr)
        return 2
    print(profile_table(rows))
    folder = options.results or (Path(tempfile.mkdtemp()) if options.quick else results.RESULTS)
    record = {"device": rows[0]["device"], "versions": machine.versions(), "bar": BAR, "rows": rows}
    print(f"appended to {results.append('profile', record, folder)}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
