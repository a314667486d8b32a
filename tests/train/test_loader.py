"""A killed run sees, once resumed, exactly the batches it had not seen."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import lightning
import pytest
import torch
from lightning.pytorch.callbacks import Callback
from torch import Tensor, nn

from dictlearn.sources.synthetic import SyntheticSource
from dictlearn.train.dealt import DealtStreams
from dictlearn.train.loader import SourceLoader
from dictlearn.types import Batch

STEPS, BATCH = 11, 96


def source(seed: int = 0) -> SyntheticSource:
    return SyntheticSource(batch_tokens=BATCH, seed=seed, n_features=8, width=4)


def expected(n: int) -> list[Tensor]:
    stream = source()
    return [stream.next_batch().x_NSD for _ in range(n)]


class Records(lightning.LightningModule):
    """Keeps every batch it is given."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(4))
        self.seen: list[Tensor] = []

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        assert batch.y_NTD is batch.x_NSD
        self.seen.append(batch.x_NSD)
        return (batch.x_NSD * self.weight).square().mean() + self.weight.sum()

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.1)


class Killed(Exception):
    pass


class SaveThenDie(Callback):
    """Saves after `save` batches and dies in the middle of the batch `die`."""

    def __init__(self, save: int, die: int, path: Path):
        self.save, self.die, self.path = save, die, path

    def on_train_batch_start(self, trainer: Any, module: Any, batch: Any, batch_idx: int) -> None:
        if batch_idx == self.die:
            raise Killed

    def on_train_batch_end(
        self, trainer: Any, module: Any, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if batch_idx + 1 == self.save:
            trainer.save_checkpoint(self.path)


def fit(
    folder: Path,
    steps: int,
    resume: Path | None = None,
    accumulate: int = 1,
    callbacks: list[Callback] | None = None,
    one_pass: bool = False,
) -> Records:
    module = Records()
    trainer = lightning.Trainer(
        accelerator="cpu",
        max_steps=-1 if one_pass else steps,
        max_epochs=1 if one_pass else -1,
        accumulate_grad_batches=accumulate,
        default_root_dir=folder,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        callbacks=callbacks,
    )
    try:
        trainer.fit(module, SourceLoader(source(), steps * accumulate), ckpt_path=resume)
    except Killed:
        assert callbacks
    return module


def same(a: list[Tensor], b: list[Tensor]) -> bool:
    return len(a) == len(b) and all(torch.equal(x, y) for x, y in zip(a, b, strict=True))


def test_a_run_sees_the_stream(tmp_path):
    assert same(fit(tmp_path, STEPS).seen, expected(STEPS))


@pytest.mark.parametrize("accumulate", [1, 3])
@pytest.mark.parametrize("save", [1, 4, STEPS - 1])
def test_a_killed_run_goes_on_with_the_next_batch(tmp_path, save, accumulate):
    checkpoint = tmp_path / "checkpoint.ckpt"
    save *= accumulate
    die = min(save + 2, STEPS * accumulate - 1)
    killed = fit(tmp_path, STEPS, None, accumulate, [SaveThenDie(save, die, checkpoint)])
    resumed = fit(tmp_path, STEPS, checkpoint, accumulate)
    batches = expected(STEPS * accumulate)
    assert same(killed.seen, batches[:die])
    assert same(resumed.seen, batches[save:])


def test_a_resumed_pass_is_no_longer_than_a_whole_one(tmp_path):
    """The loader's length ends the run, not the number of steps asked for."""
    checkpoint = tmp_path / "checkpoint.ckpt"
    fit(tmp_path, STEPS, callbacks=[SaveThenDie(4, 5, checkpoint)], one_pass=True)
    assert same(fit(tmp_path, STEPS, checkpoint, one_pass=True).seen, expected(STEPS)[4:])


def test_a_run_can_be_killed_twice(tmp_path):
    first, second = tmp_path / "first.ckpt", tmp_path / "second.ckpt"
    fit(tmp_path, STEPS, callbacks=[SaveThenDie(3, 4, first)])
    fit(tmp_path, STEPS, first, callbacks=[SaveThenDie(7, 9, second)])
    assert same(fit(tmp_path, STEPS, second).seen, expected(STEPS)[7:])


def test_the_test_would_notice_a_lost_state(tmp_path, monkeypatch):
    checkpoint = tmp_path / "checkpoint.ckpt"
    fit(tmp_path, STEPS, callbacks=[SaveThenDie(4, 5, checkpoint)])
    monkeypatch.setattr(SourceLoader, "load_state_dict", lambda self, state: None)
    assert not same(fit(tmp_path, STEPS, checkpoint).seen, expected(STEPS)[4:])


def test_the_state_is_plain():
    loader = SourceLoader(source(), STEPS)
    next(iter(loader))
    assert loader.state_dict() == {"sources": [{"position": BATCH, "seed": 0}]}
    assert len(loader) == STEPS


def test_a_second_pass_goes_on_with_the_stream():
    loader = SourceLoader(source(), 3)
    seen = [batch.x_NSD for _ in range(2) for batch in loader]
    assert same(seen, expected(6))


def test_another_number_of_processes_is_refused_where_batches_depend_on_it(monkeypatch):
    monkeypatch.setattr(SyntheticSource, "elastic", False, raising=False)
    loader = SourceLoader(source(), STEPS, source)
    state = loader.state_dict()
    with pytest.raises(ValueError, match="began with 2 processes, this one has 1"):
        loader.load_state_dict({**state, "sources": state["sources"] * 2})


def read(states: list, first: int, ranks: int, rounds: int) -> tuple[list[Tensor], list, int]:
    """What `ranks` processes read in turn, and the state after it."""
    dealt = [DealtStreams(source, states, first, rank, ranks) for rank in range(ranks)]
    batches = [one.next_batch().x_NSD for _ in range(rounds) for one in dealt]
    return batches, *dealt[-1].joined([one.own_states() for one in dealt])


@pytest.mark.parametrize("streams", [1, 2, 3])
def test_other_numbers_of_processes_go_on_with_every_row_once(streams):
    def shares() -> list[SyntheticSource]:
        made = [source() for _ in range(streams)]
        for rank, share in enumerate(made):
            share.shard(rank, streams)
        return made

    stream = shares()
    states, first, seen = [share.state() for share in shares()], 0, []
    for ranks, rounds in ((1, 4), (2, 3), (streams, 2), (5, 1), (3, 2)):
        batches, states, first = read(states, first, ranks, rounds)
        seen += batches
    wanted = [stream[n % streams].next_batch().x_NSD for n in range(len(seen))]
    assert same(seen, wanted)


def test_a_loader_deals_and_its_state_is_dealt_again():
    began = [source(), source()]
    for rank, share in enumerate(began):
        share.shard(rank, 2)
    state = {"sources": [share.state() for share in began]}
    wanted = [began[n % 2].next_batch().x_NSD for n in range(9)]
    loader = SourceLoader(source(), 9, source)
    loader.load_state_dict(state)
    batches = iter(loader)
    seen = [next(batches).x_NSD for _ in range(5)]
    state = loader.state_dict()
    assert (len(state["sources"]), state["first"]) == (2, 1)
    again = SourceLoader(source(), 4, source)
    again.load_state_dict(state)
    assert same(seen + [batch.x_NSD for batch in again], wanted)


def test_processes_share_no_row_and_resume_their_own(tmp_path):
    command = [sys.executable, Path(__file__).with_name("loader_worker.py"), tmp_path]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    workers = [subprocess.Popen([*command, str(rank)], env=environment) for rank in range(2)]
    assert [worker.wait(60) for worker in workers] == [0, 0]
    one, other = (json.loads((tmp_path / f"{rank}.json").read_text()) for rank in range(2))
    assert one["sources"] == other["sources"] and len(one["sources"]) == 2
    assert set(one["rows"]).isdisjoint(other["rows"])
