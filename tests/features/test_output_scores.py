"""Output scores are the gain of a feature's promoted tokens, by a plain loop of pushes too."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from dictlearn.dicts.dictionary import Dictionary
from dictlearn.features.output_scores import OWN, TOKENS, output_scores
from dictlearn.interventions import run as passes
from dictlearn.interventions.edits import Push
from dictlearn.store.features import FeatureStore
from dictlearn.store.output_scores import FILE, read_output_scores, write_output_scores
from tests.features import harvested


@pytest.fixture(scope="module")
def stored(tmp_path_factory: pytest.TempPathFactory) -> tuple[Dictionary, FeatureStore]:
    harvest = harvested.harvest_of("clt", tmp_path_factory.mktemp("run"))
    harvest.finish([harvest.read(0, 1)])
    return harvest.dictionary, FeatureStore(harvest.folder)


def test_a_score_is_the_gain_of_the_promoted_tokens(stored: tuple[Dictionary, FeatureStore]):
    dictionary, store = stored
    lm = harvested.pico()
    scores_SF = output_scores(lm, dictionary, store)
    dead_SF = store.statistics["dead"]
    assert bool(scores_SF[dead_SF].isnan().all()) and bool(scores_SF[~dead_SF].isfinite().all())
    n = len(store.windows.tokens)
    rows = torch.linspace(0, n - 1, 4).long()
    tokens_BP = store.windows.tokens[rows, :TOKENS].long()
    counts_BP = ~torch.isin(tokens_BP, torch.tensor(sorted(lm.special_ids)))
    for source, index in (~dead_SF).nonzero()[::17].tolist():
        feature = store.feature(source, index)
        pushes = [
            Push(site, dictionary.decoder.written(t, source, slice(index, index + 1))[0], feature.maximum)
            for t, site in enumerate(dictionary.targets)
            if source in dictionary.reads(t)
        ]  # fmt: skip
        after, before = (
            passes.run(lm, tokens_BP, [], changes).logits.softmax(-1) for changes in (pushes, [])
        )
        best = {}
        for scores in feature.promoted.values():
            for token, effect in scores:
                best[token] = max(best.get(token, -1e9), effect)
        own = sorted(best, key=lambda token: -best[token])[:OWN]
        gain = (after - before)[counts_BP][:, own].sum(1).mean()
        assert float(scores_SF[source, index]) == pytest.approx(float(gain), abs=2e-6)


def test_scores_are_kept_beside_the_store(stored: tuple[Dictionary, FeatureStore], tmp_path: Path):
    _, store = stored
    assert store.output_scores is None and store.output_score(0, 0) is None
    shape = store.info.code_sources, store.info.n_features
    scores_SF = torch.rand(shape)
    scores_SF[0, 1] = torch.nan
    write_output_scores(tmp_path, store.info, scores_SF)
    read_SF = read_output_scores(tmp_path, store.info)
    assert read_SF is not None and torch.equal(read_SF.nan_to_num(), scores_SF.nan_to_num())
    other = replace(store.info, dictionary_sha256="another")
    assert read_output_scores(tmp_path, other) is None


@pytest.mark.parametrize("damage", ["cut", "shape", "range"])
def test_a_damaged_file_is_refused(
    stored: tuple[Dictionary, FeatureStore], tmp_path: Path, damage: str
):
    info = stored[1].info
    shape = (info.code_sources, info.n_features)
    scores = {"shape": torch.zeros(1, 1), "range": torch.full(shape, 2.0)}
    write_output_scores(tmp_path, info, scores.get(damage, torch.zeros(shape)))
    if damage == "cut":
        data = (tmp_path / FILE).read_bytes()
        (tmp_path / FILE).write_bytes(data[: len(data) // 2])
    with pytest.raises(ValueError, match=r"is damaged; `dictlearn features output_scores=only`"):
        read_output_scores(tmp_path, info)
