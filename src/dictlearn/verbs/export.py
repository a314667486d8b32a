"""`dictlearn export`: a dictionary in another tool's format, read back and compared."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from hydra.utils import instantiate
from omegaconf import DictConfig

from dictlearn import config, escape
from dictlearn.ckpt import lock
from dictlearn.ckpt.commit import commit
from dictlearn.ckpt.dictionary import load_dictionary
from dictlearn.dicts.dictionary import Dictionary
from dictlearn.disk import leftovers
from dictlearn.disk.replace import check_replaceable
from dictlearn.disk.strict_json import read_json
from dictlearn.evals.evaluation import check_fits
from dictlearn.evals.reconstruction import ReconstructionSums
from dictlearn.evals.record import FILE
from dictlearn.export.calibrate import as_jumprelu
from dictlearn.export.compare import TOLERANCE, difference
from dictlearn.export.features import FeatureExporter, FeatureJob
from dictlearn.export.protocol import Exporter, Job, check_holds
from dictlearn.ranges import Count
from dictlearn.sources.reader import Reader
from dictlearn.store.explanations import read_explanations
from dictlearn.store.features import open_store
from dictlearn.types import Batch, ModelInfo, spread
from dictlearn.verbs.opened import Opened, OpensKeys, open_dictionary, where
from dictlearn.verbs.trained_in import tokenizer_for


class Keys(OpensKeys):
    """Declares the values that the keys of conf/export.yaml take."""

    tokens: Count
    windows: Count


def main(cfg: DictConfig) -> int:
    """Refuses dictionaries that the format can't hold; writes, reads back, compares, then commits."""
    exporter = build_exporter(cfg)
    folder, sort = destination(cfg, exporter.name)
    if cfg.output is None:  # only exports lie in this folder
        leftovers.collect(folder.parent)
    with lock.writing(folder, "export"):
        if isinstance(exporter, FeatureExporter):
            return export_features(cfg, exporter, folder, sort)
        return export_dictionary(cfg, exporter, folder, sort)


def export_dictionary(cfg: DictConfig, exporter: Exporter, folder: Path, sort: str) -> int:
    """Writes a dictionary into `folder`, which must be free for it."""

    def check(dictionary: Dictionary, info: ModelInfo) -> None:
        check_fits(dictionary, info)
        check_holds(exporter, dictionary, info)

    opened = open_dictionary(cfg, "export", "exports", check)
    calibration, unseen = held_out(cfg, opened)
    dictionary = opened.dictionary
    if dictionary.sparsity.name not in exporter.holds(dictionary):
        dictionary, exact = as_jumprelu(dictionary, calibration.inputs)
        escape.say(conversion(opened.dictionary, dictionary, exact, unseen))
    job = Job(
        dictionary,
        opened.dictionary.provenance,
        opened.lm.info,
        opened.lm.tokenizer,
        calibration.inputs,
        figures(opened.path),
        opened.path if opened.path.is_dir() else None,
    )

    def write(temporary: Path) -> None:
        exporter.write(job, temporary)
        again = load_dictionary(temporary).to(opened.lm.device)
        gap = difference(dictionary, again, unseen.inputs())
        if not gap.small:
            raise ValueError(
                f"format={exporter.name}: what was written reads back as something else ({gap}; "
                f"{gap.flipped:.1e} of all firings differ), and so it was not kept"
            )
        escape.say(
            f"read back on {unseen.n_tokens:,} held-out tokens: {gap}, at most {TOLERANCE:g}"
        )

    commit(folder, write, sort=sort, overwrite=cfg.overwrite)
    escape.say(f"{folder}: {exporter.name}, {size(folder) / 1e6:,.1f} MB")
    done = exporter.finish(folder)
    if done is not None:
        escape.say(done)
    return 0


def export_features(cfg: DictConfig, exporter: FeatureExporter, folder: Path, sort: str) -> int:
    """Writes the results of `dictlearn features` into `folder`, which must be free for them."""
    store = open_store(where(cfg, "export", "exports")[0])
    reason = exporter.refusal(store.info)
    if reason is not None:
        raise ValueError(f"format={exporter.name}: {reason}")
    tokenizer = tokenizer_for(store)
    if tokenizer is None:
        raise ValueError(
            f"format={exporter.name}: {store.info.model} has no tokenizer to show text"
        )
    job = FeatureJob(
        store, read_explanations(store.folder, store.info.dictionary_sha256), tokenizer
    )

    def write(temporary: Path) -> None:
        exporter.write(job, temporary)
        escape.say(exporter.check(job, temporary))

    commit(folder, write, sort=sort, overwrite=cfg.overwrite)
    escape.say(f"{folder}: {exporter.name}, {size(folder) / 1e6:,.1f} MB")
    return 0


