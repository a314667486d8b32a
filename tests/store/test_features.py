"""The store gives back what was harvested, row by row, and refuses what it cannot trust."""

from __future__ import annotations

import dataclasses
import json
import random
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from dictlearn.store.features import FeatureStore, open_store
from dictlearn.store.layout import info_from_json
from dictlearn.store.split import split_of
from tests.store import made
from tests.store.made import made_store


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> FeatureStore:
    return made_store(tmp_path_factory.mktemp("run"))


def test_a_feature_is_what_the_activations_say(store: FeatureStore):
    windows = made.made_windows(made.pico_tokenizer())
    activations = made.made_activations(windows, made.pico_tokenizer())
    for feature in store:
        values = activations[..., feature.index]
        assert feature.count == int((values > 0).sum()) == sum(feature.histogram)
        assert feature.density == feature.count / store.info.tokens
        assert feature.maximum == float(values.max())
        assert feature.dead == (feature.count == 0)
        for example in feature.examples:
            row = windows.numbers.tolist().index(example.window)
            shown = slice(example.start, example.start + len(example.tokens))
            assert list(example.tokens) == windows.tokens[row, shown].tolist()
            assert example.activations == pytest.approx(values[row, shown].tolist(), rel=1e-3)
            assert example.activation > 0
            assert example.document == windows.documents[row, example.start + example.peak]


def test_examples_come_in_order(store: FeatureStore):
    for feature in store:
        strengths = [example.activation for example in feature.top]
        assert strengths == sorted(strengths, reverse=True)
        assert len({example.window for example in feature.top}) == len(feature.top)
        means = [
            sum(e.activation for e in drawn) / len(drawn) for drawn in feature.by_interval if drawn
        ]
        assert means == sorted(means)
        assert {e.interval for e in feature.top} <= {None}
    assert len(store.feature(0, 5).examples) == made.TOP + made.INTERVALS * made.PER_INTERVAL


def test_statistics_are_those_of_the_features(store: FeatureStore):
    whole = store.statistics
    assert whole["count"].shape == (1, len(made.RULES)) and len(store) == len(made.RULES)
    for feature in store:
        for name, values in whole.items():
            assert float(values[feature.source, feature.index]) == vars(feature)[name]


def test_sampled_firings_say_where_a_feature_is_silent_too(store: FeatureStore):
    windows = made.made_windows(made.pico_tokenizer())
    activations = made.made_activations(windows, made.pico_tokenizer()).flatten(0, 1)
    assert store.sampled_windows().tolist() == list(range(len(windows)))
    for index in range(len(made.RULES)):
        places, values = store.sampled_firings(0, index)
        assert places.tolist() == activations[:, index].nonzero()[:, 0].tolist()
        assert torch.equal(values, activations[places, index])


def test_a_clt_feature_has_logits_for_every_target_it_reaches(tmp_path: Path):
    sites = [f"mlp_in.{n}" for n in range(3)], [f"mlp_out.{n}" for n in range(3)]
    store = made_store(tmp_path, *sites)
    assert len(store) == 3 * len(made.RULES) and store.site(2) == "mlp_in.2"
    assert tuple(store.feature(1, 0).promoted) == ("mlp_out.1", "mlp_out.2")
    assert store.feature(2, 1).neighbours[0][:2] == (0, 0)
    assert [(f.source, f.index) for f in store][6:8] == [(1, 0), (1, 1)]


def test_it_opens_from_the_run_its_features_or_the_store_itself(store: FeatureStore):
    for folder in (store.folder.parent, store.folder, store.path):
        assert FeatureStore(folder).info == store.info


def test_what_is_not_there_is_named(store: FeatureStore, tmp_path: Path):
    with pytest.raises(ValueError, match="`dictlearn features run=<run>` makes them"):
        FeatureStore(tmp_path)
    with pytest.raises(ValueError, match="feature 1/0: want <source>/<index> with a source of"):
        store.feature(1, 0)
    with pytest.raises(ValueError, match="an index from 0 to 5"):
        store.feature(0, 6)


@pytest.mark.parametrize("name", ["block-0-0.safetensors", "windows.safetensors", "store.json"])
def test_a_file_cut_short_is_noticed(name: str, tmp_path: Path):
    store = made_store(tmp_path)
    whole = (store.path / name).read_bytes()
    (store.path / name).write_bytes(whole[:-1])
    with pytest.raises(ValueError, match=f"{name} has .*: the file is truncated; .* makes it anew"):
        FeatureStore(tmp_path)


def everything(folder: Path) -> str:
    """All that a store can be asked for."""
    store = FeatureStore(folder)
    sampled = [store.sampled_firings(0, index) for index in range(store.info.n_features)]
    return repr([*store, store.statistics, sampled, store.sampled_windows(), store.info])


def test_every_bit_counts(tmp_path: Path):
    folder, rng = made_store(tmp_path).path, random.Random(0)
    right = everything(tmp_path)
    for name in sorted(path.name for path in folder.iterdir()):
        whole = (folder / name).read_bytes()
        for _ in range(12):
            place, bit = rng.randrange(len(whole)), 1 << rng.randrange(8)
            flipped = whole[:place] + bytes([whole[place] ^ bit]) + whole[place + 1 :]
            (folder / name).write_bytes(flipped)
            try:
                assert everything(tmp_path) == right, f"bit {bit} of byte {place} of {name}"
                assert name == "manifest.json"  # the rest has a hash, and so no bit that is idle
            except ValueError as error:
                assert str(folder) in str(error)
        (folder / name).write_bytes(whole)


