"""`dictlearn attribute`: attribution graphs of prompts, a folder each.

<run>/attribution/<slug>/graph/   graph.safetensors, graph.json: the whole graph
                                  <slug>.json, graph-metadata.json: the pruned one for circuit-tracer
                         index.html, pages/, summary.json: its page
                  index.html, pages/: the page over all graphs
"""

from __future__ import annotations

import re
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from omegaconf import DictConfig, ListConfig

from dictlearn import escape
from dictlearn.attribution import files
from dictlearn.attribution.attribute import Costs, Prepared, Settings, prepare
from dictlearn.attribution.circuit_tracer import as_json
from dictlearn.attribution.graph import Graph
from dictlearn.attribution.page import Features, check_page_replaceable, write_index, write_page
from dictlearn.attribution.places import place
from dictlearn.attribution.targets import Difference, Target
from dictlearn.ckpt import lock
from dictlearn.dicts.dictionary import Dictionary
from dictlearn.dicts.identity import sha256_of
from dictlearn.disk.manifest import verify
from dictlearn.disk.replace import check_replaceable
from dictlearn.disk.whole import write_json
from dictlearn.evals.evaluation import check_fits
from dictlearn.interventions.steering import prompt_tokens
from dictlearn.pages.scripts import PAGE
from dictlearn.ranges import Count, Share
from dictlearn.store.explanations import read_explanations
from dictlearn.store.features import has_store, open_store
from dictlearn.types import ModelInfo
from dictlearn.verbs.bars import bars
from dictlearn.verbs.lookup import texts
from dictlearn.verbs.machine import this_machine
from dictlearn.verbs.opened import Opened, OpensKeys, open_dictionary
from dictlearn.verbs.units import as_bytes, si
from dictlearn.words import counted

GRAPH = "graph"  # the folder of a graph's own files, beside its page
SHARE = 0.8  # of the memory that there is


class Keys(OpensKeys):
    """Declares the values that the keys of conf/attribute.yaml take."""

    prompts: str | list[str] | None
    targets: str | int | list[str | int] | None
    minus: str | int | None
    logits: Count
    probability: Share
    nodes: Count | None
    rank_every: Count
    node_threshold: Share
    edge_threshold: Share
    page: bool


def main(cfg: DictConfig) -> int:
    if cfg.prompts is None:
        raise ValueError('prompt: want the text to trace, such as prompt="import os"')
    prompts = texts("prompts", cfg.prompts)
    targets = _targets(cfg)
    settings = Settings(cfg.nodes, cfg.logits, cfg.probability, cfg.rank_every)
    opened = open_dictionary(cfg, "attribute", "attribution", check=_check, text=False)
    inside = cfg.run is not None and cfg.output is None
    folder = opened.folder / "attribution" if inside else opened.folder
    made = _made(cfg, opened)
    tokens = [prompt_tokens(opened.lm, prompt, 0) for prompt in prompts]
    with lock.writing(folder, "attribute"):
        for number, (prompt, ids) in enumerate(zip(prompts, tokens, strict=True)):
            where = folder / slug(number, prompt)
            if is_there(where, made | {"tokens": ids}, cfg.page):
                escape.say(f"{where}: is there already")
                continue
            prepared = prepare(opened.lm, [opened.dictionary], torch.tensor(ids), targets, settings)
            _write(cfg, opened, where, prepared, made | {"tokens": ids})
        if cfg.page:
            escape.say(f"All graphs: {write_index(folder, cfg.overwrite)}")
    return 0


def _check(dictionary: Dictionary, info: ModelInfo) -> None:
    """Refuses what has no graph before weights are loaded."""
    check_fits(dictionary, info)
    place([dictionary], info.n_layers, info.width)


def _targets(cfg: DictConfig) -> list[Target] | None:
    """Those of the configuration. Raises ValueError for `minus` without one target."""
    listed = cfg.targets if isinstance(cfg.targets, ListConfig) else [cfg.targets]
    targets = [target for target in listed if target is not None]
    if cfg.minus is None:
        return targets or None
    if len(targets) != 1:
        raise ValueError(f"minus={cfg.minus}: want one target with it, such as targets=' first'")
    return [Difference(targets[0], cfg.minus)]


