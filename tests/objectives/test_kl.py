"""KL to a teacher as a term of the loss, against the plain formula on a tiny model."""

from __future__ import annotations

import copy
from dataclasses import replace
from functools import cache, partial
from itertools import permutations
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import Qwen3Config, Qwen3ForCausalLM

from dictlearn.dicts.dictionary import Dictionary
from dictlearn.lm.capture import capture
from dictlearn.lm.language_model import LanguageModel, freeze
from dictlearn.lm.patch import patched
from dictlearn.objectives.auxk import AuxK
from dictlearn.objectives.kl import KLToTeacher
from dictlearn.objectives.kl_to_teacher import chunked_sum
from dictlearn.objectives.objective import Objective
from dictlearn.objectives.protocol import Forward, Windows
from dictlearn.objectives.reconstruction import Reconstruction
from dictlearn.objectives.stand_in import FreeRunning, teacher_forced
from dictlearn.objectives.teacher import SelfTeacher
from tests.dictionaries import small_dictionary
from tests.formulas import kl_per_token, mean_kl

VOCAB, WIDTH, LAYERS = 50, 16, 3
TOKENS = torch.randint(3, VOCAB, (2, 9), generator=torch.Generator().manual_seed(1))
VALID = torch.rand(2, 9, generator=torch.Generator().manual_seed(2)) > 0.3
IN, OUT = torch.tensor([2.0, 3.0, 0.5]), torch.tensor([0.5, 2.0, 4.0])  # scales, all different


@cache
def tiny() -> LanguageModel:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        config = Qwen3Config(
            vocab_size=VOCAB,
            hidden_size=WIDTH,
            intermediate_size=24,
            num_hidden_layers=LAYERS,
            num_attention_heads=4,
            num_key_value_heads=2,
            head_dim=4,
            max_position_embeddings=16,
        )
        model = Qwen3ForCausalLM(config)
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(0.2 * torch.randn_like(parameter))
    return freeze(model.double(), name="tiny")


def autoencoder() -> Dictionary:
    return small_dictionary(sources=("resid_post.0",), targets=("resid_post.0",))


def transcoders(layers: int = LAYERS) -> Dictionary:
    """Of all layers, side by side."""
    names: dict[str, Any] = {
        "sources": tuple(f"mlp_in.{i}" for i in range(layers)),
        "targets": tuple(f"mlp_out.{i}" for i in range(layers)),
    }
    return small_dictionary(kind="plt", centre=False, sites=layers, **names)


KINDS = {"sae": autoencoder, "transcoder": partial(transcoders, 1), "plt": transcoders}


def forward_of(dictionary: Dictionary, progress: float = 1.0) -> Forward:
    sites = [*dictionary.sources, *dictionary.targets]
    values = capture(tiny(), TOKENS, sites)
    scale_S, scale_T = IN[: dictionary.n_sources], OUT[: dictionary.n_targets]
    if dictionary.sources == dictionary.targets:
        scale_T = scale_S
    x_NSD = torch.stack([values[site][VALID] for site in dictionary.sources], 1) * scale_S[:, None]
    y_NTD = torch.stack([values[site][VALID] for site in dictionary.targets], 1) * scale_T[:, None]
    return Forward(
        dictionary=dictionary,
        x_NSD=x_NSD,
        y_NTD=y_NTD,
        encoding=dictionary.encode_training(x_NSD),
        dead_SF=torch.zeros(dictionary.code_sources, dictionary.n_features, dtype=torch.bool),
        progress=progress,
        loss_scale=1.0,
        windows=Windows(TOKENS, VALID, scale_S.double(), scale_T.double()),
    )


def term_for(dictionary: Dictionary, **options: Any) -> KLToTeacher:
    term = KLToTeacher(**{"balance": False, "replace_for": 0.0, **options})
    term.check(dictionary)
    term.connect(tiny(), SelfTeacher(tiny()), dictionary)
    return term


