"""Names of a model's sites in TransformerLens and SAELens, interp-engine, nnsight and nnterp.

    ours           TransformerLens, SAELens      interp-engine      nnterp
    resid_pre.L    blocks.L.hook_resid_pre       resid_pre.L        layers_input[L]
    attn_out.L     blocks.L.hook_attn_out        attn_out_post.L    attentions_output[L]
    resid_mid.L    blocks.L.hook_resid_mid       resid_mid.L
    mlp_norm.L     blocks.L.ln2.hook_normalized
    mlp_in.L       blocks.L.mlp.hook_in          mlp_in.L           mlps_input[L]
    mlp_out.L      blocks.L.hook_mlp_out         mlp_out_post.L     mlps_output[L]
    resid_post.L   blocks.L.hook_resid_post      resid_post.L       layers_output[L]

attn_out and mlp_out are added to the residual. In a family with a norm after the module (Gemma 2 and 3,
OLMo 2 and 3, GLM 4) they are the norm's output. In interp-engine attn_out and mlp_out are the module's
own output, and its `_post` names are ours in every family. In these families nnterp's versions differ,
so it has no name for them. nnsight's names are paths of modules: model.model.layers[3].mlp.output.
"""

from __future__ import annotations

import re
from typing import Literal, get_args

import torch

from dictlearn.lm.language_model import LanguageModel
from dictlearn.lm.readout import has_head
from dictlearn.lm.sites import ATTENTION, NORMS_AFTER, Site, blocks, resolve, site_names

Tool = Literal["transformer_lens", "saelens", "interp_engine", "nnsight", "nnterp"]
TOOLS: tuple[str, ...] = get_args(Tool)

HOOKS = {  # TransformerLens; `mlp.hook_in` is after the norm's gain, `ln2.hook_normalized` before
    "resid_pre": "hook_resid_pre",
    "attn_out": "hook_attn_out",
    "resid_mid": "hook_resid_mid",
    "mlp_norm": "ln2.hook_normalized",
    "mlp_in": "mlp.hook_in",
    "mlp_out": "hook_mlp_out",
    "resid_post": "hook_resid_post",
}
OF_HOOKS = {hook: kind for kind, hook in HOOKS.items()} | {"mlp.hook_out": "mlp_out"}
POINTS = {  # interp-engine
    "resid_pre": "resid_pre",
    "attn_out": "attn_out_post",
    "resid_mid": "resid_mid",
    "mlp_in": "mlp_in",
    "mlp_out": "mlp_out_post",
    "resid_post": "resid_post",
}
OF_POINTS = {point: kind for kind, point in POINTS.items()}
ACCESSORS = {  # nnterp
    "resid_pre": "layers_input",
    "attn_out": "attentions_output",
    "mlp_in": "mlps_input",
    "mlp_out": "mlps_output",
    "resid_post": "layers_output",
}
OF_ACCESSORS = {accessor: kind for kind, accessor in ACCESSORS.items()}
ADDED = ("attn_out", "mlp_out")  # sites that may be after a norm


def hook_name(site: str) -> str:
    """TransformerLens' name of a site; a module path is returned as it is."""
    kind, _, layer = site.partition(".")
    return f"blocks.{layer}.{HOOKS[kind]}" if kind in HOOKS and layer.isdigit() else site


def site_of_hook(hook: str) -> str:
    """Our name of a TransformerLens hook; a hook that is not a site is returned as it is."""
    match = re.fullmatch(r"blocks\.(\d+)\.(.+)", hook)
    return f"{OF_HOOKS[match[2]]}.{match[1]}" if match and match[2] in OF_HOOKS else hook


def names_of(lm: LanguageModel, site: str) -> dict[str, str]:
    """The names of a site by tool, without tools that have none.

    Raises:
        ValueError: the model has no such site.
    """
    resolved = resolve(lm.model, site, lm.info)
    kind, _, layer = site.partition(".")
    names: dict[str, str] = {}
    if in_lens(lm, site):
        names |= dict.fromkeys(("transformer_lens", "saelens"), hook_name(site))
    if kind in POINTS and layer.isdigit() and _has_middle(lm, kind, layer):
        names["interp_engine"] = f"{POINTS[kind]}.{layer}"
    if resolved.end != "normed" and not resolved.standardised:
        names["nnsight"] = _expression(lm, resolved)
    if kind in ACCESSORS and not (kind in ADDED and _norm_after(lm, kind, layer)):
        names["nnterp"] = f"{ACCESSORS[kind]}[{layer}]"
    return names