def _made(cfg: DictConfig, opened: Opened) -> dict[str, Any]:
    """What a graph is made from; an equal one is not made again."""
    targets = list(cfg.targets) if isinstance(cfg.targets, ListConfig) else cfg.targets
    keys = ("logits", "probability", "nodes", "rank_every", "node_threshold", "edge_threshold")
    return {
        "model": opened.lm.info.name,
        "revision": opened.lm.info.revision,
        "dictionary": sha256_of(opened.dictionary),
        "targets": targets,
        "minus": cfg.minus,
        **{key: cfg[key] for key in keys},
    }


def slug(number: int, prompt: str) -> str:
    """A folder's name: the prompt's number and its first words."""
    words = re.sub(r"[^a-z0-9]+", "-", prompt.lower())[:40].strip("-")
    return f"{number:03d}-{words}" if words else f"{number:03d}"


def is_there(folder: Path, made: Mapping[str, Any], page: bool) -> bool:
    """Whether a graph made from the same lies there whole, with its page if there is to be one."""
    try:
        same = verify(folder / GRAPH).get("made") == made
    except ValueError:
        return False
    return same and (not page or (folder / PAGE).is_file())


def _write(
    cfg: DictConfig, opened: Opened, folder: Path, prepared: Prepared, made: dict[str, Any]
) -> None:
    check_replaceable(folder / GRAPH, files.SORT, cfg.overwrite)
    if cfg.page:
        check_page_replaceable(folder, cfg.overwrite)
    escape.say(f"{folder}: {planned(prepared, folder)}")
    start = time.perf_counter()
    with bars("") as progress:
        graph = prepared.graph(lambda done, total: progress("tracing features", done, total))
    pruned = graph.prune(cfg.node_threshold, cfg.edge_threshold)
    json = as_json(graph, pruned, folder.name, str(opened.path))

    def beside(temporary: Path) -> None:
        write_json(temporary / f"{folder.name}.json", json, ascii=False)
        write_json(temporary / "graph-metadata.json", {"graphs": [json["metadata"]]}, ascii=False)

    files.save(graph, folder / GRAPH, made, beside, cfg.overwrite)
    if cfg.page:
        write_page(folder, json, _features(opened), listed=True, overwrite=cfg.overwrite)
    _say(graph, json, time.perf_counter() - start)


def planned(prepared: Prepared, folder: Path) -> str:
    """Memory and time, before the rows are made. Raises ValueError if they don't fit into memory."""
    costs, machine = prepared.costs, this_machine(folder)
    on_gpu = prepared.model.embedded.is_cuda
    memory = machine.gpus[0][1] if on_gpu and machine.gpus else machine.memory
    sizes = f"{counted(costs.rows, 'row')} of {counted(costs.columns, 'source')}"
    if costs.bytes > SHARE * memory:
        raise ValueError(
            f"nodes={prepared.n}: {sizes} take {as_bytes(costs.bytes)}, and there are "
            f"{as_bytes(memory)}; want nodes={_fitting(costs, memory)} or fewer"
        )
    words = f"{sizes}, at most {as_bytes(costs.bytes)}, {si(2 * costs.multiplications)}FLOP"
    if machine.flops:
        words += f", about {2 * costs.multiplications / machine.flops + 0.1:.1f} s on idle cores"
    return words


def _fitting(costs: Costs, memory: float) -> int:
    return int(SHARE * memory / (costs.bytes / costs.rows))


def _features(opened: Opened) -> Features | None:
    """The run's feature store, for the page; None if there is none."""
    if not has_store(opened.path):
        return None
    store = open_store(opened.path, sha256_of(opened.dictionary))
    explanations = read_explanations(store.folder, store.info.dictionary_sha256)
    return Features(store, explanations, opened.lm.tokenizer)


def _say(graph: Graph, json: Mapping[str, Any], seconds: float) -> None:
    scores = graph.scores
    escape.say(
        f"  {graph!r}\n"
        f"  replacement {scores.replacement:.3f}, completeness {scores.completeness:.3f}; "
        f"{graph.left_out:.1%} of the influence is on features without edges of their own; rows sum "
        f"to what the model computed within {graph.conservation:.1e}\n"
        f"  pruned: {counted(len(json['nodes']), 'node')}, {counted(len(json['links']), 'link')}; "
        f"{seconds:.1f} s"
    )
