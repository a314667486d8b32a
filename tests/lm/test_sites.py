"""A site's name must mean, in every family, what sites.py says it means."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from dictlearn.lm.capture import capture
from dictlearn.lm.patch import patched
from dictlearn.lm.sites import SITES, blocks, resolve, site_names

CLOSE: dict[str, Any] = {"rtol": 1e-5, "atol": 1e-5}


def _all_sites(example) -> dict[str, Tensor]:
    return capture(example.lm, example.inputs, site_names(example.lm.model))


def test_blocks_are_the_blocks(example):
    path, layers = blocks(example.lm.model)
    assert [example.block(layer) for layer in range(3)] == list(layers)
    assert example.lm.model.get_submodule(path) is layers


def test_every_site_is_as_wide_as_the_model(example):
    for name, value in _all_sites(example).items():
        assert value.shape[0] == 2 and value.shape[2] == example.lm.info.width, name


def test_what_a_block_hands_on_is_what_the_next_receives(example):
    at = _all_sites(example)
    for layer in range(2):
        assert torch.equal(at[f"resid_post.{layer}"], at[f"resid_pre.{layer + 1}"])


def test_resid_pre_plus_attn_out_is_resid_mid(decoder):
    at = _all_sites(decoder)
    for layer in range(3):
        total = at[f"resid_pre.{layer}"] + at[f"attn_out.{layer}"]
        assert torch.equal(total, at[f"resid_mid.{layer}"])


def test_resid_mid_plus_mlp_out_is_resid_post(decoder):
    at = _all_sites(decoder)
    for layer in range(3):
        total = at[f"resid_mid.{layer}"] + at[f"mlp_out.{layer}"]
        torch.testing.assert_close(total, at[f"resid_post.{layer}"], **CLOSE)


def test_sites_agree_with_the_code_of_the_family(example):
    at, family = _all_sites(example), example.family
    for layer in range(3):
        block = example.block(layer)
        pre, attn, mid, read, out, post = (at[f"{kind}.{layer}"] for kind in SITES)
        torch.testing.assert_close(family.resid_mid(block, pre, attn), mid, **CLOSE)
        torch.testing.assert_close(family.mlp_in(block, pre, mid), read, **CLOSE)
        torch.testing.assert_close(family.mlp_out(block, read), out, **CLOSE)
        torch.testing.assert_close(family.resid_post(block, mid, out), post, **CLOSE)


def test_mlp_norm_is_mlp_in_without_gain_and_bias(example):
    model, info = example.lm.model, example.lm.info
    if example.name in ("olmo2", "olmo3", "bert"):  # whose MLP reads no norm's output
        with pytest.raises(ValueError, match=r"mlp_norm\.1: .*reads no norm's output; want mlp_in"):
            resolve(model, "mlp_norm.1", info)
        return
    site = resolve(model, "mlp_norm.1", info)
    norm = model.get_submodule(site.module_path)
    at = capture(example.lm, example.inputs, ["mlp_norm.1", "mlp_in.1"])
    gain = getattr(norm, "weight", 1.0) + (
        1 if example.name.startswith(("gemma", "qwen3_5")) else 0
    )
    bias = getattr(norm, "bias", None)
    again = at["mlp_norm.1"] * gain + (0 if bias is None else bias)
    torch.testing.assert_close(again, at["mlp_in.1"], **CLOSE)


@pytest.mark.parametrize("site", ["resid_mid.1", "mlp_norm.1", "model.layers.1.mlp:output"])
def test_a_standardised_site(qwen3, site):
    at = capture(qwen3.lm, qwen3.inputs, [site, f"{site}:standardised"])
    x = at[site]
    z = (x - x.mean(-1, keepdim=True)) / (x.std(-1, keepdim=True) + 1e-5)
    torch.testing.assert_close(at[f"{site}:standardised"], z)


def test_what_replaces_a_standardised_site_is_put_back_on_its_scale(qwen3):
    model, tokens = qwen3.lm.model, qwen3.inputs
    scale = capture(qwen3.lm, tokens, ["resid_mid.1"])["resid_mid.1"].std(-1, keepdim=True) + 1e-5
    with torch.no_grad():
        clean = model(tokens).logits
        with patched(qwen3.lm, {"resid_mid.1": lambda reads, x: x + scale}):
            moved = model(tokens).logits
        with patched(qwen3.lm, {"resid_mid.1:standardised": lambda reads, z: z + 1}):
            torch.testing.assert_close(model(tokens).logits, moved, **CLOSE)
        with patched(qwen3.lm, {"resid_mid.1:standardised": lambda reads, z: z}):
            assert torch.equal(model(tokens).logits, clean)
    assert not torch.equal(moved, clean)


def test_mlp_norm_is_not_replaced(qwen3):
    with (
        patched(qwen3.lm, {"mlp_norm.1": lambda reads, clean: clean}),
        pytest.raises(ValueError, match=r"mlp_norm\.1: can be read but not replaced; want mlp_in"),
    ):
        qwen3.lm.model(qwen3.inputs)


def test_sites_agree_with_the_models_own_hidden_states(example):
    at, model = _all_sites(example), example.lm.model
    with torch.no_grad():
        hidden = model(example.inputs, output_hidden_states=True).hidden_states
    for layer in range(3):
        assert torch.equal(at[f"resid_pre.{layer}"], hidden[layer])
    last = example.family.after(model, at["resid_post.2"])
    torch.testing.assert_close(last, hidden[3], **CLOSE)


def test_every_module_recomputes_its_output_from_its_input(example):
    """By module path: attention is left out, it wants masks and positions too."""
    model, calls = example.lm.model, {}

    def note(path: str):
        def hook(_: nn.Module, args: tuple, kwargs: dict, output: object) -> None:
            plain = len(args) == 1 and not kwargs and args[0].ndim == 3
            if plain and isinstance(output, Tensor) and output.ndim == 3:
                calls[path] = calls.get(path, 0) + 1

        return hook

    handles = [
        module.register_forward_hook(note(path), with_kwargs=True)
        for path, module in example.block(1).named_modules()
        if path and "." not in path.replace("output.dense", "output_dense")
    ]
    with torch.no_grad():
        model(example.inputs)
    for handle in handles:
        handle.remove()
    prefix = next(path for path, module in model.named_modules() if module is example.block(1))
    once = [path for path, times in calls.items() if times == 1]  # a shared dropout runs twice
    assert len(once) >= 2
    for path in once:
        name = f"{prefix}.{path}"
        at = capture(example.lm, example.inputs, [f"{name}:input", f"{name}:output"])
        with torch.no_grad():
            again = model.get_submodule(name)(at[f"{name}:input"])
        torch.testing.assert_close(again, at[f"{name}:output"], **CLOSE)


def test_site_names_come_block_by_block(qwen3):
    names = site_names(qwen3.lm.model)
    assert len(names) == 3 * len(SITES)
    assert names[:7] == [*(f"{kind}.0" for kind in SITES), "resid_pre.1"]


def test_more_experts_than_layers_are_not_taken_for_blocks():
    class Block(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.experts = nn.ModuleList(nn.Linear(2, 2) for _ in range(2))

    class Config:
        num_hidden_layers = 2

        def get_text_config(self):
            return self

    class Model(nn.Module):
        config = Config()

        def __init__(self) -> None:
            super().__init__()
            self.layers = nn.ModuleList(Block() for _ in range(2))

        def get_decoder(self):
            return self

    path, layers = blocks(Model())  # type: ignore[arg-type]
    assert path == "layers" and isinstance(layers[0], Block)


@pytest.mark.parametrize(
    ("name", "says"),
    [
        (
            "resid_post.3",
            r"^site resid_post.3: tiny qwen3 has layers 0 to 2, so the last is resid_post.2$",
        ),
        ("resid_pots.1", r"'resid_pots\.1'.*resid_pre\.L, .*resid_post\.L .*0 to 2.*resid_post\.1"),
        ("resid_post", r"the sites of tiny qwen3 are"),
        ("resid_post.-1", r"the sites of tiny qwen3 are"),
        ("mlp", r"model\.layers\.0:output"),
        ("model.layers.1.mpl:input", r"no module 'model\.layers\.1\.mpl'.*model\.layers\.1\.mlp"),
        ("model.layers.1.mlp:out", r"want 'model\.layers\.1\.mlp:input' or .*not ':out'"),
    ],
)
def test_a_site_that_is_not_there_is_named(qwen3, name, says):
    with pytest.raises(ValueError, match=says):
        resolve(qwen3.lm.model, name, qwen3.lm.info)


def test_a_block_of_unknown_parts_says_which_it_has(qwen3):
    layers = nn.ModuleList(nn.Sequential(nn.Linear(2, 2)) for _ in range(3))
    trunk = qwen3.lm.trunk
    kept, trunk.layers = trunk.layers, layers
    try:
        assert resolve(qwen3.lm.model, "resid_post.1", qwen3.lm.info).end == "output"
        with pytest.raises(ValueError, match=r"mlp_out\.1: .*Sequential.*'model\.layers\.1\.0:"):
            resolve(qwen3.lm.model, "mlp_out.1", qwen3.lm.info)
    finally:
        trunk.layers = kept
