"""`dictlearn cache`: a model's activations, stored for any number of dictionaries to train on."""

from __future__ import annotations

import re
import shutil
import time
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from hydra.utils import instantiate
from omegaconf import DictConfig

from dictlearn import escape
from dictlearn.activations import layout
from dictlearn.activations.formats.dictlearn import Store
from dictlearn.activations.layout import About
from dictlearn.activations.place import Place, is_remote, opened
from dictlearn.activations.protocol import Origin
from dictlearn.ckpt import lock
from dictlearn.ckpt.resume import CHECKPOINTS
from dictlearn.commands import typed
from dictlearn.disk import leftovers
from dictlearn.disk.replace import check_replaceable
from dictlearn.lm.language_model import LanguageModel
from dictlearn.ranges import Count, Seed
from dictlearn.sources.caching import ShardWriter, WithSpecials, begin, finish
from dictlearn.sources.fingerprint import of_rows
from dictlearn.sources.foreign_caching import WRITERS, ForeignWriter, about_name
from dictlearn.sources.reader import Reader
from dictlearn.types import TextWindows
from dictlearn.verbs import build, fingerprints, storing
from dictlearn.verbs.bars import bars
from dictlearn.verbs.described import listed
from dictlearn.verbs.units import as_bytes
from dictlearn.waiting import duration, waiting_for
from dictlearn.words import counted

SORT = "stored activations"


class Keys:
    """What the keys of conf/cache.yaml take."""

    sites: list[str]
    output: str
    stored_as: Literal["dictlearn", "llamascopium", "saelens"]
    tokens: Count | None
    dtype: Literal["bfloat16", "float16", "float32", "model", "int8"]
    order: Literal["shuffled", "windows"]
    special: Literal["leave_out", "keep"]
    nonfinite: Literal["error", "drop"]
    shard_tokens: Count
    batch_windows: Count
    partition: str
    seed: Seed
    verify: bool
    overwrite: bool


@dataclass(frozen=True)
class Part:
    """One of several processes that share the shards."""

    number: int
    of: int

    def __str__(self) -> str:
        return f"{self.number}/{self.of}"


def main(cfg: DictConfig) -> int:
    part, place = partition(cfg.partition), opened(cfg.output)
    with alone(cfg, part):
        replace_if_told(cfg, place)
        skeleton = build.build_skeleton(cfg)
        with waiting_for("the text, which is being read and cut into tokens"):
            windows = build.build_windows(cfg, skeleton, "train")
        about = described(cfg, skeleton, windows)
        Reader(skeleton, windows, list(about.sites), cfg.nonfinite)  # an unknown site is one now
        shards = wanted(cfg, about)
        if writer := WRITERS.get(cfg.stored_as):
            check_foreign(cfg, writer, skeleton, about)
        begin(place, about, about_file(cfg))
        if not is_remote(cfg.output):
            leftovers.collect(Path(cfg.output) / layout.SHARDS)
        there = writer.there(place, about) if writer else intact(cfg, place)
        missing = [i for i in range(part.number, shards, part.of) if i not in there]
        check_room(cfg, about, missing)
        if missing:
            make(cfg, place, about, windows, missing)
        if writer:
            conclude_foreign(cfg, writer, place, about, shards)
        else:
            conclude(cfg, place, shards)
    return 0


def about_file(cfg: DictConfig) -> str:
    return about_name(cfg.stored_as) if cfg.stored_as in WRITERS else layout.ABOUT


def check_foreign(
    cfg: DictConfig, writer: type[ForeignWriter], skeleton: LanguageModel, about: About
) -> None:
    """Refuses what another tool's format can't hold."""
    writer.check(skeleton, about)
    if cfg.verify:
        raise ValueError(
            f"verify=true: stored_as={cfg.stored_as} has no hashes to compare; want verify=false"
        )


def partition(text: str) -> Part:
    found = re.fullmatch(r"(\d{1,6})/(\d{1,6})", str(text))
    if not found or not int(found[1]) < int(found[2]):
        raise ValueError(
            f"partition={text}: want i/n for part i of n, counted from 0, such as 0/4 to 3/4"
        )
    return Part(int(found[1]), int(found[2]))