def plain(forward: Forward) -> Tensor:
    """Mean KL over valid tokens with all targets replaced, teacher forced, in one piece."""
    windows = forward.windows
    assert windows is not None
    with torch.no_grad():
        clean = tiny().logits(TOKENS)

    def at(t: int):
        def put(_, old):
            new = old.clone()
            new[VALID] = forward.y_hat_NTD[:, t] / windows.output_scale_T[t]
            return new

        return put

    targets = forward.dictionary.targets
    with patched(tiny(), {site: at(t) for t, site in enumerate(targets)}):
        logits = tiny().logits(TOKENS)
    return mean_kl(clean.flatten(0, 1), logits.flatten(0, 1), VALID.flatten())


def gradients(value: Tensor, dictionary: Dictionary) -> list[Tensor]:
    parameters = list(dictionary.parameters())
    found = torch.autograd.grad(value, parameters, allow_unused=True, retain_graph=True)
    return [torch.zeros_like(p) if g is None else g for p, g in zip(parameters, found, strict=True)]


@pytest.mark.parametrize("chunk", [1, 4, 512])
@pytest.mark.parametrize("kind", KINDS)
def test_value_and_gradients_are_those_of_the_plain_formula(kind, chunk):
    dictionary = KINDS[kind]()
    forward = forward_of(dictionary)
    term = term_for(dictionary, chunk_tokens=chunk)
    value, expected = term(forward), plain(forward)
    assert expected > 1e-3
    torch.testing.assert_close(value.double(), expected.double(), rtol=1e-4, atol=1e-6)
    for mine, theirs in zip(
        gradients(value, dictionary), gradients(expected, dictionary), strict=True
    ):
        torch.testing.assert_close(mine, theirs, rtol=1e-3, atol=1e-6)
    assert term.figures()["kl"] == pytest.approx(float(value.detach()))


def test_logits_never_exist_for_more_than_a_chunk():
    largest = 0

    def value(rows: slice, states: Tensor) -> Tensor:
        nonlocal largest
        largest = max(largest, len(states))
        return states.square().sum(-1)

    states = torch.randn(11, 3, requires_grad=True)
    total = chunked_sum(value, states, 4)
    (2 * total).backward()
    assert largest == 4
    torch.testing.assert_close(total, states.square().sum())
    torch.testing.assert_close(states.grad, 4 * states.detach())
    with torch.no_grad():
        torch.testing.assert_close(chunked_sum(value, states, 4), states.square().sum())


def test_a_dictionary_that_changes_nothing_has_no_kl_and_no_gradient():
    dictionary = autoencoder()
    forward = forward_of(dictionary)
    exact = forward.y_NTD.clone().requires_grad_()
    forward.__dict__["y_hats"] = [exact]
    value = term_for(dictionary)(forward)
    assert value.detach().abs() < 1e-6
    (gradient,) = torch.autograd.grad(value, exact)
    assert gradient.abs().max() < 1e-6


def test_shuffled_batches_add_nothing_and_leave_no_trace():
    dictionary = autoencoder()
    term = term_for(dictionary, balance=True)
    before = copy.deepcopy(term.state_dict())
    assert term(replace(forward_of(dictionary), windows=None)) == 0
    term.after_step(True)
    assert all(torch.equal(value, before[name]) for name, value in term.state_dict().items())
    assert term.figures() == {}