def site_named(lm: LanguageModel, tool: str, name: str) -> str:
    """Our name of the site with this name in a tool.

    Raises:
        ValueError: the tool is unknown, or the name is not that of a site.
    """
    if tool not in TOOLS:
        raise ValueError(f"tool={tool}: want one of {', '.join(TOOLS)}")
    if tool == "interp_engine":
        site = _of_point(lm, name)
    elif tool == "nnterp":
        site = _of_accessor(lm, name)
    elif tool == "nnsight":
        site = _of_expression(lm, name)
    else:
        site = site_of_hook(name)
        site = site if site != name else None
    if site is None:
        raise ValueError(f"{name}: {tool} has no site of this name")
    resolve(lm.model, site, lm.info)
    return site


def _of_point(lm: LanguageModel, name: str) -> str | None:
    kind, _, layer = name.partition(".")
    if kind in ADDED and layer.isdigit():
        return module_output(lm, kind, layer)
    return f"{OF_POINTS[kind]}.{layer}" if kind in OF_POINTS else None


def _of_accessor(lm: LanguageModel, name: str) -> str | None:
    match = re.fullmatch(r"(\w+)\[(\d+)\]", name)
    if match is None or match[1] not in OF_ACCESSORS:
        return None
    kind, layer = OF_ACCESSORS[match[1]], match[2]
    if kind in ADDED and _norm_after(lm, kind, layer):
        raise ValueError(
            f"{name}: nnterp's versions differ in whether this is before or after the norm after the "
            f"module in {lm.info.family}; want {module_output(lm, kind, layer)}, or {kind}.{layer}"
        )
    return f"{kind}.{layer}"


def _of_expression(lm: LanguageModel, name: str) -> str | None:
    """The site with this path, by its short name if it has one."""
    plain = name.replace(" ", "").replace(".output[0]", ".output")
    for site in site_names(lm.model):
        if plain == _terms(resolve(lm.model, site, lm.info)).replace(" ", ""):
            return site
    match = re.fullmatch(r"model\.(.+)\.(input|output)", plain)
    return None if match is None else f"{_dotted(match[1])}:{match[2]}"


def _expression(lm: LanguageModel, site: Site) -> str:
    """nnsight's expression, with [0] if the module's output is a tuple."""
    first = site.end == "output" and _gives_tuple(lm, site.module_path)
    return _terms(site) + ("[0]" if first else "")


def _terms(site: Site) -> str:
    before = f"{_terms(site.plus)} + " if site.plus else ""
    path = re.sub(r"\.(\d+)", r"[\1]", site.module_path)
    return f"{before}model.{path}.{site.end}"


def _dotted(path: str) -> str:
    return re.sub(r"\[(\d+)\]", r".\1", path)


@torch.no_grad()
def _gives_tuple(lm: LanguageModel, path: str) -> bool:
    """Whether a module's output is a tuple, in a forward pass over two tokens."""
    is_tuple: list[bool] = []

    def hook(_: torch.nn.Module, __: tuple[object, ...], output: object) -> None:
        is_tuple.append(isinstance(output, tuple))

    handle = lm.model.get_submodule(path).register_forward_hook(hook)
    try:
        lm.trunk(**lm.inputs(torch.full((1, 2), lm.info.vocab_size - 1)))
    finally:
        handle.remove()
    return any(is_tuple)


def in_lens(lm: LanguageModel, site: str) -> bool:
    """Whether TransformerLens has a name for the site, also of a model without weights.

    It has other norms in encoders.
    """
    kind, _, layer = site.partition(".")
    known = kind in HOOKS and layer.isdigit()
    return known and has_head(lm) and _has_middle(lm, kind, layer)


def _has_middle(lm: LanguageModel, kind: str, layer: str) -> bool:
    """Whether the site exists: parallel blocks have no residual between attention and MLP."""
    if kind != "resid_mid":
        return True
    config = lm.model.config.get_text_config()
    parallel = getattr(config, "use_parallel_residual", config.model_type in ("phi", "gptj"))
    return not parallel


def _norm_after(lm: LanguageModel, kind: str, layer: str) -> bool:
    if not layer.isdigit():
        return False
    path = resolve(lm.model, f"{kind}.{layer}", lm.info).module_path
    return path.rpartition(".")[2] in {norm for norms in NORMS_AFTER for norm in norms}


def module_output(lm: LanguageModel, kind: str, layer: str) -> str:
    """The site of the module's own output, by its path if a norm follows it."""
    if not _norm_after(lm, kind, layer):
        return f"{kind}.{layer}"
    if kind == "mlp_out":
        path = resolve(lm.model, f"mlp_in.{layer}", lm.info).module_path
    else:
        list_path, layers = blocks(lm.model)
        parts = dict(layers[int(layer)].named_children())
        path = f"{list_path}.{layer}.{next(name for name in ATTENTION if name in parts)}"
    return f"{path}:output"