def alone(cfg: DictConfig, part: Part) -> AbstractContextManager[None]:
    """Holds this part of the output, so that no two processes make it; at an address nothing does."""
    if is_remote(cfg.output):
        return nullcontext()
    output = Path(cfg.output)
    name = output.name if part.of == 1 else f"{output.name}.{part.number}-{part.of}"
    return lock.writing(output.with_name(name), "cache")


def replace_if_told(cfg: DictConfig, place: Place) -> None:
    """Refuses a folder with anything but a store; with overwrite=true empties it instead."""
    there = place.listed()
    if about_file(cfg) in there:
        return
    if is_remote(cfg.output):
        empty_address(cfg, place)
        return
    output = Path(cfg.output)
    check_replaceable(output, SORT, cfg.overwrite)
    if cfg.overwrite and output.is_dir():
        place.clear()


def empty_address(cfg: DictConfig, place: Place) -> None:
    """The same for an address. Raises ValueError, which names what is there."""
    there, folders = place.listed(), place.folders()
    if not there and not folders:
        return
    if {CHECKPOINTS, "dictionary"} & {*folders}:
        raise ValueError(
            f"output={cfg.output}: holds a run, and overwrite=true deletes no run; want another address"
        )
    if not cfg.overwrite:
        raise ValueError(
            f"output={cfg.output}: holds {min([*there, *folders])}; want an empty address, or "
            f"overwrite=true, which deletes what is there"
        )
    place.clear()