@pytest.mark.parametrize("mode", ["teacher_forced", "free_running"])
def test_masked_tokens_keep_their_clean_value_bit_for_bit(mode):
    dictionary = transcoders()
    forward = forward_of(dictionary)
    windows = forward.windows
    assert windows is not None
    scales = windows.input_scale_S, windows.output_scale_T
    first = [0]  # what is before the first replacement, and masked, cannot differ
    if mode == "free_running":
        replacements = FreeRunning(dictionary, VALID, *scales).replacements(first)
    else:
        replacements = teacher_forced(dictionary, forward.y_hat_NTD, scales[1], VALID, first)
    site = dictionary.targets[0]
    clean = capture(tiny(), TOKENS, [site])[site]
    with patched(tiny(), replacements, reads=dictionary.sources, mask_BP=VALID):
        found = capture(tiny(), TOKENS, [site])[site]
        logits = tiny().logits(TOKENS)
    assert torch.equal(found[~VALID], clean[~VALID])
    assert not torch.isclose(found[VALID], clean[VALID]).all(1).any()
    # A sequence whose beginning is masked is the clean one up to its first valid token.
    start = int(VALID[0].nonzero()[0])
    assert torch.equal(logits[0, :start], tiny().logits(TOKENS)[0, :start])


def test_with_one_target_free_running_is_teacher_forced():
    dictionary = transcoders(1)
    forced, free = (term_for(dictionary, mode=m) for m in ("teacher_forced", "free_running"))
    assert torch.equal(forced(forward_of(dictionary)), free(forward_of(dictionary)))


def free_running_by_hand(dictionary: Dictionary, forward: Forward) -> Tensor:
    """Layer after layer with whole codes, encoding again what the patched run has at each site."""
    windows = forward.windows
    assert windows is not None
    x_NSD = forward.x_NSD
    for done in range(dictionary.n_targets):
        y_hat_NTD = dictionary.decode(dictionary.encode_training(x_NSD).support, x_NSD)
        which = range(done + 1)
        stand_in = teacher_forced(dictionary, y_hat_NTD, windows.output_scale_T, VALID, which)
        with patched(tiny(), stand_in, reads=dictionary.sources, mask_BP=VALID) as seen:
            logits = tiny().logits(TOKENS)
            x_NSD = torch.stack([seen[site][VALID] for site in dictionary.sources], 1)
            x_NSD = x_NSD * windows.input_scale_S[:, None]
    return kl_per_token(tiny().logits(TOKENS)[VALID], logits[VALID]).mean()


def test_free_running_reads_the_patched_run_and_its_gradient_goes_through_later_encoders():
    dictionary = transcoders()
    forward = forward_of(dictionary)
    free = term_for(dictionary, mode="free_running")(forward)
    forced = term_for(dictionary)(forward)
    by_hand = free_running_by_hand(dictionary, forward)
    torch.testing.assert_close(free.double(), by_hand.double(), rtol=1e-4, atol=1e-6)
    assert not torch.isclose(free, forced, rtol=1e-3)
    for mine, theirs in zip(
        gradients(free, dictionary), gradients(by_hand, dictionary), strict=True
    ):
        torch.testing.assert_close(mine, theirs, rtol=1e-3, atol=1e-5)


# --- which targets ----------------------------------------------------------------------------


def draws(term: KLToTeacher, progresses: list[float]) -> list[list[int]]:
    term.began.fill_(0.5)
    return [term._drawn_targets(12, progress) for progress in progresses]


def test_the_share_of_replaced_targets_rises_to_all_over_the_steps_with_windows():
    term = KLToTeacher(replace_from=0.25, replace_for=0.5)
    early, late = draws(term, [0.5] * 300), draws(term, [0.75, 0.9, 1.0])
    assert sum(map(len, early)) / (300 * 12) == pytest.approx(0.25 + 0.75 / 12, abs=0.02)
    assert min(map(len, draws(KLToTeacher(replace_from=0.0), [0.5] * 50))) == 1
    assert late == [list(range(12))] * 3
    assert len({tuple(which) for which in early}) > 100


def test_draws_go_on_after_a_resume():
    whole = draws(KLToTeacher(replace_from=0.5), [0.5] * 10)
    first = KLToTeacher(replace_from=0.5)
    assert draws(first, [0.5] * 4) == whole[:4]
    second = KLToTeacher(replace_from=0.5)
    second.load_state_dict(first.state_dict())
    assert draws(second, [0.5] * 6) == whole[4:]
    assert draws(KLToTeacher(replace_from=0.5, seed=1), [0.5] * 10) != whole