def test_one_of_an_earlier_version_is_hashed_by_whole_blocks(tmp_path: Path):
    folder = made_store(tmp_path).path
    right = everything(tmp_path)
    manifest = json.loads((folder / "manifest.json").read_text())
    (folder / "hashes.safetensors").unlink()
    del manifest["files"]["hashes.safetensors"]
    (folder / "manifest.json").write_text(json.dumps(manifest))
    assert everything(tmp_path) == right
    block = folder / "block-0-1.safetensors"
    block.write_bytes(block.read_bytes()[:-1] + b"?")
    assert FeatureStore(tmp_path).feature(0, 0).index == 0
    with pytest.raises(ValueError, match="block-0-1.safetensors does not match its manifest"):
        FeatureStore(tmp_path).feature(0, 5)


def test_made_anew_while_it_is_read_is_no_damage(tmp_path: Path):
    store = made_store(tmp_path)
    store.feature(0, 0)
    made_store(tmp_path)  # the same but for its place in the order of saves
    with pytest.raises(ValueError, match="was made anew while it was read; run this again"):
        (store.path / "block-0-1.safetensors").write_bytes(b"")
        store.feature(0, 5)


def test_one_of_another_dictionary_is_refused(tmp_path: Path):
    store = made_store(tmp_path)
    assert open_store(tmp_path, "0" * 64).info == open_store(tmp_path).info == store.info
    with pytest.raises(ValueError, match="of another dictionary .* `dictlearn features` makes it"):
        open_store(tmp_path, "1" * 64)
    (tmp_path / "dictionary.json").write_text(json.dumps({"format": 2, "sha256": "1" * 64}))
    with pytest.raises(ValueError, match="of another dictionary"):
        open_store(tmp_path)


def test_one_lost_while_it_was_replaced_is_found(tmp_path: Path):
    store = made_store(tmp_path)
    store.path.rename(store.folder / f"store.old-{10**30}")
    assert FeatureStore(tmp_path).info == store.info


def test_another_format_is_refused(tmp_path: Path):
    info = json.loads((made_store(tmp_path).path / "store.json").read_text())
    with pytest.raises(ValueError, match="want a dictlearn feature store of format 1"):
        info_from_json(info | {"format": 2}, "store.json")
    info["kinf"] = info.pop("kind")
    with pytest.raises(ValueError, match="look at kind"):
        info_from_json(info, "store.json")


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("reaches", [[0, 7]]),
        ("reaches", []),
        ("context", 0),
        ("tokens", -1),
        ("windows", True),
        ("model", 3),
        ("quantile_levels", ["a"]),
        ("code_sources", 5),
    ],
)
def test_a_description_that_cannot_be_true_is_refused(name: str, value: object, tmp_path: Path):
    info = json.loads((made_store(tmp_path).path / "store.json").read_text())
    with pytest.raises(ValueError, match=f"store.json: .*; look at {name}"):
        info_from_json(info | {name: value}, "store.json")


def test_rows_unlike_their_description_are_refused(tmp_path: Path):
    store = made_store(tmp_path)
    store.info = dataclasses.replace(store.info, intervals=0)
    with pytest.raises(
        ValueError, match="block-0-0.safetensors is not of the shape that store.json"
    ):
        store.feature(0, 0)


@pytest.mark.parametrize("name", ["windows", "sample"])
def test_tensors_unlike_their_description_are_refused(name: str, tmp_path: Path):
    store = made_store(tmp_path)
    path = store.path / f"{name}.safetensors"
    tensors = load_file(path)
    for changed in list(tensors):
        save_file(tensors | {changed: tensors[changed].flatten().double()}, path)
        store._whole[path.name] = safe_open(path, framework="pt").__enter__()
        vars(store).pop("windows", None)
        with pytest.raises(ValueError, match=f"{name}.safetensors: its {changed} are not what"):
            _ = store.windows if name == "windows" else store.sampled_windows()
            for index in range(store.info.n_features):
                store.sampled_firings(0, index)


def test_places_outside_of_the_text_are_refused(tmp_path: Path):
    store = made_store(tmp_path)
    path = store.path / "sample.safetensors"
    tensors = load_file(path)
    save_file(tensors | {"places": tensors["places"] + 10**9}, path)
    store._whole[path.name] = safe_open(path, framework="pt").__enter__()
    with pytest.raises(ValueError, match="sample.safetensors: its places are not what store.json"):
        for index in range(store.info.n_features):
            store.sampled_firings(0, index)


def test_a_store_made_anew_leaves_what_others_put_beside_it(tmp_path: Path):
    store = made_store(tmp_path)
    (store.folder / "explanations.jsonl").write_text(json.dumps({"source": 0}) + "\n")
    made_store(tmp_path)
    assert (store.folder / "explanations.jsonl").is_file()
    assert sorted(path.name for path in store.folder.iterdir()) == ["explanations.jsonl", "store"]


def test_documents_are_split_in_halves_that_never_change():
    halves = [split_of(document) for document in range(1000)]
    assert 450 < halves.count("explain") < 550
    assert "".join(half[0] for half in halves[:16]) == "seessseseesseess"
