"""Capturing gives what the full forward computes, and runs no more of the model than it must."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForCausalLM

import dictlearn
from dictlearn.lm.capture import capture
from dictlearn.lm.language_model import LanguageModel, freeze
from dictlearn.lm.readout import Readout, has_head
from dictlearn.lm.sites import SITES, site_names
from tests.families import hooks_of

LENGTHS = (7, 4, 1)


def _modules_run(model: nn.Module, run) -> set[str]:
    ran: set[str] = set()
    handles = [
        module.register_forward_hook(lambda *_, path=path: ran.add(path) if path else None)
        for path, module in model.named_modules()
    ]
    try:
        run()
    finally:
        for handle in handles:
            handle.remove()
    return ran


def test_stopping_early_changes_no_value(example):
    lm, tokens = example.lm, example.inputs
    everything = capture(lm, tokens, [*site_names(lm.model)])
    for kind in SITES:
        alone = capture(lm, tokens, [f"{kind}.1"])
        assert torch.equal(alone[f"{kind}.1"], everything[f"{kind}.1"])


def test_nothing_runs_after_the_last_site(qwen3):
    def at(*sites: str) -> set[str]:
        model = qwen3.lm.model
        ran = _modules_run(model, lambda: capture(qwen3.lm, qwen3.inputs, sites))
        return {path.removeprefix("model.layers.") for path in ran}

    assert not any(path.startswith(("0", "1", "2")) for path in at("resid_pre.0"))
    ran = at("mlp_in.1", "mlp_out.0")
    assert {"0", "1.self_attn", "1.post_attention_layernorm"} <= ran
    assert not ran & {"1", "1.mlp", "1.mlp.up_proj", "2", "2.self_attn", "model.norm", "lm_head"}


def test_neither_head_nor_final_norm_runs(decoder):
    model, tokens = decoder.lm.model, decoder.inputs
    whole = _modules_run(model, lambda: model(tokens))
    ran = _modules_run(model, lambda: capture(decoder.lm, tokens, ["resid_post.2"]))
    skipped = {path.rpartition(".")[2] for path in whole - ran if "layers.2" not in path}
    norms = {"norm", "ln_f", "final_layer_norm", "final_layernorm"}
    assert "lm_head" in skipped and skipped & norms, skipped


def test_the_order_of_sites_means_nothing(example):
    sites = ["resid_post.1", "mlp_in.0", "resid_mid.1", "attn_out.1", "resid_pre.0"]
    one = capture(example.lm, example.inputs, sites)
    other = capture(example.lm, example.inputs, sites[::-1])
    assert list(one) == sites and list(other) == sites[::-1]
    assert all(torch.equal(one[site], other[site]) for site in sites)


def test_a_site_asked_for_twice_is_one_tensor(qwen3):
    at = capture(qwen3.lm, qwen3.inputs, ["resid_post.1", "resid_post.1"])
    assert list(at) == ["resid_post.1"]
    assert capture(qwen3.lm, qwen3.inputs, []) == {}


def test_two_names_of_one_place_are_one_tensor(qwen3):
    sites = ["resid_post.0", "resid_pre.1", "model.layers.1:input"]
    at = capture(qwen3.lm, qwen3.inputs, sites)
    assert len({value.data_ptr() for value in at.values()}) == 1


def test_nothing_captured_holds_a_graph(qwen3):
    wants = nn.Parameter(torch.zeros(16))
    handle = qwen3.lm.trunk.embed_tokens.register_forward_hook(lambda *a: a[2] + wants)
    try:
        at = capture(qwen3.lm, qwen3.inputs, ["resid_post.1"])
        assert torch.is_grad_enabled()
    finally:
        handle.remove()
    assert not at["resid_post.1"].requires_grad
    # An ordinary tensor all the same, which a dictionary may train on.
    (at["resid_post.1"] * wants).sum().backward()
    assert wants.grad is not None


def test_no_hook_is_left_behind(example):
    lm = example.lm
    before = hooks_of(
        lm
    )  # transformers leaves some itself, once it has been asked for hidden states
    capture(lm, example.inputs, ["resid_mid.1"])
    with pytest.raises(ValueError, match=r"site resid_mid\.9: .* has layers 0 to"):
        capture(lm, example.inputs, ["resid_mid.1", "resid_mid.9"])
    assert hooks_of(lm) == before
    with torch.no_grad():
        lm.model(example.inputs)


def test_the_model_still_runs_whole_after_a_capture(decoder):
    before = decoder.lm.logits(decoder.inputs)
    capture(decoder.lm, decoder.inputs, ["resid_mid.0"])
    assert torch.equal(decoder.lm.logits(decoder.inputs), before)


def test_an_attention_mask_hides_what_it_masks(bert):
    tokens = bert.inputs
    mask = torch.ones_like(tokens)
    mask[:, -2:] = 0
    other = torch.where(mask.bool(), tokens, 5)
    site = ["resid_post.2"]
    masked = [capture(bert.lm, t, site, mask)[site[0]][:, :-2] for t in (tokens, other)]
    assert torch.equal(*masked)
    free = [capture(bert.lm, t, site)[site[0]][:, :-2] for t in (tokens, other)]
    assert not torch.equal(*free)


class Padded:
    """All that padding asks of a tokenizer."""

    def __init__(self, pad: int, bos: int):
        self.pad_token_id, self.bos_token_id = pad, bos
        self.eos_token_id = self.cls_token_id = None


def padded(example, pad: int = 0, bos: int = 1) -> LanguageModel:
    tokenizer: Any = Padded(pad, bos)
    return replace(example.lm, tokenizer=tokenizer, special_ids=frozenset({pad, bos}))


def test_padding_changes_no_real_token(example):
    """Windows of 7, 4 and 1 tokens, filled up to 9: each as it would be alone, in every family."""
    if example.name == "vit":
        pytest.skip("pixels have no padding")
    lm, tokens = padded(example), torch.full((3, 9), 0)
    for row, n in enumerate(LENGTHS):
        tokens[row, :n] = example.inputs[0, :n]
    names = [*site_names(lm.model)]
    together = capture(lm, tokens, names)
    for row, n in enumerate(LENGTHS):
        alone = capture(lm, tokens[row : row + 1, :n], names)
        for name in names:
            torch.testing.assert_close(
                together[name][row, :n], alone[name][0], rtol=1e-4, atol=1e-4, msg=name
            )
    if has_head(lm):
        logits, readout = lm.logits(tokens), Readout(lm, tokens)
        states = readout.states(tokens)
        for row, n in enumerate(LENGTHS):
            want = lm.logits(tokens[row : row + 1, :n])[0]
            torch.testing.assert_close(logits[row, :n], want, rtol=1e-4, atol=1e-4)
            split = readout.logits(states[row, :n])
            torch.testing.assert_close(split, want, rtol=1e-4, atol=1e-4)


def test_what_stands_in_the_padding_is_never_seen(bert):
    """Without the mask an encoder's real tokens would change with it."""
    tokens = torch.cat([bert.inputs, torch.zeros(2, 2, dtype=torch.int64)], 1)
    others = tokens.masked_fill(tokens == 0, 5)
    site = ["resid_post.2"]
    masked = capture(padded(bert), tokens, site)[site[0]][:, :-2]
    same = capture(padded(bert, pad=5), others, site)[site[0]][:, :-2]
    assert torch.equal(masked, same)
    assert not torch.allclose(capture(bert.lm, tokens, site)[site[0]][:, :-2], masked, atol=1e-3)


