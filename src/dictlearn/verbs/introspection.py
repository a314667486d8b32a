"""`dictlearn steer study=introspection`: the protocol on a model, its table, its record and picture."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from hydra.utils import instantiate
from omegaconf import DictConfig
from rich.text import Text

from dictlearn import escape
from dictlearn.ckpt.commit import commit
from dictlearn.disk.replace import check_replaceable
from dictlearn.disk.whole import write_bytes, write_json
from dictlearn.evals.report import theme
from dictlearn.evals.report.introspection import introspection_plot
from dictlearn.interventions import introspection as protocol
from dictlearn.lm.sites import resolve
from dictlearn.words import counted

SORT = "an introspection study"


def main(cfg: DictConfig, settings: protocol.Introspection) -> int:
    """Runs the study, prints its table and verdict, writes `output`; the process's exit status."""
    if not cfg.get("model"):
        raise ValueError("model: want the model to study, such as model=pico")
    output = None if cfg.output is None else Path(cfg.output)
    if output is not None:
        check_replaceable(output, SORT, cfg.overwrite)
    lm = instantiate(cfg.model)
    site = cfg.site or protocol.default_site(lm)
    resolve(lm.model, site, lm.info)
    record = protocol.study(lm, protocol.injected(lm, site, settings), site, settings)
    console = escape.console()
    for line in lines(record):
        console.print(line, overflow="fold")
    if output is not None:
        commit(output, lambda folder: write(record, folder), sort=SORT, overwrite=cfg.overwrite)
        escape.say(f"{output}: introspection.json, .png and .svg")
    return 0


def write(record: Mapping[str, Any], folder: Path) -> None:
    """Writes the record and its picture into an existing folder."""
    write_json(folder / "introspection.json", record)
    plot = introspection_plot(record)
    drawn = plot.draw, plot.title, plot.width
    write_bytes(folder / "introspection.png", theme.png(*drawn))
    write_bytes(folder / "introspection.svg", theme.svg(*drawn))


def lines(record: Mapping[str, Any]) -> Iterator[Text]:
    """The contrasts by strength with their 95% intervals, and the verdict."""
    concepts = len(record["concepts"])
    yield Text(
        f"Injected concepts in {record['model']} at {record['site']}: {concepts} concepts, "
        f"{counted(record['placebos'], 'placebo')} of the same norm for each"
    )
    yield Text("how much more injection raises logit(yes) - logit(no) [95% interval]", style="dim")
    names = list(record["contrasts"])
    yield Text("strength  " + "  ".join(f"{name:<24}" for name in names).rstrip(), style="dim")
    for i, strength in enumerate(record["strengths"]):
        cells = [
            f"{row['mean']:+.3f} [{row['low']:+.3f}, {row['high']:+.3f}]"
            for row in (record["contrasts"][name][i] for name in names)
        ]
        yield Text(f"{strength:<8g}  " + "  ".join(f"{cell:<24}" for cell in cells).rstrip())
    for kind, rates in record["says_yes"].items():
        most = {key: max(rates[key]) for key in ("concept", "placebo")}
        yield Text(
            f"says yes to {kind}: {rates['clean']:.0%} without injection, at most "
            f"{most['concept']:.0%} with a concept, {most['placebo']:.0%} with a placebo",
            style="dim",
        )
    yield Text(record["verdict"]["text"], style="bold")
