"""Dictionaries in place: what they leave as it is, and what interventions write."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from dictlearn.interventions.edits import Edit, Gate, Push, as_edit
from dictlearn.interventions.passes import Setting
from dictlearn.interventions.placed import Placed
from dictlearn.interventions.run import effect, run
from dictlearn.lm.capture import capture
from dictlearn.lm.language_model import LanguageModel
from dictlearn.lm.patch import patched
from dictlearn.objectives.stand_in import FreeRunning
from tests import families
from tests.interventions.placed import KINDS, SILENT, made

WITHOUT_PATTERNS = ("qwen3_5_text", "gptj")  # linear attention; attention with code of its own
INNER = ("transcoder", "skip_transcoder", "plt", "clt", "clt, tied, window", "molt")


def on(family: str) -> tuple[LanguageModel, Tensor]:
    example = families.example(family)
    return example.lm, example.inputs


@pytest.fixture(scope="module")
def llama() -> tuple[LanguageModel, Tensor]:
    return on("llama")


@pytest.mark.parametrize("family", families.DECODERS)
@pytest.mark.parametrize("kind", KINDS)
def test_with_its_error_and_silent_gates_the_model_is_bit_for_bit_the_same(kind: str, family: str):
    lm, tokens_BP = on(family)
    dictionary = made(kind, lm.info)
    clean = lm.logits(tokens_BP)
    assert torch.equal(run(lm, tokens_BP, [dictionary]).logits, clean)
    row = dictionary.code_sources - 1
    silent = [
        Edit(SILENT, 9.0, source=row, when="token"),
        Edit(SILENT, 9.0, source=row, when="input"),
        Edit(0, 9.0, source=row, when=Gate(SILENT, source=row)),
        Edit(SILENT, 3.0, "scale", source=row),
        Push("resid_post.0", torch.ones(lm.info.width), when=Gate(SILENT, row, on="input")),
    ]
    assert torch.equal(run(lm, tokens_BP, [dictionary], silent).logits, clean)
    assert not torch.equal(
        run(lm, tokens_BP, [dictionary], [Edit(0, 9.0, source=row)]).logits, clean
    )
    assert torch.equal(lm.logits(tokens_BP), clean), "no hook is left"


@pytest.mark.parametrize("kind", KINDS)
def test_a_feature_writes_its_change_to_every_target_once(kind: str, llama):
    lm, tokens_BP = llama
    dictionary = made(kind, lm.info)
    x = capture(lm, tokens_BP, dictionary.sources)
    x_NSD = torch.stack([x[site].flatten(0, 1) for site in dictionary.sources], 1)
    dense = dictionary.encode(x_NSD).dense()
    changed = dense.clone()
    changed[:, 0, 2] = 1.5
    change_NTD = dictionary.decode(changed, x_NSD) - dictionary.decode(dense, x_NSD)
    change_BPTD = change_NTD.unflatten(0, tokens_BP.shape)
    sites = {
        site: lambda _, value, t=t: value + change_BPTD[:, :, t]
        for t, site in enumerate(dictionary.targets)
    }
    with patched(lm, sites):
        expected = lm.logits(tokens_BP)
    after = run(lm, tokens_BP, [dictionary], [Edit(2, 1.5)])
    torch.testing.assert_close(after.logits, expected, rtol=1e-4, atol=1e-4)
    assert (after.codes[0].dense().view(*tokens_BP.shape, -1, 24)[:, :, 0, 2] == 1.5).all()


@pytest.mark.parametrize(
    ("edit", "expected"),
    [
        (Edit(2, 3.0), lambda old: torch.full_like(old, 3.0)),
        (Edit(2, 3.0, "add"), lambda old: old + 3),
        (Edit(2, -2.0, "scale"), lambda old: -2 * old),
        (Edit(2, 0.3, "clamp"), lambda old: old.clamp(max=0.3)),
        (Edit(2, (0.2, None), "clamp"), lambda old: old.clamp(min=0.2)),
        (Edit(2, op="zero"), torch.zeros_like),
        (Edit(2, 3.0, when="token"), lambda old: torch.where(old > 0, 3.0, old)),
    ],
)
def test_operations_on_a_feature(edit: Edit, expected, llama):
    lm, tokens_BP = llama
    dictionary = made("jumprelu", lm.info)
    before, after = (run(lm, tokens_BP, [dictionary], edits) for edits in ([], [edit]))
    dense = before.codes[0].dense()
    assert 0 < int((dense[..., 2] > 0).sum()) < dense[..., 2].numel()
    dense[..., 2] = expected(dense[..., 2])
    torch.testing.assert_close(after.codes[0].dense(), dense)
    assert float((after.logits - before.logits).abs().max()) > 1e-3


def test_edits_of_one_feature_apply_in_turn(llama):
    lm, tokens_BP = llama
    dictionary = made("sae", lm.info)
    edits = [Edit(2, 3.0), Edit(2, 2.0, "scale"), Edit(2, 1.0, "add")]
    once = run(lm, tokens_BP, [dictionary], [Edit(2, 7.0)])
    assert torch.equal(run(lm, tokens_BP, [dictionary], edits).logits, once.logits)


@pytest.mark.parametrize(
    ("push", "changed"),
    [
        (dict(value=2.0), lambda x, d, u: x + 2 * d),
        (dict(value=0.5, op="add_scaled"), lambda x, d, u: x + 0.5 * x.norm() * u),
        (dict(op="project_out"), lambda x, d, u: x - (x @ u) * u),
        (dict(value=0.1, op="cap"), lambda x, d, u: x + ((x @ u).clamp(max=0.1) - x @ u) * u),
    ],
)
def test_operations_along_a_direction(push, changed, llama):
    lm, tokens_BP = llama
    direction = torch.randn(lm.info.width, generator=torch.Generator().manual_seed(5))
    unit = direction / direction.norm()
    site = "resid_post.1"
    rows = capture(lm, tokens_BP, [site])[site][:, 3]
    new = torch.stack([changed(row, direction, unit) for row in rows])

    def replace(_, value: Tensor) -> Tensor:
        value = value.clone()
        value[:, 3] = new
        return value

    with patched(lm, {site: replace}):
        expected = lm.logits(tokens_BP)
    found = run(lm, tokens_BP, [], [Push(site, direction, positions=3, **push)]).logits
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)
    assert torch.equal(found[:, :3], lm.logits(tokens_BP)[:, :3])


@pytest.mark.parametrize(
    ("positions", "chosen"),
    [
        ("all", range(7)),
        (2, [2]),
        (-1, [6]),
        ([0, -2], [0, 5]),
        (slice(2, None), range(2, 7)),
        (slice(-3, None), range(4, 7)),
        (slice(1, -1), range(1, 6)),
        (slice(None, None, 3), [0, 3, 6]),
    ],
)
def test_positions(positions, chosen, llama):
    lm, tokens_BP = llama
    code = run(
        lm, tokens_BP, [made("sae", lm.info)], [Edit(SILENT, 5.0, positions=positions)]
    ).codes[0]
    fires = (code.dense()[..., SILENT] == 5).all(0)
    assert fires.nonzero()[:, 0].tolist() == list(chosen)


@pytest.mark.parametrize("family", [f for f in families.DECODERS if f not in WITHOUT_PATTERNS])
def test_direct_effects_are_linear(family: str):
    lm, tokens_BP = on(family)
    held = Setting(layers=range(families.LAYERS))
    for kind in INNER:
        dictionary = made(kind, lm.info)
        base = run(lm, tokens_BP, [dictionary], [], held).logits
        one, three, free = (
            run(lm, tokens_BP, [dictionary], [Edit(SILENT, v, positions=1)], s).logits - base
            for v, s in ((1.0, held), (3.0, held), (3.0, None))
        )
        torch.testing.assert_close(three, 3 * one, rtol=2e-3, atol=2e-4)
        assert float((free - three).abs().max()) > 1e-3
        assert float(three[:, 1:].abs().max()) > 1e-3 and float(three[:, 0].abs().max()) < 1e-5


@pytest.mark.parametrize("family", WITHOUT_PATTERNS)
def test_attention_that_cannot_be_held_is_refused(family: str):
    lm, tokens_BP = on(family)
    with pytest.raises(ValueError, match="of its 3 blocks have no attention pattern to hold"):
        run(lm, tokens_BP, [], [], Setting(attention=True))
    assert lm.model.config._attn_implementation != "dictlearn_patterns"


@pytest.mark.parametrize("kind", KINDS)
def test_without_the_error_targets_are_reconstructions(kind: str, llama):
    lm, tokens_BP = llama
    dictionary = made(kind, lm.info)
    valid_BP = torch.ones_like(tokens_BP, dtype=torch.bool)
    if dictionary.layerwise:
        running = FreeRunning(dictionary, valid_BP)
        targets = range(dictionary.n_targets)
        replacements, reads = running.replacements(targets), running.reads(targets)
    else:
        x = capture(lm, tokens_BP, dictionary.sources)
        y_hat = dictionary(torch.stack([x[site].flatten(0, 1) for site in dictionary.sources], 1))
        y_hat = y_hat.unflatten(0, tokens_BP.shape)
        replacements = {
            site: lambda *_, t=t: y_hat[:, :, t] for t, site in enumerate(dictionary.targets)
        }
        reads = ()
    with patched(lm, replacements, reads):
        expected = lm.logits(tokens_BP)
    found = run(lm, tokens_BP, [dictionary], [], Setting(error=False)).logits
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)


def test_special_tokens_have_no_features_and_never_change(llama):
    lm, tokens_BP = llama
    tokens_BP = tokens_BP.clone()
    tokens_BP[:, 0] = min(lm.special_ids)
    dictionary = made("sae", lm.info)
    out = run(lm, tokens_BP, [dictionary], [Edit(2, 5.0, positions=0)])
    assert torch.equal(out.logits, lm.logits(tokens_BP))
    assert not out.codes[0].l0_NS.view(2, -1)[:, 0].any()
    assert out.codes[0].l0_NS.view(2, -1)[:, 1:].all()


def test_codes_are_those_of_the_pass(llama):
    lm, tokens_BP = llama
    for kind in KINDS:
        dictionary = made(kind, lm.info)
        x = capture(lm, tokens_BP, dictionary.sources)
        x_NSD = torch.stack([x[site].flatten(0, 1) for site in dictionary.sources], 1)
        found = run(lm, tokens_BP, [dictionary]).codes[0]
        expected = dictionary.encode(x_NSD)
        assert torch.equal(found.features, expected.features), kind
        torch.testing.assert_close(found.values, expected.values)
        assert found.dense().shape[:-1] == (
            tokens_BP.shape if found.n_sources == 1 else (14, found.n_sources)
        )


def test_an_effect_holds_both_passes(llama):
    lm, tokens_BP = llama
    seen = effect(lm, tokens_BP, [made("sae", lm.info)], [Edit(2, 20.0, positions=3)])
    assert torch.equal(seen.before.logits, lm.logits(tokens_BP))
    assert (seen.kl[:, :3].abs() < 1e-6).all() and (seen.kl[:, 3] > 0).all()
    first = seen.top(3, position=3)[0]
    assert first.after == pytest.approx(float(seen.after.logits[0, 3].softmax(-1)[first.token]))
    changes = [abs(shift.after - shift.before) for shift in seen.top(5, position=3)]
    assert changes == sorted(changes, reverse=True)


def test_dictionaries_on_different_sites_work_together(llama):
    lm, tokens_BP = llama
    both = [made("sae", lm.info), made("transcoder", lm.info)]
    edits = [Edit(2, 5.0), Edit(3, 4.0, dictionary=1, source="mlp_in.1")]
    together = run(lm, tokens_BP, both, edits)
    assert not torch.equal(together.logits, run(lm, tokens_BP, both, edits[:1]).logits)
    assert not torch.equal(together.logits, run(lm, tokens_BP, both, edits[1:]).logits)
    first = run(lm, tokens_BP, both, [Edit(2, 5.0, when=Gate(SILENT, dictionary=1))])
    assert torch.equal(first.logits, lm.logits(tokens_BP))


def test_hooks_are_removed_after_an_error(llama):
    lm, tokens_BP = llama
    clean = lm.logits(tokens_BP)
    placed = Placed(lm, [made("plt", lm.info)], [Edit(2, 9.0)], Setting(attention=True))
    with pytest.raises(KeyError), placed.attached():
        assert not torch.equal(lm.logits(tokens_BP), clean)
        raise KeyError
    assert torch.equal(lm.logits(tokens_BP), clean)
    assert not lm.trunk._forward_pre_hooks


REFUSED = {
    "want an Edit, a Push or": lambda: as_edit((1, 2, 3)),
    "feature=24: want one from 0 to 23": lambda: Edit(24, 1.0),
    "feature='a': want one from": lambda: Edit("a", 1.0),  # type: ignore[arg-type]
    "source=1: want one from 0 to 0, or resid_post.1": lambda: Edit(2, 1.0, source=1),
    "dictionary=1: 1 are in place": lambda: Edit(2, 1.0, dictionary=1),
    "op='ablate': want one of set, add": lambda: as_edit(Edit(2, op="ablate")),  # type: ignore[arg-type]
    "want a finite number": lambda: as_edit(Edit(2, float("nan"))),
    "only clamp and cap take two": lambda: as_edit(Edit(2, (0.0, 1.0))),
    "value=None: op=add wants a number": lambda: as_edit(Edit(2, op="add")),
    "value=\\(5.0, 1.0\\): the smallest": lambda: as_edit(Edit(2, (5.0, 1.0), "clamp")),
    "positions='last': want": lambda: as_edit(Edit(2, 1.0, positions="last")),  # type: ignore[arg-type]
    "a step of at least 1": lambda: as_edit(Edit(2, 1.0, positions=slice(None, None, -1))),
    "when='often': want always, token, input": lambda: as_edit(
        Edit(2, 1.0, when="often")  # type: ignore[arg-type]
    ),
    "direction: has a value that is not finite, or is zero": lambda: as_edit(
        Push("resid_post.0", torch.zeros(16))
    ),
    "direction: has width 3, and": lambda: Push("resid_post.0", torch.ones(3)),
    "site resid_post.9": lambda: Push("resid_post.9", torch.ones(16)),
}


@pytest.mark.parametrize("message", REFUSED)
def test_what_makes_no_sense_is_refused_in_a_sentence(message: str, llama):
    lm, _ = llama
    with pytest.raises(ValueError, match=message):
        Placed(lm, [made("sae", lm.info)], [REFUSED[message]()])


def test_edits_that_could_change_nothing_are_refused(llama):
    lm, tokens_BP = llama
    dictionary = made("plt", lm.info)
    for positions in (7, -8, [1, 99]):
        with pytest.raises(ValueError, match="there are 7 tokens, 0 to 6"):
            run(lm, tokens_BP, [dictionary], [Edit(2, 5.0, positions=positions)])
    with pytest.raises(
        ValueError, match=r"constrained=range\(1, 2\): feature 2 of source 0 writes to"
    ):
        run(lm, tokens_BP, [dictionary], [Edit(2, 5.0)], Setting(layers=range(1, 2)))


def test_results_say_what_they_are_in_a_line_or_two(llama):
    lm, tokens_BP = llama
    seen = effect(lm, tokens_BP, [made("sae", lm.info)], [Edit(2, 20.0, positions=3)])
    assert repr(seen).startswith("Effect on 2 × 7 tokens: KL ") and "after token" in repr(seen)
    assert repr(seen.after) == (
        "Outcome: 2 × 7 tokens, logits over 64\n"
        f"  Code of 14 tokens and 1 source of 24 features, {len(seen.after.codes[0].features)} of them "
        "active"
    )


def test_two_dictionaries_on_one_site_are_refused(llama):
    lm, _ = llama
    with pytest.raises(ValueError, match="dictionaries 0 and 1 both write resid_post.1"):
        Placed(lm, [made("sae", lm.info), made("jumprelu", lm.info)])
    with pytest.raises(ValueError, match="dictionary 0: has width 16, and"):
        other = families.example("qwen3").lm
        from dataclasses import replace

        Placed(replace(other, info=replace(other.info, width=8)), [made("sae", lm.info)])
    with pytest.raises(ValueError, match="nothing can be held"):
        Setting(error=False, attention=True)