def test_every_forward_pass_of_a_model_knows_its_padding():
    """Whoever runs a model gives it `inputs(tokens)`, or what was made so."""
    source = Path(dictlearn.__file__).parent
    runs = re.compile(r"(?<!def )(trunk|lm\.model|self\.model)\((.*)")
    found = {
        f"{path.name}: {match[0]}"
        for path in source.rglob("*.py")
        for line in path.read_text().splitlines()
        if (match := runs.search(line)) and not match[2].startswith(")")
    }
    assert len(found) >= 4
    assert [line for line in found if "inputs" not in line] == []


def test_windows_without_padding_get_no_mask(qwen3):
    """A mask of ones would take another path through attention, and round differently."""
    text = qwen3.inputs
    lm = padded(qwen3)
    assert lm.inputs(text).keys() == {"input_ids"}
    for ends_in_a_start in (text, torch.cat([text, torch.ones(2, 1, dtype=torch.int64)], 1)):
        assert padded(qwen3, pad=1).inputs(ends_in_a_start).keys() == {"input_ids"}
    assert lm.inputs(torch.zeros(2, 5, dtype=torch.int64)).keys() == {"input_ids"}  # nothing else
    padding = torch.tensor([[4, 1, 1], [1, 4, 1], [1, 1, 1]])
    assert padded(qwen3, pad=1).inputs(padding)["attention_mask"].tolist() == [
        [1, 0, 0],
        [1, 1, 1],  # the start of the next document
        [1, 1, 1],
    ]
    assert qwen3.lm.inputs(padding).keys() == {"input_ids"}  # no tokenizer, no pad


