"""Damage to everything that is read: what is made, what is done to it, and what has to come of it.

Each `Kind` is a folder that is whole, and the reader that a verb uses on it. A reader of a damaged
copy gives what it gave of the whole one, or one sentence (ValueError, OSError): no other exception, and
no other result where the format has a hash of its own. Formats of other tools, models and plain text
have none: there a changed number is a number like any other.
"""

from __future__ import annotations

import gzip
import hashlib
import json
import random
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from omegaconf import OmegaConf
from safetensors.torch import save_file
from transformers import AutoConfig, AutoModelForCausalLM

import dictlearn
from dictlearn import export
from dictlearn.activations.arrays import open_arrays
from dictlearn.activations.formats import open_store
from dictlearn.activations.formats.dictlearn import Store as Activations
from dictlearn.activations.place import LocalPlace
from dictlearn.ckpt import commit
from dictlearn.ckpt.codec import read_state, write_state
from dictlearn.ckpt.dictionary import save_dictionary
from dictlearn.evals.report.history import read_history
from dictlearn.evals.report.settings import read_settings, summary
from dictlearn.export.graph_labels import feature_of, read_graph
from dictlearn.interventions.directions import vector_from
from dictlearn.interventions.vectors import ConceptVector, Separation, load_vector
from dictlearn.lm.load import load_model, load_skeleton, read_info
from dictlearn.objectives.stored_teacher import StoredTeacher
from dictlearn.sources import token_cache
from dictlearn.sources.text_files import text_documents
from dictlearn.store.explanations import Explanation, add_explanations, read_explanations
from dictlearn.store.features import FeatureStore
from tests.activations import foreign
from tests.activations.made import made as made_activations
from tests.ckpt.foreign import released
from tests.damages import DAMAGES, MANIFEST, make_fit
from tests.export.test_circuit_tracer import built
from tests.export.test_circuit_tracer import job as set_job
from tests.export.test_layer_formats import job_of, made
from tests.objectives.test_stored_teacher import Text, model, stored
from tests.store.made import made_store


@dataclass(frozen=True)
class Kind:
    """One thing that is read."""

    make: Callable[[Path], object]
    read: Callable[[Path], Any]
    hashed: bool = True  # whether what was written is known from what was not
    fits: bool = False  # whether a hostile hand makes the manifest fit


# --- what is read -----------------------------------------------------------------------------


def _dictionary(folder: Path) -> None:
    save_dictionary(made("jumprelu", "sae"), folder, {"model": "org/model"})


def _as_a_hub_gives_it(folder: Path) -> None:
    _dictionary(folder)
    (folder / MANIFEST).unlink()


def _loaded(folder: Path) -> Any:
    dictionary = dictlearn.load(folder)
    return dictionary.to_json(), dictionary.provenance, dictionary.state_dict()


def _loaded_from_a_hub(folder: Path) -> Any:
    """Without what it says of its origin, which is no part of what the hash is of."""
    dictionary = dictlearn.load(folder)
    return dictionary.to_json(), dictionary.state_dict()


def _foreign(format: str) -> Callable[[Path], None]:
    def make(folder: Path) -> None:
        folder.mkdir()
        job = set_job(built("plt")) if format == "circuit_tracer" else job_of(made("topk", "sae"))
        export.registry()[format]().write(job, folder)

    return make


def _released(name: str) -> Kind:
    """A published dictionary, in folders whose names are a part of what is read."""

    def read(folder: Path) -> Any:
        inner = released.MAKERS[name](folder.parent / "empty").relative_to(folder.parent / "empty")
        shutil.rmtree(folder.parent / "empty")
        return _loaded(folder / inner)

    return Kind(released.MAKERS[name], read, hashed=False)


def _checkpoint(folder: Path) -> None:
    state = {"state_dict": {"w": torch.randn(4, 3), "n": 3}, "loops": [1, 2.5, None, (True, "x")]}
    commit.commit(folder, lambda place: write_state(place, state), sort="a checkpoint")


def _resumed(folder: Path) -> Any:
    commit.verify(folder)
    return read_state(folder)


def _features(folder: Path) -> Any:
    store = FeatureStore(folder)
    return [store.feature(0, index) for index in range(store.info.n_features)], store.statistics


def _explanations(folder: Path) -> None:
    said = {"explainer": "lexical", "model": None, "prompt_hash": "0" * 8, "n_examples": 5}
    scores = {"scores": {"accuracy": 0.5}, "baselines": {}, "reliable": True}
    many = [Explanation(source=0, feature=i, text=f"text {i}", **said, **scores) for i in range(5)]
    add_explanations(folder, many)