def test_targets_that_are_not_drawn_keep_the_models_own_value():
    dictionary = transcoders()
    forward = forward_of(dictionary, progress=0.0)
    term = term_for(dictionary, replace_from=0.0, replace_for=1.0)
    one_layer = term(forward)
    assert 0 < one_layer < plain(forward)
    touched = [
        bool(g.flatten(1).any(1)[s])
        for g in [gradients(one_layer, dictionary)[0]]
        for s in range(LAYERS)
    ]
    assert sum(touched) == 1


# --- the ratio --------------------------------------------------------------------------------


def test_the_term_is_worth_as_much_as_the_squared_error():
    dictionary = autoencoder()
    forward = forward_of(dictionary)
    objective = Objective({"reconstruction": Reconstruction(), "kl": KLToTeacher()})
    objective.connect(tiny(), SelfTeacher(tiny()), dictionary)
    terms = objective(forward)
    torch.testing.assert_close(terms["kl"].double(), terms["reconstruction"], rtol=1e-4, atol=0)
    assert not torch.isclose(terms["kl"], plain(forward).to(terms["kl"]))
    assert objective.figures()["kl"] == pytest.approx(float(plain(forward).detach()), rel=1e-4)


def test_a_pass_over_windows_beside_shuffled_tokens_is_for_the_kl_alone():
    dictionary = autoencoder()
    beside = forward_of(dictionary)
    shuffled = replace(beside, y_NTD=beside.y_NTD + 1, windows=None)
    objective = Objective({"reconstruction": Reconstruction(), "kl": KLToTeacher()})
    objective.connect(tiny(), SelfTeacher(tiny()), dictionary)
    terms = objective(shuffled, beside)
    torch.testing.assert_close(terms["reconstruction"], Reconstruction()(shuffled))
    anchor = Reconstruction()(beside)
    torch.testing.assert_close(terms["kl"].double(), anchor, rtol=1e-4, atol=0)
    assert not torch.isclose(terms["reconstruction"], anchor)


def test_the_ratio_is_smoothed_over_steps_clamped_and_blind_to_refused_steps():
    term = KLToTeacher(smoothing=0.75)

    def ratio(anchor: float, kl: float) -> float:
        return term._ratio(torch.tensor(anchor), torch.tensor(kl))

    assert ratio(8.0, 2.0) == 4.0
    term.after_step(True)
    assert ratio(100.0, 1.0) == 4.0  # what is known is from earlier steps
    assert ratio(60.0, 3.0) == 4.0  # a second batch of the same step
    term.after_step(True)
    assert ratio(0.0, 0.0) == pytest.approx((0.75 * 8 + 0.25 * 160) / (0.75 * 2 + 0.25 * 4))
    term.after_step(True)
    state = copy.deepcopy(term.state_dict())
    ratio(float("nan"), float("inf"))
    term.after_step(False)
    assert all(torch.equal(value, state[name]) for name, value in term.state_dict().items())
    assert KLToTeacher()._ratio(torch.tensor(1.0), torch.tensor(1e-9)) == 1e3
    assert KLToTeacher()._ratio(torch.tensor(1e-9), torch.tensor(1.0)) == 1e-3


# --- later layers -----------------------------------------------------------------------------


def test_later_layers_are_compared_in_one_scale():
    dictionary = autoencoder()
    forward = forward_of(dictionary)
    windows = forward.windows
    assert windows is not None
    term = term_for(dictionary, later_layers=2.0)
    value = term(forward) - term_for(dictionary)(forward)
    later = ["resid_post.1", "resid_post.2"]
    clean = capture(tiny(), TOKENS, later)
    stand_in = teacher_forced(dictionary, forward.y_hat_NTD, windows.output_scale_T, VALID, [0])
    with patched(tiny(), stand_in, reads=later, mask_BP=VALID) as seen:
        tiny().logits(TOKENS)
        errors = []
        for site in later:
            scale = WIDTH**0.5 / clean[site][VALID].norm(dim=-1).mean()
            error = scale * (clean[site] - seen[site])[VALID]
            errors.append(error.square().sum(-1).mean())
    torch.testing.assert_close(value.double(), 2 * sum(errors) / 2, rtol=1e-3, atol=1e-6)
    assert term.figures()["later_error"] == pytest.approx(
        float(torch.stack(errors).sum().detach()) / 2, rel=1e-3
    )
    assert "later_scale_L" in term.state_dict()