def test_a_module_that_does_not_run_is_named(qwen3):
    with pytest.raises(
        ValueError, match=r"lm_head:input: lm_head does not run .* without its head"
    ):
        capture(qwen3.lm, qwen3.inputs, ["lm_head:input"])


def test_a_place_without_activations_is_named(qwen3):
    with pytest.raises(ValueError, match=r"model\.embed_tokens:input: want .*found \[2, 7\]"):
        capture(qwen3.lm, qwen3.inputs, ["model.embed_tokens:input"])


def test_a_module_called_by_keyword_has_an_input(qwen3):
    at = capture(qwen3.lm, qwen3.inputs, ["model.layers.1.self_attn:input", "resid_pre.1"])
    norm = qwen3.block(1).get_submodule("input_layernorm")
    with torch.no_grad():
        torch.testing.assert_close(
            norm(at["resid_pre.1"]), at["model.layers.1.self_attn:input"], rtol=0, atol=0
        )


def test_bf16_models_give_bf16_sites_that_add_up(bf16_lm):
    tokens = torch.arange(14).view(2, 7) + 4
    at = capture(bf16_lm, tokens, site_names(bf16_lm.model))
    assert {value.dtype for value in at.values()} == {torch.bfloat16}

    def close(left: Tensor, right: Tensor) -> None:
        torch.testing.assert_close(left, right, rtol=2e-2, atol=2e-2)

    for layer in range(3):
        pre, attn, mid, _, out, post = (at[f"{kind}.{layer}"] for kind in SITES)
        assert torch.equal(pre + attn, mid)
        close(mid + out, post)


def test_a_trainers_autocast_does_not_reach_the_model(qwen3):
    outside = capture(qwen3.lm, qwen3.inputs, ["resid_post.2"])["resid_post.2"]
    with torch.autocast("cpu", torch.bfloat16):
        inside = capture(qwen3.lm, qwen3.inputs, ["resid_post.2"])["resid_post.2"]
    assert torch.equal(inside, outside)


def test_a_tensor_that_the_model_overwrites_is_not_passed_off_as_the_site():
    """Falcon adds attention's output into the MLP's, in place."""
    config = AutoConfig.for_model(
        "falcon", vocab_size=64, hidden_size=16, num_hidden_layers=2, num_attention_heads=4
    )
    lm = freeze(AutoModelForCausalLM.from_config(config), name="falcon")
    tokens = torch.arange(6).view(1, 6)
    with pytest.raises(ValueError, match=r"mlp_out\.0: falcon overwrites this tensor"):
        capture(lm, tokens, ["mlp_out.0", "resid_post.1"])
    assert capture(lm, tokens, ["mlp_out.0"])["mlp_out.0"].shape == (1, 6, 16)
