"""Putting something else in a site's place: there, only there, and with gradients."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from dictlearn.lm.capture import capture
from dictlearn.lm.patch import patched
from dictlearn.lm.sites import SITES
from tests.families import hooks_of

MASK = torch.tensor([[0, 1, 1, 0, 1, 1, 1], [0, 0, 1, 1, 1, 0, 1]], dtype=torch.bool)


def _same(_, clean):
    return clean


@pytest.mark.parametrize("kind", SITES)
def test_replacing_a_site_by_itself_changes_no_bit(decoder, kind):
    lm, tokens = decoder.lm, decoder.inputs
    clean = lm.logits(tokens)
    for mask in (None, MASK):
        with patched(lm, {f"{kind}.{layer}": _same for layer in range(3)}, mask_BP=mask):
            assert torch.equal(lm.logits(tokens), clean)
    assert torch.equal(lm.logits(tokens), clean)


@pytest.mark.parametrize("kind", SITES)
def test_the_new_value_stands_where_the_mask_is_true_and_the_old_elsewhere(decoder, kind):
    lm, tokens, site = decoder.lm, decoder.inputs, f"{kind}.1"
    clean = capture(lm, tokens, [site])[site]
    new = torch.randn_like(clean)
    rounding = 1e-5 if kind == "resid_mid" else 0
    with patched(lm, {site: lambda *_: new}, mask_BP=MASK):
        found = capture(lm, tokens, [site])[site]  # its hooks come after the replacement's
    torch.testing.assert_close(found[MASK], new[MASK], rtol=rounding, atol=rounding)
    assert torch.equal(found[~MASK], clean[~MASK])


@pytest.mark.parametrize("kind", ["attn_out", "resid_mid", "mlp_out"])
def test_what_a_replacement_adds_arrives_in_the_residual(decoder, kind):
    """Also where a norm follows: the replaced quantity is what the block adds, not what is normed.

    And a replaced resid_mid is the whole residual: what the MLP reads and what it is added to.
    """
    lm, tokens, site = decoder.lm, decoder.inputs, f"{kind}.1"
    push = torch.randn(16)
    with patched(lm, {site: lambda _, clean: clean + push}):
        at = capture(lm, tokens, [f"{name}.1" for name in SITES])
    clean = capture(lm, tokens, [f"{name}.1" for name in SITES])
    assert torch.equal(at["resid_pre.1"], clean["resid_pre.1"])
    if kind == "mlp_out":
        torch.testing.assert_close(at["resid_post.1"], clean["resid_post.1"] + push)
    else:
        torch.testing.assert_close(at["resid_mid.1"], clean["resid_mid.1"] + push)
        torch.testing.assert_close(at["resid_post.1"], at["resid_mid.1"] + at["mlp_out.1"])


def test_gradients_reach_the_replacement_and_never_the_model(decoder):
    lm, tokens = decoder.lm, decoder.inputs
    scale, read_scale = nn.Parameter(torch.ones(16)), nn.Parameter(torch.ones(16))
    replacements = {
        "mlp_out.1": lambda seen, clean: clean * scale + seen["mlp_in.1"] * read_scale,
        "resid_post.1": lambda seen, clean: clean * scale,
        "resid_mid.2": lambda seen, clean: clean * scale,
    }
    with patched(lm, replacements, reads=["mlp_in.1"], mask_BP=MASK):
        lm.logits(tokens).logsumexp(-1).sum().backward()
    for parameter in (scale, read_scale):
        assert parameter.grad is not None and parameter.grad.isfinite().all()
        assert parameter.grad.abs().min() > 0
    assert all(parameter.grad is None for parameter in lm.model.parameters())
    assert not any(parameter.requires_grad for parameter in lm.model.parameters())


def test_the_gradient_is_that_of_the_function(gpt2):
    """Finite differences in double precision: no term is lost on the way through model and mask.

    Of the families here gpt2 computes all of it in double precision.
    """
    lm, tokens = gpt2.lm, gpt2.inputs
    lm.model.double()
    try:
        x = torch.randn(2, 7, 16, dtype=torch.float64, requires_grad=True)

        def loss(x):
            with patched(lm, {"mlp_out.1": lambda _, clean: clean + x}, mask_BP=MASK):
                return lm.logits(tokens).logsumexp(-1).sum()

        torch.autograd.gradcheck(loss, x, fast_mode=True)
        loss(x).backward()
        assert x.grad is not None and not x.grad[~MASK].any() and x.grad[MASK].all()
    finally:
        lm.model.float()


def test_without_a_wanted_gradient_there_is_no_graph(qwen3):
    assert not qwen3.lm.logits(qwen3.inputs).requires_grad
    with patched(qwen3.lm, {"mlp_out.1": _same}):
        assert not qwen3.lm.logits(qwen3.inputs).requires_grad


def test_reads_are_of_the_patched_pass(qwen3):
    """Free running: a later layer's dictionary reads what the earlier one's made of the model."""
    lm, tokens = qwen3.lm, qwen3.inputs
    clean = capture(lm, tokens, ["mlp_in.0", "mlp_in.1", "mlp_in.2"])
    calls: list[str] = []

    def halved(layer):
        def replacement(seen, value):
            calls.append(f"{layer} knows {sorted(seen)}")
            return value * 0.5

        return replacement

    targets = {f"mlp_out.{layer}": halved(layer) for layer in (2, 0, 1)}
    with patched(lm, targets, reads=["mlp_in.2", "mlp_in.0", "mlp_in.1"]) as seen:
        lm.logits(tokens)
    assert calls == [
        "0 knows ['mlp_in.0']",
        "1 knows ['mlp_in.0', 'mlp_in.1']",
        "2 knows ['mlp_in.0', 'mlp_in.1', 'mlp_in.2']",
    ]
    assert torch.equal(seen["mlp_in.0"], clean["mlp_in.0"])
    assert not torch.equal(seen["mlp_in.1"], clean["mlp_in.1"])


def test_a_site_is_read_before_it_is_replaced(qwen3):
    """An autoencoder reads what it replaces; the next block receives the replacement."""
    lm, tokens = qwen3.lm, qwen3.inputs
    clean = capture(lm, tokens, ["resid_post.1"])["resid_post.1"]
    replacement = {"resid_post.1": lambda seen, value: seen["resid_post.1"] * 2}
    with patched(lm, replacement, reads=["resid_post.1", "resid_pre.2"]) as seen:
        lm.logits(tokens)
    assert torch.equal(seen["resid_post.1"], clean)
    assert torch.equal(seen["resid_pre.2"], clean * 2)


def test_the_order_of_targets_means_nothing(decoder):
    """Also for resid_mid, a sum: it is made of what replacements upstream left in the model."""
    lm, tokens = decoder.lm, decoder.inputs
    replacements = {
        "resid_mid.1": lambda seen, value: value * 1.5 + seen["attn_out.1"],
        "resid_pre.1": lambda seen, value: value * 0.5,
        "attn_out.1": lambda seen, value: value * 0.25,
    }
    reads = list(replacements)
    logits = []
    for order in (replacements, dict(reversed(replacements.items()))):
        with patched(lm, order, reads) as seen:
            logits.append(lm.logits(tokens))
        total = seen["resid_pre.1"] * 0.5 + seen["attn_out.1"] * 0.25
        assert torch.equal(seen["resid_mid.1"], total)
    assert torch.equal(*logits)


def test_reads_are_renewed_by_each_pass(qwen3):
    with patched(qwen3.lm, {}, reads=["mlp_in.1"]) as seen:
        assert len(seen) == 0
        qwen3.lm.logits(qwen3.inputs)
        first = seen["mlp_in.1"]
        qwen3.lm.logits(qwen3.inputs[:1])
        assert seen["mlp_in.1"].shape == (1, 7, 16) and first.shape == (2, 7, 16)


def test_nothing_read_in_one_pass_is_known_at_the_start_of_the_next(qwen3):
    knew: list[bool] = []

    def ask(seen, clean):
        knew.append("mlp_in.1" in seen)
        return clean

    with patched(qwen3.lm, {"attn_out.1": ask}, reads=["mlp_in.1"]):
        for _ in range(2):
            qwen3.lm.logits(qwen3.inputs)
    assert knew == [False, False]


def test_several_layers_at_once_with_zero_replacements_leave_the_embedding(qwen3):
    lm, tokens = qwen3.lm, qwen3.inputs
    zeros = {
        f"{kind}.{layer}": lambda _, clean: torch.zeros_like(clean)
        for kind in ("attn_out", "mlp_out")
        for layer in range(3)
    }
    with patched(lm, zeros):
        found = capture(lm, tokens, ["resid_post.2"])["resid_post.2"]
    assert torch.equal(found, lm.trunk.embed_tokens(tokens))


def test_a_tuple_keeps_its_other_parts(decoder):
    """Attention's weights, gpt_oss's router scores: whatever comes with the value stays with it."""
    lm, tokens = decoder.lm, decoder.inputs
    path = next(p for p, m in lm.model.named_modules() if m is decoder.block(1))
    clean = lm.logits(tokens)
    with patched(lm, {f"{path}:input": _same, f"{path}:output": _same}):
        assert torch.equal(lm.logits(tokens), clean)


def test_a_module_called_by_keyword_can_be_patched(qwen3):
    lm, tokens, site = qwen3.lm, qwen3.inputs, "model.layers.1.self_attn:input"
    with patched(lm, {site: lambda _, clean: torch.zeros_like(clean)}):
        at = capture(lm, tokens, ["attn_out.1", "attn_out.2"])
    assert not at["attn_out.1"].any() and at["attn_out.2"].any()  # qwen3's attention has no bias


def test_it_works_in_bf16_with_a_dictionary_in_fp32(bf16_lm):
    tokens = torch.arange(14).view(2, 7) + 4
    site = "mlp_out.1"
    clean_logits, clean = bf16_lm.logits(tokens), capture(bf16_lm, tokens, [site])[site]
    decoder = nn.Linear(16, 16)
    with patched(bf16_lm, {"resid_mid.1": _same, site: _same}, mask_BP=MASK):
        assert torch.equal(bf16_lm.logits(tokens), clean_logits)
    with patched(bf16_lm, {site: lambda _, x: decoder(x.float())}, mask_BP=MASK):
        found = capture(bf16_lm, tokens, [site])[site]
        bf16_lm.logits(tokens).float().logsumexp(-1).sum().backward()
    assert torch.equal(found[~MASK], clean[~MASK])
    torch.testing.assert_close(found[MASK], decoder(clean.float()).bfloat16()[MASK])
    assert decoder.weight.grad is not None and decoder.weight.grad.abs().sum() > 0


def test_hooks_go_whatever_happens(qwen3):
    lm, tokens = qwen3.lm, qwen3.inputs
    clean, before = lm.logits(tokens), hooks_of(lm)
    with (
        pytest.raises(ZeroDivisionError),
        patched(lm, {"mlp_out.1": lambda *_: 1 / 0}, reads=["mlp_in.0"]),  # type: ignore[dict-item]
    ):
        lm.logits(tokens)
    with pytest.raises(ValueError, match="sites of tiny qwen3"), patched(lm, {"nope.1": _same}):
        pass
    assert torch.equal(lm.logits(tokens), clean)
    assert hooks_of(lm) == before


@pytest.mark.parametrize(
    ("site", "replacement", "mask", "says"),
    [
        (
            "mlp_out.1",
            lambda _, x: x[:, :1],
            None,
            r"mlp_out\.1: .*\[2, 1, 16\], want \[2, 7, 16\]",
        ),
        ("mlp_out.1", _same, MASK[:1], r"mlp_out\.1: mask is \[1, 7\], want \[2, 7\]"),
        ("attn_out.1", lambda seen, _: seen["mlp_in.1"], None, r"mlp_in\.1 is not known .* none"),
    ],
)
def test_a_bad_replacement_is_named(qwen3, site, replacement, mask, says):
    with (
        patched(qwen3.lm, {site: replacement}, reads=["mlp_in.1"], mask_BP=mask),
        pytest.raises(ValueError, match=says),
    ):
        qwen3.lm.logits(qwen3.inputs)


def test_an_encoder_has_no_next_token(bert):
    with pytest.raises(ValueError, match="bert has no next-token head"):
        bert.lm.logits(bert.inputs)


def test_encoders_can_be_patched_too(bert):
    lm, tokens = bert.lm, bert.inputs
    new = torch.randn(2, 7, 16)
    with patched(lm, {"resid_mid.1": lambda *_: new}):
        at = capture(lm, tokens, ["mlp_in.1", "resid_post.1"])
    assert torch.equal(at["mlp_in.1"], new)
    block = bert.block(1)
    with torch.no_grad():
        out = block.output.dense(block.intermediate(new))  # type: ignore[union-attr,operator]
        torch.testing.assert_close(block.output.LayerNorm(out + new), at["resid_post.1"])  # type: ignore[union-attr,operator]
