"""Other tools' names of the sites, both ways, in every family; nnsight's paths are followed by hand."""

from __future__ import annotations

import re
from typing import Any

import pytest
import torch
from torch import Tensor

from dictlearn.lm.capture import capture
from dictlearn.lm.other_names import TOOLS, names_of, site_named
from dictlearn.lm.sites import SITES
from tests.families import DECODERS

CLOSE: dict[str, Any] = {"rtol": 1e-5, "atol": 1e-5}
SANDWICH = ("gemma2", "gemma3_text", "olmo2", "olmo3", "glm4")
PARALLEL = ("gpt_neox", "phi", "gptj")


def followed(example, expression: str) -> Tensor:
    """What nnsight's expression gives, with hooks at the modules that it names."""
    total, model = None, example.lm.model
    for term in expression.split(" + "):
        match = re.fullmatch(r"model\.(.+)\.(input|output)(\[0\])?", term)
        assert match is not None, term
        found: list = []
        module = model.get_submodule(re.sub(r"\[(\d+)\]", r".\1", match[1]))

        def before(_, args, kwargs, found=found):
            found.append(args[0] if args else kwargs["hidden_states"])

        def after(_, args, output, found=found):
            found.append(output)

        if match[2] == "input":
            handle = module.register_forward_pre_hook(before, with_kwargs=True)
        else:
            handle = module.register_forward_hook(after)
        with torch.no_grad():
            model(example.inputs)
        handle.remove()
        value = found[0][0] if match[3] else found[0]
        assert isinstance(value, Tensor), f"{term}: a {type(value).__name__}"
        total = value if total is None else total + value
    assert total is not None
    return total


def test_every_name_leads_back_and_nnsights_reads_the_site(example):
    if example.name == "vit":
        pytest.skip("reads pixels, and these tools read tokens")
    at = capture(example.lm, example.inputs, [f"{kind}.1" for kind in SITES])
    for site, value in at.items():
        names = names_of(example.lm, site)
        for tool, name in names.items():
            assert site_named(example.lm, tool, name) == site, (tool, name)
        torch.testing.assert_close(followed(example, names["nnsight"]), value, **CLOSE)


def test_which_tools_have_a_name(example):
    if example.name == "vit":
        return
    decoder, family = example.name in DECODERS, example.name
    for kind in SITES:
        names = names_of(example.lm, f"{kind}.1")
        middle = not (kind == "resid_mid" and family in PARALLEL)
        assert ("transformer_lens" in names) == (decoder and middle)
        assert ("interp_engine" in names) == middle
        added = kind in ("attn_out", "mlp_out")
        assert ("nnterp" in names) == (kind != "resid_mid" and not (added and family in SANDWICH))
        assert names.keys() <= set(TOOLS)
        if added:
            assert names["interp_engine"] == f"{kind}_post.1"


def test_interp_engines_raw_points_are_before_the_norm_behind_the_module(decoder):
    """With that norm applied they are what is added to the residual; without one they are that."""
    lm, block = decoder.lm, decoder.block(1)
    norms = {"attn_out": "post_attention_layernorm", "mlp_out": "post_feedforward_layernorm"}
    if decoder.name == "glm4":
        norms = {"attn_out": "post_self_attn_layernorm", "mlp_out": "post_mlp_layernorm"}
    for kind, norm in norms.items():
        raw = site_named(lm, "interp_engine", f"{kind}.1")
        at = capture(lm, decoder.inputs, list({raw, f"{kind}.1"}))
        if decoder.name not in SANDWICH:
            assert raw == f"{kind}.1"
            continue
        assert raw.endswith(":output")
        with torch.no_grad():
            behind = getattr(block, norm)(at[raw])
        torch.testing.assert_close(behind, at[f"{kind}.1"], **CLOSE)


def test_modules_and_the_norm_before_the_gain(qwen3):
    names = names_of(qwen3.lm, "mlp_norm.1")
    assert set(names) == {"transformer_lens", "saelens"}
    assert names["saelens"] == "blocks.1.ln2.hook_normalized"
    assert site_named(qwen3.lm, "saelens", names["saelens"]) == "mlp_norm.1"
    path = "model.layers.1.mlp.act_fn:output"
    assert names_of(qwen3.lm, path) == {"nnsight": "model.model.layers[1].mlp.act_fn.output"}
    assert site_named(qwen3.lm, "nnsight", "model.model.layers[1].mlp.act_fn.output") == path


@pytest.mark.parametrize(
    ("tool", "name", "says"),
    [
        ("tensorboard", "x", "tool=tensorboard: want one of transformer_lens"),
        ("saelens", "blocks.1.attn.hook_q", "saelens has no site of this name"),
        ("interp_engine", "router_logits.1", "interp_engine has no site of this name"),
        ("nnterp", "layers_output[9]", "has layers 0 to 2"),
        ("nnsight", "model.model.layers[1].nothing.output", "has no module"),
    ],
)
def test_a_name_of_nothing_is_refused(qwen3, tool, name, says):
    with pytest.raises(ValueError, match=re.escape(says)):
        site_named(qwen3.lm, tool, name)


def test_nnterps_ambiguous_name_is_refused():
    from tests.families import example

    with pytest.raises(ValueError, match=r"versions differ .* want model.layers.1.mlp:output, or"):
        site_named(example("gemma2").lm, "nnterp", "mlps_output[1]")