def _targets(folder: Path) -> Any:
    teacher = StoredTeacher(model(), str(folder))
    tokens = Text().window_batch(range(len(Text())))
    return vars(teacher.targets(tokens, torch.ones_like(tokens, dtype=torch.bool)))


def _activations(folder: Path) -> Any:
    """All that is stored, in both orders of rows."""
    found = []
    for order in ("shuffled", "windows"):
        store = open_store(LocalPlace(folder / order))
        if store.info.absent:
            raise ValueError(next(iter(store.info.absent.values())))
        for number, rows in enumerate(store.info.shard_rows):
            shard = store.shard(number, store.info.sites)
            found += [shard.rows(site, 0, rows).clone() for site in store.info.sites]
            found += [shard.tokens_N, shard.positions_N, *(shard.windows or ())]
        assert isinstance(store, Activations)
        found.append(store.statistics())
    return found


def _store_activations(folder: Path) -> None:
    for order, dtype in {"shuffled": "int8", "windows": "float16"}.items():
        made_activations(folder / order, order=order, dtype=dtype, windows=12)


def _others_activations(folder: Path) -> Any:
    store = open_store(LocalPlace(folder))
    if store.info.absent:
        raise ValueError(next(iter(store.info.absent.values())))
    found: list[Any] = [store.info.widths, store.info.shard_rows]
    for number, rows in enumerate(store.info.shard_rows):
        shard = store.shard(number, store.info.sites)
        found += [shard.rows(site, 0, rows) for site in store.info.sites]
        found += [shard.tokens_N, shard.positions_N, shard.kept_N]
    return found


def _model(folder: Path) -> None:
    config = AutoConfig.for_model(
        "llama",
        vocab_size=300,
        hidden_size=8,
        intermediate_size=8,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=1,
        max_position_embeddings=16,
    )
    AutoModelForCausalLM.from_config(config).save_pretrained(folder)


def _config_of_a_model(folder: Path) -> None:
    _model(folder)
    for path in folder.iterdir():
        if path.name != "config.json":
            path.unlink()


def _described(folder: Path) -> Any:
    return read_info(str(folder)), load_skeleton(str(folder)).info


def _texts(folder: Path) -> None:
    folder.mkdir()
    rows = "\n".join(json.dumps({"text": f"row {i}"}) for i in range(20))
    (folder / "a.txt").write_text("some text\n" * 20)
    (folder / "b.jsonl").write_text(rows)
    (folder / "c.jsonl.gz").write_bytes(gzip.compress(rows.encode()))
    import pyarrow as pa
    import pyarrow.parquet as pq

    pq.write_table(pa.table({"text": [f"row {i}" for i in range(20)]}), folder / "d.parquet")


def _read_texts(folder: Path) -> Any:
    return [d.text for path in sorted(folder.glob("*.*")) for d in text_documents(str(path))]


def _tokens(folder: Path) -> Any:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(token_cache, "cache_folder", lambda: folder)
        return token_cache.cached("key", lambda: {"train": torch.arange(50, dtype=torch.int32)})


def _vectors(folder: Path) -> None:
    folder.mkdir()
    np.save(folder / "v.npy", np.arange(8, dtype=np.float32))
    save_file({"v": torch.arange(8.0)}, folder / "w.safetensors")


def _arrays(folder: Path) -> None:
    folder.mkdir()
    x = np.arange(32, dtype=np.float32).reshape(8, 4)
    np.save(folder / "x.npy", x)
    np.savez(folder / "stored.npz", x=x)
    np.savez_compressed(folder / "packed.npz", x=x)
    save_file({"x": torch.from_numpy(x)}, folder / "x.safetensors")


def _read_arrays(folder: Path) -> Any:
    opened = [open_arrays(path) for path in sorted(folder.glob("*.*"))]
    return [{n: a.rows(0, a.shape[0]).clone() for n, a in some.items()} for some in opened]


def _concept_vector(folder: Path) -> None:
    vectors = {f"resid_post.{layer}": torch.randn(8) for layer in range(2)}
    scores = {site: Separation(0.75, 0.1, 1.5, 2.0) for site in vectors}
    ConceptVector(vectors, scores, {"model": "org/model", "n_pos": 4}).save(folder)


def _vector_as_a_hub_gives_it(folder: Path) -> None:
    _concept_vector(folder)
    (folder / MANIFEST).unlink()


def _read_vector(folder: Path) -> Any:
    vector = load_vector(folder)
    return dict(vector.vectors), dict(vector.scores), vector.provenance


def _run(folder: Path) -> None:
    folder.mkdir()
    settings = {
        "steps": 5,
        "seed": 1,
        "model": {"_target_": "a.b", "path": "x"},
        "data": {"n": [1]},
    }
    OmegaConf.save(OmegaConf.create(settings), folder / "config.yaml")
    rows = (json.dumps({"step": i, "loss": 1 / i, "l0": 4.0}) for i in range(1, 9))
    (folder / "metrics.jsonl").write_text("\n".join(rows))


