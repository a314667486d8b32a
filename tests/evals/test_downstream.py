"""CE, KL and agreement with a reconstruction in place of the activations."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor
from transformers import Gemma2Config, Gemma2ForCausalLM

from dictlearn.evals.context import ZERO_ABLATION, EvalContext
from dictlearn.evals.downstream import Downstream
from dictlearn.evals.observe import observe_tokens
from dictlearn.lm.language_model import freeze
from dictlearn.lm.patch import patched
from dictlearn.lm.readout import Readout
from dictlearn.objectives.kl_to_teacher import kl_of_log_probs


def run(lm, dictionary, windows, rows=None, chunk_tokens=128, max_tokens=None, batch_windows=8):
    n_tokens = len(windows) * 12
    context = EvalContext(dictionary, lm, windows, None, n_tokens, batch_windows, rows=rows or {})
    meter = Downstream(max_tokens, chunk_tokens).begin(context)
    for start in range(0, len(windows), batch_windows):
        some = range(start, min(start + batch_windows, len(windows)))
        meter.update(observe_tokens(context, windows.window_batch(some), windows.kept(some)))
    return meter.result()


def test_identity_changes_nothing(lm, toy, windows):
    figures = run(lm, toy(k=None), windows).figures
    assert figures["kl"] == 0.0
    assert figures["ce_increase"] == 0.0
    assert figures["top1_agreement"] == 1.0


def test_clean_cross_entropy_is_the_models_own(lm, toy, windows):
    tokens = windows.window_batch(range(len(windows)))
    log_probs = lm.logits(tokens).double().log_softmax(-1)
    valid = windows.kept(range(len(windows)))
    total, n = 0.0, 0
    for b in range(tokens.shape[0]):
        for p in range(tokens.shape[1] - 1):
            if valid[b, p] and valid[b, p + 1]:
                total -= float(log_probs[b, p, tokens[b, p + 1]])
                n += 1
    figures = run(lm, toy(), windows).figures
    assert figures["scored_tokens"] == n
    assert figures["ce_clean"] == pytest.approx(total / n, rel=1e-5)


def test_zero_ablation_by_a_separate_computation(lm, toy, windows):
    tokens = windows.window_batch(range(len(windows)))
    valid = windows.kept(range(len(windows)))
    scored = valid.clone()
    scored[:, -1] = False
    scored[:, :-1] &= valid[:, 1:]
    with patched(lm, {"resid_post.0": lambda _, clean: 0 * clean}, mask_BP=valid):
        zeroed = lm.logits(tokens)[scored].double().log_softmax(-1)
    clean = lm.logits(tokens)[scored].double().log_softmax(-1)
    kl = (clean.exp() * (clean - zeroed)).sum(-1).mean()
    rows = {ZERO_ABLATION: lambda x, y: torch.zeros_like(y)}
    result = run(lm, toy(), windows, rows)
    assert result.rows[ZERO_ABLATION]["kl"] == pytest.approx(float(kl), rel=1e-4)
    lost = result.figures["ce_increase"] / result.rows[ZERO_ABLATION]["ce_increase"]
    assert result.figures["ce_recovered"] == pytest.approx(1 - lost)


def test_a_transcoder_replaces_the_output_of_the_mlp(lm, toy, windows):
    exact = {"exact": lambda x, y: y}
    result = run(lm, toy(("mlp_in.1",), ("mlp_out.1",)), windows, exact)
    assert result.rows["exact"]["kl"] == 0.0
    assert result.figures["kl"] > 0.0


def test_figures_do_not_depend_on_chunks_or_batches(lm, toy, windows):
    dictionary = toy()
    whole = run(lm, dictionary, windows).figures
    assert run(lm, dictionary, windows, batch_windows=3).figures == pytest.approx(whole, rel=1e-5)
    assert run(lm, dictionary, windows, chunk_tokens=5).figures == pytest.approx(whole, rel=1e-5)


def test_fewer_tokens_are_spread_over_the_windows_whatever_the_batches(lm, toy, windows):
    dictionary = toy()
    half = run(lm, dictionary, windows, max_tokens=len(windows) * 6).figures
    in_threes = run(lm, dictionary, windows, max_tokens=len(windows) * 6, batch_windows=3).figures
    assert in_threes == pytest.approx(half, rel=1e-5)
    odd = copy.deepcopy(windows)
    odd.tokens_WP = windows.tokens_WP[1::2]
    assert half == pytest.approx(run(lm, dictionary, odd).figures, rel=1e-5)


def test_the_head_is_applied_in_parts_and_gives_the_models_logits(lm, windows):
    tokens = windows.window_batch(range(3))
    readout = Readout(lm, tokens)
    assert readout.head is not None
    states = readout.states(tokens)
    assert states.shape == (3, 12, 16)
    torch.testing.assert_close(readout.logits(states[1]), lm.logits(tokens)[1].float())


def test_a_head_that_does_more_than_its_weights_is_left_whole(lm, windows, monkeypatch):
    tokens = windows.window_batch(range(3))
    logits = type(lm).logits
    monkeypatch.setattr(type(lm), "logits", lambda self, t: 3 * logits(self, t))
    readout = Readout(lm, tokens)
    assert readout.head is None
    torch.testing.assert_close(readout.logits(readout.states(tokens)[1]), 3 * logits(lm, tokens)[1])


def test_soft_capped_logits_come_out_of_the_split_head(windows):
    config = Gemma2Config(
        vocab_size=48, hidden_size=16, intermediate_size=32, num_hidden_layers=2, head_dim=8,
        num_attention_heads=2, num_key_value_heads=1, max_position_embeddings=64,
        final_logit_softcapping=0.5, pad_token_id=4, bos_token_id=3, eos_token_id=None,
    )  # fmt: skip
    gemma = freeze(Gemma2ForCausalLM(config), name="tiny gemma2")
    tokens = windows.window_batch(range(2))
    readout = Readout(gemma, tokens)
    assert readout.head is not None
    torch.testing.assert_close(readout.logits(readout.states(tokens)), gemma.logits(tokens))
    assert gemma.logits(tokens).abs().max() > 0.1  # the cap bends something


def test_an_encoder_has_no_downstream_figures_and_a_warning_says_so(lm, toy, windows, caplog):
    headless = freeze(lm.model.base_model, name="tiny encoder")
    result = run(headless, toy(), windows)
    assert result.figures == {} and result.rows == {}
    assert "tiny encoder has no next-token head" in caplog.text


def of_logits(teacher_NV: Tensor, patched_NV: Tensor) -> Tensor:
    return kl_of_log_probs(teacher_NV.log_softmax(-1), patched_NV.log_softmax(-1))


def test_kl_of_two_coins_by_hand():
    fair, biased = torch.tensor([[0.5, 0.5]]).log(), torch.tensor([[0.9, 0.1]]).log()
    there = 0.5 * torch.tensor(0.5 / 0.9).log() + 0.5 * torch.tensor(0.5 / 0.1).log()
    back = 0.9 * torch.tensor(0.9 / 0.5).log() + 0.1 * torch.tensor(0.1 / 0.5).log()
    torch.testing.assert_close(of_logits(fair, biased)[0], there)
    torch.testing.assert_close(of_logits(biased, fair)[0], back)
    assert abs(there - back) > 0.1  # the direction matters, and it is KL(teacher || patched)


def test_kl_ignores_what_softmax_ignores():
    teacher, patched_logits = torch.randn(7, 11), torch.randn(7, 11)
    shifted = of_logits(teacher + 5, patched_logits - torch.randn(7, 1))
    torch.testing.assert_close(shifted, of_logits(teacher, patched_logits))
    assert torch.equal(of_logits(teacher, teacher.clone()), torch.zeros(7))


def test_kl_with_a_vocabulary_entry_masked_in_both():
    teacher, patched_logits = torch.randn(3, 5), torch.randn(3, 5)
    masked = lambda t: torch.cat([t, torch.full((3, 1), float("-inf"))], 1)  # noqa: E731
    expected = of_logits(teacher, patched_logits)
    torch.testing.assert_close(of_logits(masked(teacher), masked(patched_logits)), expected)


def test_kl_has_the_gradient_q_minus_p():
    teacher, patched_logits = torch.randn(6, 9), torch.randn(6, 9, requires_grad=True)
    of_logits(teacher, patched_logits).sum().backward()
    expected = patched_logits.softmax(-1) - teacher.softmax(-1)
    torch.testing.assert_close(patched_logits.grad, expected.detach())


def test_loss_by_position_adds_up_to_the_whole(lm, toy, windows):
    rows = {ZERO_ABLATION: lambda x_NSD, y_NTD: torch.zeros_like(y_NTD)}
    result = run(lm, toy(), windows, rows)
    own_P, zero_P, count_P = result.series["ce_by_position"]
    assert count_P.sum() == result.figures["scored_tokens"] and count_P[-1] == 0
    n = result.figures["scored_tokens"]
    assert float((own_P * count_P).sum() / n) == pytest.approx(result.figures["ce_increase"])
    zero = result.rows[ZERO_ABLATION]["ce_increase"]
    assert float((zero_P * count_P).sum() / n) == pytest.approx(zero)
    assert run(lm, toy(), windows).series == {}  # nothing to compare with


def test_loss_by_position_is_that_of_each_token(lm, toy, windows):
    """One window at a time: the position's own token, by a separate computation."""
    dictionary = toy()
    rows = {ZERO_ABLATION: lambda x_NSD, y_NTD: torch.zeros_like(y_NTD)}
    whole = run(lm, dictionary, windows, rows).series["ce_by_position"]
    parts = run(lm, dictionary, windows, rows, chunk_tokens=5, batch_windows=3).series
    assert torch.allclose(whole, parts["ce_by_position"], atol=1e-5)
    valid = windows.kept(range(len(windows)))
    expected = (valid[:, :-1] & valid[:, 1:]).sum(0)
    assert whole[2, :-1].tolist() == expected.tolist()