def test_the_scale_of_later_layers_is_a_constant_of_the_run():
    dictionary = autoencoder()
    term = term_for(dictionary, later_layers=1.0)
    term(forward_of(dictionary))
    assert term.later_scale_L is not None
    measured = term.later_scale_L.clone()
    other = replace(forward_of(dictionary), windows=Windows(TOKENS.flip(1), VALID, IN, IN))
    term(other)
    assert torch.equal(term.later_scale_L, measured)


# --- the model stays outside ------------------------------------------------------------------


def test_the_model_is_no_part_of_the_objective_and_copies_share_it():
    dictionary = autoencoder()
    objective = Objective({"reconstruction": Reconstruction(), "kl": KLToTeacher()})
    objective.connect(tiny(), SelfTeacher(tiny()), dictionary)
    objective(forward_of(dictionary))
    assert list(objective.parameters()) == []
    names = {"anchor_mean", "kl_mean", "drawn", "began"}
    assert set(objective.state_dict()) == {f"terms.kl.{name}" for name in names}
    copied = copy.deepcopy(objective)
    term = copied.terms["kl"]
    assert isinstance(term, KLToTeacher)
    assert term._lm is not None
    assert term._lm is tiny() and term._lm.model is tiny().model
    assert torch.equal(
        copied(forward_of(dictionary))["kl"], objective(forward_of(dictionary))["kl"]
    )


def test_later_layers_want_a_layer_behind_the_site():
    last = small_dictionary(sources=("resid_post.2",), targets=("resid_post.2",))
    with pytest.raises(ValueError, match="tiny has no layer after resid_post.2"):
        term_for(last, later_layers=1.0)
    unnamed = ("model.layers.1:output",)
    with pytest.raises(ValueError, match="does not say which layer it is in"):
        term_for(small_dictionary(sources=unnamed, targets=unnamed), later_layers=1.0)


@pytest.mark.parametrize("shuffled", [False, True], ids=["windows", "shuffled tokens"])
@pytest.mark.parametrize("kind", ["sae", "plt", "clt"])
def test_no_value_depends_on_which_term_comes_first(kind, shuffled):
    if kind == "clt":
        names: dict[str, Any] = {
            "sources": ("mlp_in.0", "mlp_in.1"),
            "targets": ("mlp_out.0", "mlp_out.1"),
        }
        dictionary = small_dictionary(kind="clt", link="lower", centre=False, sites=2, **names)
    else:
        dictionary = KINDS[kind]()
    whole = forward_of(dictionary)
    dead_SF = torch.arange(dictionary.n_features).expand_as(whole.dead_SF) % 3 == 0
    whole = replace(whole, dead_SF=dead_SF, windows=None if shuffled else whole.windows)
    terms = {
        "reconstruction": Reconstruction(),
        "auxk": AuxK(k_aux=4),
        "kl": term_for(dictionary, balance=True),
    }
    values = []
    for order in permutations(terms):
        forward = replace(whole)  # with nothing computed yet
        state = copy.deepcopy(terms)
        found = {name: float(state[name].value(forward).detach()) for name in order}
        values.append((found, forward.residual_NTD))
    (first, left), *others = values
    assert first["auxk"] > 0 and (shuffled or first["kl"] > 0)
    for found, residual_NTD in others:
        assert found == first
        assert torch.equal(residual_NTD, left)