def described(cfg: DictConfig, lm: LanguageModel, windows: TextWindows) -> About:
    """What the store is of, from the configuration, the model's files and the text."""
    sites = tuple(cfg.sites)
    if not sites or len(set(sites)) != len(sites):
        raise ValueError(f"sites=[{','.join(sites)}]: want one site or more, each once")
    files = fingerprints.of_files(cfg)
    origin = Origin(
        model=lm.info.name,
        revision=lm.info.revision,
        weights=files["model.weights"],
        config=files["model.config"],
        tokenizer=files["tokenizer"],
        other=files.get("model.other.weights"),
        text=of_rows(windows),
    )
    dtype = cfg.dtype
    if dtype == "model":
        on_gpu = torch.cuda.is_available() and cfg.model.device != "cpu"
        auto = "bfloat16" if on_gpu else "float32"
        dtype = auto if cfg.model.dtype == "auto" else cfg.model.dtype
    return About(
        origin=origin,
        sites=sites,
        width=lm.info.width,
        dtype=dtype,
        order=cfg.order,
        special=cfg.special,
        nonfinite=cfg.nonfinite,
        context=windows.context,
        windows=len(windows),
        shard_windows=max(1, cfg.shard_tokens // windows.context),
        seed=cfg.seed,
        vocabulary=max(lm.info.vocab_size, 1),
    )


def wanted(cfg: DictConfig, about: About) -> int:
    """How many shards the store is to have."""
    there = about.windows * about.context
    if cfg.tokens is None:
        return about.shards
    if cfg.tokens > there:
        raise ValueError(
            f"tokens={cfg.tokens}: the text has {there:,} positions in windows of {about.context}; want "
            f"at most that, null for all of it, or more text (data.max_tokens)"
        )
    return -(-cfg.tokens // (about.context * about.shard_windows))


def intact(cfg: DictConfig, place: Place) -> set[int]:
    """The shards that are there: with verify=true, those whose hashes are right too."""
    store = Store.opened(place)
    for why in store.absent.values():
        escape.say(f"made anew: {why}")
    there = set(store.records)
    for number in sorted(there) if cfg.verify else ():
        try:
            store.shard(number, [])
            store.statistics_of(number)
        except ValueError as error:
            escape.say(f"made anew: {error}")
            there.discard(number)
    return there


def row_bytes(about: About) -> int:
    return storing.row_bytes(len(about.sites), about.width, about.dtype)


def check_room(cfg: DictConfig, about: About, missing: Sequence[int]) -> None:
    """Refuses a folder on a disk with less room than the shards take."""
    if is_remote(cfg.output):
        return
    size = positions(about, missing) * row_bytes(about)
    above = next(
        path for path in (Path(cfg.output), *Path(cfg.output).resolve().parents) if path.is_dir()
    )
    free = shutil.disk_usage(above).free
    if size > free:
        raise ValueError(
            f"output={cfg.output}: the shards to make take {as_bytes(size)}, and {as_bytes(free)} are "
            f"free there; want fewer tokens, fewer sites or dtype=int8"
        )


def positions(about: About, shards: Sequence[int]) -> int:
    return sum(about.windows_of(shard) for shard in shards) * about.context


def make(
    cfg: DictConfig, place: Place, about: About, windows: TextWindows, missing: Sequence[int]
) -> None:
    with waiting_for(f"{about.origin.model}, which is being loaded"):
        lm: LanguageModel = instantiate(cfg.model)
    read: Any = WithSpecials(lm, windows) if cfg.special == "keep" else windows
    reader = Reader(lm, read, list(about.sites), cfg.nonfinite)
    writer: ShardWriter | ForeignWriter
    if made := WRITERS.get(cfg.stored_as):
        writer = made(lm, windows, about, place, cfg.batch_windows)
    else:
        writer = ShardWriter(reader, windows, about, place, cfg.batch_windows)
    total = positions(about, missing)
    size, each = as_bytes(total * row_bytes(about)), as_bytes(row_bytes(about))
    with nonfinite_named():
        seconds = total / about.context * seconds_of_a_window(cfg, reader, about)
    escape.say(
        f"{cfg.output}: {counted(len(missing), 'shard')}, {total:,} tokens of {listed(about.sites)}, "
        f"{size} at {each} a token, about {duration(seconds)}"
    )
    done = 0
    with nonfinite_named(), bars("") as progress:
        for shard in missing:

            def advance(windows: int) -> None:
                nonlocal done
                done += windows * about.context
                progress("storing activations", done, total)

            writer.write(shard, advance)
    if reader.dropped:
        escape.say(f"nonfinite=drop left out {counted(reader.dropped, 'token')}")


def seconds_of_a_window(cfg: DictConfig, reader: Reader, about: About) -> float:
    """Measured on the first ones, whose first pass warms up."""
    first = torch.arange(min(cfg.batch_windows, about.windows))
    for _ in range(2):
        start = time.perf_counter()
        reader.read(-1, first)
        if torch.cuda.is_available():
            torch.cuda.synchronize()
    return (time.perf_counter() - start) / len(first)


@contextmanager
def nonfinite_named() -> Iterator[None]:
    """The key that says what becomes of NaN and Inf by its name here."""
    try:
        yield
    except ValueError as error:
        raise ValueError(str(error).replace("source.nonfinite", "nonfinite")) from error


def conclude(cfg: DictConfig, place: Place, shards: int) -> None:
    """Writes the statistics over all shards once they are there, and says what there is."""
    store = Store.opened(place)
    there = len(store.records)
    rows, size = store.info.rows, sum(record.bytes for record in store.records.values())
    if there < shards:
        escape.say(
            f"{cfg.output}: {there} of {counted(shards, 'shard')} are there; other parts make the others"
        )
        return
    if not store.absent:
        finish(place, store.about, there, store.statistics())
    reader = "cache" if store.info.shuffled else "cache_windows"
    use = typed(**{"source": reader, "source.path": str(cfg.output)})
    escape.say(
        f"{cfg.output}: {counted(rows, 'row')} of {listed(store.info.sites)} in "
        f"{counted(there, 'shard')}, {as_bytes(size)}; dictlearn train {use} reads them"
    )


def conclude_foreign(
    cfg: DictConfig, writer: type[ForeignWriter], place: Place, about: About, shards: int
) -> None:
    """The same for another tool's format; its files say which rows are for training."""
    there = writer.there(place, about)
    if not set(range(shards)) <= there:
        escape.say(
            f"{cfg.output}: {len(there)} of {counted(shards, 'shard')} are there; other parts make the "
            f"others"
        )
        return
    writer.finish(place, about, there)
    use = typed(**{"source": "cache", "source.path": str(cfg.output)})
    escape.say(
        f"{cfg.output}: {counted(len(there), 'shard')} of {listed(about.sites)} for {cfg.stored_as}; "
        f"dictlearn train {use} reads them too"
    )
