"""What the weights say: logits, neighbours, singular directions, and which features co-fire."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
import torch

from dictlearn.dicts.transforms import TransformDecoder
from dictlearn.features import cofiring
from dictlearn.features.logits import Unembedding
from dictlearn.features.transforms import Directions
from dictlearn.lm.capture import capture
from dictlearn.lm.norms import fit_norm
from tests.features.harvested import SETTINGS, dictionary_of, pico, windows
from tests.features.test_harvest import activations, made


def test_the_effect_on_logits_is_the_models_own():
    """A little of a direction, added to the last residual, changes the logits in proportion."""
    lm = pico()
    tokens = windows().window_batch([3])
    unembedding = Unembedding.of(lm, tokens)
    assert unembedding is not None and "times the final norm's weights" in unembedding.described
    last = f"resid_post.{lm.info.n_layers - 1}"
    with torch.no_grad():
        x_D = capture(lm, tokens, (last,))[last][0, 5].double()
        v_D = torch.randn(len(x_D), dtype=torch.float64)
        v_D -= (v_D @ x_D) / (x_D @ x_D) * x_D  # keeps the norm's scale
        norm, head = (
            copy.deepcopy(lm.model.get_submodule(name)).double()
            for name in ("model.norm", "lm_head")
        )
        change = head(norm(x_D + 1e-4 * v_D)) - head(norm(x_D))
    change = (change - change.mean()) / 1e-4 * x_D.square().mean().sqrt()
    ids, effects, low_ids, low_effects = unembedding.extremes(v_D[None].float(), 8)
    assert ids[0].tolist() == change.topk(8).indices.tolist()
    assert effects[0].tolist() == pytest.approx(change.topk(8).values.tolist(), rel=1e-3)
    assert low_ids[0].tolist() == change.topk(8, largest=False).indices.tolist()
    assert low_effects[0, 0] < 0


@pytest.mark.parametrize("centred", [False, True])
def test_a_norm_is_found_by_what_it_does(centred: bool):
    x_ND, weight_D = torch.randn(50, 12) + 0.5, torch.rand(12) + 0.5
    kind = torch.nn.functional.layer_norm if centred else torch.nn.functional.rms_norm
    found = fit_norm(x_ND, kind(x_ND, (12,), weight_D) + (0.3 if centred else 0.0))
    assert found is not None and found.centred == centred
    assert torch.allclose(found.weight, weight_D, atol=1e-3)
    assert fit_norm(x_ND, torch.randn(50, 12)) is None


def test_a_clt_feature_is_read_target_by_target(tmp_path: Path):
    dictionary = dictionary_of("clt")
    unembedding = Unembedding.of(pico(), windows().window_batch(range(8)))
    assert unembedding is not None
    feature = made("clt", tmp_path).feature(1, 7)
    assert tuple(feature.promoted) == ("mlp_out.1", "mlp_out.3") == tuple(feature.suppressed)
    for place, t in enumerate((1, 2)):
        logits_V = dictionary.decoder.written(t, 1, slice(7, 8))[0] @ unembedding.W_VD.T
        found = list(feature.promoted.values())[place]
        assert [token for token, _ in found] == logits_V.topk(5).indices.tolist()
        assert [effect for _, effect in found] == pytest.approx(logits_V.topk(5).values.tolist())
        last = list(feature.suppressed.values())[place][0]
        assert last[0] == int(logits_V.argmin())


@pytest.mark.parametrize("kind", ["sae", "clt", "windowed clt", "tied clt", "crosscoder", "molt"])
def test_neighbours_are_those_of_the_whole_table(kind: str, tmp_path: Path):
    dictionary, store = dictionary_of(kind), made(kind, tmp_path)
    n, s, d = dictionary.n_features, dictionary.code_sources, dictionary.width
    whole = torch.zeros(s, n, len(dictionary.targets), d)
    if isinstance(dictionary.decoder, TransformDecoder):
        U, V, owner = dictionary.decoder.stacked(slice(0, n))
        vectors = torch.stack([(U[owner == f].T @ V[owner == f]).flatten() for f in range(n)])
    else:
        for t in range(len(dictionary.targets)):
            for source in dictionary.reads(t):
                whole[source, :, t] = dictionary.decoder.written(t, source, slice(0, n))
        vectors = whole.flatten(2).flatten(0, 1)
    unit = torch.nn.functional.normalize(vectors, dim=1)
    cosine = unit @ unit.T - 3 * torch.eye(len(unit))
    expected = cosine.topk(SETTINGS.neighbours)
    for feature in store:
        row = feature.source * n + feature.index
        flat = [other * n + index for other, index, _ in feature.neighbours]
        assert flat == expected.indices[row].tolist()
        found = [value for *_, value in feature.neighbours]
        assert found == pytest.approx(expected.values[row].tolist(), abs=1e-5)


@pytest.mark.parametrize("most", [10_000, cofiring.FIRINGS])
def test_cofiring_is_the_jaccard_index(most: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Exact where all of a feature's firings are looked at, close where some of them are."""
    monkeypatch.setattr(cofiring, "FIRINGS", most)
    monkeypatch.setattr(cofiring, "PAIRS_AT_ONCE", 5000)
    store = made("clt", tmp_path, sample_tokens=10_000)
    fires = (activations("clt") > 0).flatten(2).flatten(0, 1).float()
    both = fires.T @ fires
    alone = fires.sum(0)
    jaccard = both / (alone[:, None] + alone - both).clamp(min=1)
    jaccard[both < cofiring.TOGETHER] = 0
    jaccard.fill_diagonal_(0)
    near = 1e-5 if most > float(alone.max()) else 0.1
    some = 0
    for feature in store:
        row = feature.source * store.info.n_features + feature.index
        expected = [value for value in jaccard[row].topk(4).values.tolist() if value > 0]
        assert [value for *_, value in feature.cofiring] == pytest.approx(expected, abs=near)
        for source, index, value in feature.cofiring:
            other = source * store.info.n_features + index
            assert value == pytest.approx(float(jaccard[row, other]), abs=near)
            some += 1
    assert some > 100


def test_a_transform_is_read_by_its_singular_directions(tmp_path: Path):
    dictionary, store = dictionary_of("molt"), made("molt", tmp_path)
    directions = Directions.of(dictionary.decoder.maps(), 2)
    U, V, _ = dictionary.decoder.stacked(slice(1, 2))  # type: ignore[operator]
    left, strength, right = torch.linalg.svd(U.T @ V)
    assert torch.allclose(directions.strength_FM[1], strength[:2], rtol=1e-4)
    for mine, theirs in ((directions.left_FMD[1], left.T), (directions.right_FMD[1], right)):
        assert torch.allclose((mine * theirs[:2]).sum(1).abs(), torch.ones(2), atol=1e-4)
    feature = store.feature(0, 1)
    assert feature.promoted == {} and feature.transform is not None
    assert feature.transform.rank == 5 and len(feature.transform.directions) == 2
    assert [len(store.feature(0, f).transform.directions) for f in (2, 3)] == [2, 1]  # type: ignore[union-attr]
    first = feature.transform.directions[0]
    assert first.strength == pytest.approx(float(strength[0]), rel=1e-4)
    for scores in (first.reads, first.reads_opposite, first.promotes, first.suppresses):
        assert len(scores) == 5
    assert first.reads[0][1] > 0 and first.reads[0][1] >= -first.reads_opposite[0][1]
    assert first.promotes[0][1] > 0 > first.suppresses[0][1]