def _read_run(folder: Path) -> Any:
    return summary(read_settings(folder / "config.yaml")), read_history(folder / "metrics.jsonl")


def _graph(folder: Path) -> None:
    folder.mkdir()
    node = {"feature_type": "cross layer transcoder", "layer": "0"}
    nodes = [node | {"node_id": f"0_{i}_1", "feature": i * (i + 3) // 2} for i in range(4)]
    graph = {"metadata": {"slug": "x"}, "nodes": nodes, "links": [], "qParams": {}}
    (folder / "g.json").write_text(json.dumps(graph))


def _read_graph(folder: Path) -> Any:
    path = folder / "g.json"
    return [feature_of(node, path) for node in read_graph(path)["nodes"]]


KINDS: dict[str, Kind] = {
    "dictionary": Kind(_dictionary, _loaded),
    "dictionary of a hub": Kind(_as_a_hub_gives_it, _loaded_from_a_hub),
    "dictionary, manifest made to fit": Kind(_dictionary, _loaded, hashed=False, fits=True),
    **{f: Kind(_foreign(f), _loaded, hashed=False) for f in export.registry() if f != "hub"},
    **{name: _released(name) for name in released.MAKERS},
    "checkpoint": Kind(_checkpoint, _resumed),
    "checkpoint, manifest made to fit": Kind(_checkpoint, _resumed, hashed=False, fits=True),
    "features": Kind(made_store, _features),
    "explanations": Kind(_explanations, read_explanations, hashed=False),
    "stored targets": Kind(lambda folder: stored(folder, head=8), _targets),
    "stored activations": Kind(_store_activations, _activations),
    "stored activations, records made to fit": Kind(
        _store_activations, _activations, hashed=False, fits=True
    ),
    **{
        f"activations of {name}": Kind(make, _others_activations, hashed=False)
        for name, make in foreign.LAYOUTS.items()
    },
    "model": Kind(_model, lambda folder: load_model(str(folder)).info, hashed=False),
    "model's config": Kind(_config_of_a_model, _described, hashed=False),
    "text": Kind(_texts, _read_texts, hashed=False),
    "token cache": Kind(_tokens, _tokens),
    "vectors": Kind(
        _vectors, lambda f: [vector_from(path) for path in sorted(f.glob("*.*"))], hashed=False
    ),
    "arrays": Kind(_arrays, _read_arrays, hashed=False),
    "concept vector": Kind(_concept_vector, _read_vector),
    "concept vector from a hub": Kind(_vector_as_a_hub_gives_it, _read_vector),
    "run": Kind(_run, _read_run, hashed=False),
    "graph": Kind(_graph, _read_graph, hashed=False),
}


# --- what comes of it -------------------------------------------------------------------------


def tried(kind: Kind, whole: Path, expected: str, place: Path, rng: random.Random) -> str:
    """Damages a copy and reads it: "refused", "right", "changed", or what went wrong."""
    shutil.rmtree(place, ignore_errors=True)
    shutil.copytree(whole, place)
    files = sorted(path for path in place.rglob("*") if path.is_file())
    path, damage = rng.choice(files), rng.choice(DAMAGES)
    before = path.read_bytes()
    damage(path, rng)
    if kind.fits and path.name != MANIFEST and path.exists():
        make_fit(path, place)
    what = f"{damage.__name__} of {path.relative_to(place)}"
    try:
        found = fingerprint(kind.read(place))
    except (ValueError, OSError) as error:
        sentence = str(error)
        one_line = "\n" not in sentence.strip() and len(sentence) < 3000
        return "refused" if one_line else f"{what}: no sentence: {sentence[:300]!r}"
    except Exception as error:
        return f"{what}: {type(error).__name__}: {str(error)[:300]}"
    if found == expected or (path.exists() and path.read_bytes() == before):
        return "right"
    return f"{what}: silently something else" if kind.hashed else "changed"


def fingerprint(value: Any) -> str:
    """A hash of what a reader gave; tensors count bit for bit."""
    digest = hashlib.sha256()

    def add(one: Any) -> None:
        if isinstance(one, torch.Tensor):
            raw = one.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes()
            digest.update(f"{one.dtype}{tuple(one.shape)}".encode() + raw)
        elif isinstance(one, dict):
            for key in sorted(one, key=repr):
                add((repr(key), one[key]))
        elif isinstance(one, list | tuple):
            digest.update(f"[{len(one)}".encode())
            for item in one:
                add(item)
        else:
            digest.update(repr(one).encode("utf-8", "backslashreplace"))

    add(value)
    return digest.hexdigest()