def destination(cfg: DictConfig, format: str) -> tuple[Path, str]:
    """(the folder to write, the sort of its content), before any work.

    Raises SaveError if the folder holds anything but an unchanged earlier export of this format,
    unless `overwrite` allows it to be replaced.
    """
    _, output = where(cfg, "export", "exports")
    folder = output if cfg.output else output / "export" / format
    sort = f"an export as {format}"
    check_replaceable(folder, sort, cfg.overwrite, edits=True)
    return folder, sort


def build_exporter(cfg: DictConfig) -> Exporter | FeatureExporter:
    if not cfg.get("format"):
        raise ValueError(
            f"format: none was given; want format=<{'|'.join(config.options('format'))}>"
        )
    return instantiate(cfg.format)


@dataclass(frozen=True, eq=False)
class HeldOut:
    """Some windows of held-out text as activations, computed anew by every pass over them."""

    reader: Reader
    dictionary: Dictionary
    windows: list[int]
    batch_windows: int
    context: int

    @property
    def n_tokens(self) -> int:
        return len(self.windows) * self.context

    def inputs(self) -> Iterator[torch.Tensor]:
        return (batch.x_NSD for batch in self.batches())

    def batches(self) -> Iterator[Batch]:
        """Batches of valid tokens only, in float32, in the model's units."""
        for start in range(0, len(self.windows), self.batch_windows):
            numbers = torch.tensor(self.windows[start : start + self.batch_windows])
            read = self.reader.read(start, numbers)
            yield read.batch(self.dictionary.sources, self.dictionary.targets)


def held_out(cfg: DictConfig, opened: Opened) -> tuple[HeldOut, HeldOut]:
    """Two halves, of every other window each: one to fit thresholds on, one to compare on."""
    windows = opened.windows
    sites = list(dict.fromkeys(opened.dictionary.sources + opened.dictionary.targets))
    reader = Reader(opened.lm, windows, sites, "error")
    chosen = spread(windows, cfg.tokens)
    if len(chosen) < 2:
        raise ValueError(
            f"tokens={cfg.tokens}: the text to compare on has {len(windows)} windows of "
            f"{windows.context} tokens; want at least two to read, or a smaller data.context"
        )

    def part(numbers: list[int]) -> HeldOut:
        return HeldOut(reader, opened.dictionary, numbers, cfg.windows, windows.context)

    return part(chosen[::2]), part(chosen[1::2])


def conversion(before: Dictionary, after: Dictionary, exact: bool, unseen: HeldOut) -> str:
    """A sentence on how the conversion to JumpReLU changed L0 and FVU."""
    name = before.sparsity.name
    if exact:
        return f"{name} as jumprelu: the same function, with other parameters"
    l0, fvu = zip(*(measured(dictionary, unseen) for dictionary in (before, after)), strict=True)
    return (
        f"{name} as jumprelu, thresholds fitted on other text: L0 {l0[0]:.2f} -> {l0[1]:.2f} "
        f"active features per token, FVU {fvu[0]:.4f} -> {fvu[1]:.4f} on {unseen.n_tokens:,} "
        "held-out tokens"
    )


@torch.no_grad()
def measured(dictionary: Dictionary, unseen: HeldOut) -> tuple[float, float]:
    """(L0 per token, FVU)."""
    sums, fired, tokens = ReconstructionSums(dictionary.n_targets), 0, 0
    for batch in unseen.batches():
        code = dictionary.encode(batch.x_NSD)
        fired, tokens = fired + len(code.values), tokens + code.n_tokens
        sums.update(batch.y_NTD, dictionary.decode(code, batch.x_NSD))
    return fired / tokens, sums.figures()["fvu"]


def figures(run: Path) -> dict[str, float]:
    """The numbers of the run's evaluation; empty if there is none."""
    path = run / FILE
    record = read_json(path) if path.is_file() else {}
    values = record.get("figures") if isinstance(record, dict) else None
    if not isinstance(values, dict):
        return {}
    return {key: value for key, value in values.items() if type(value) in (int, float)}


def size(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
