"""Generation with interventions in place: on every token, with and without a cache, in batches."""

from __future__ import annotations

import pytest
import torch

from dictlearn.interventions.edits import Edit, Gate, Push
from dictlearn.interventions.run import generate, run
from dictlearn.lm.language_model import LanguageModel
from tests import families
from tests.interventions.placed import KINDS, SILENT, made

PROMPTS = [[5, 9, 11, 30], [7, 8], [40, 41, 42, 43, 44]]


@pytest.fixture(scope="module")
def llama() -> LanguageModel:
    return families.example("llama").lm


def by_hand(lm: LanguageModel, prompt: list[int], dictionaries, edits, n: int) -> list[int]:
    """The likeliest tokens one after the other, each from a pass over everything before it."""
    tokens = list(prompt)
    for _ in range(n):
        logits = run(lm, torch.tensor([tokens]), dictionaries, edits).logits
        tokens.append(int(logits[0, -1].argmax()))
        if tokens[-1] == 2:
            break
    return tokens[len(prompt) :]


@pytest.mark.parametrize("cache", [True, False])
@pytest.mark.parametrize("kind", KINDS)
def test_interventions_hold_on_every_generated_token(kind: str, cache: bool, llama):
    dictionary = made(kind, llama.info)
    edits = [Edit(SILENT, 6.0)]
    found = generate(llama, PROMPTS, [dictionary], edits, max_tokens=6, cache=cache)
    assert found == [by_hand(llama, prompt, [dictionary], edits, 6) for prompt in PROMPTS]
    assert found != generate(llama, PROMPTS, max_tokens=6)


@pytest.mark.parametrize("family", ["gpt2", "gemma2", "gpt_oss", "qwen3_moe", "gpt_neox"])
def test_batches_caches_and_families(family: str):
    lm = families.example(family).lm
    push = [Push("resid_post.1", torch.linspace(-3, 3, lm.info.width))]
    found = generate(lm, PROMPTS, [], push, max_tokens=6)
    assert found == generate(lm, PROMPTS, [], push, max_tokens=6, cache=False)
    assert found == [generate(lm, [prompt], [], push, max_tokens=6)[0] for prompt in PROMPTS]
    assert found != generate(lm, PROMPTS, max_tokens=6)


def test_a_closed_range_ends_with_the_prompt(llama):
    direction = torch.linspace(-4, 4, llama.info.width)
    inside = [Push("resid_post.1", direction, positions=slice(0, 4))]
    forever = [Push("resid_post.1", direction)]
    assert generate(llama, PROMPTS[:1], [], inside, max_tokens=8) != generate(
        llama, PROMPTS[:1], [], forever, max_tokens=8
    )
    outside = [Push("resid_post.1", direction, positions=99)]
    plain = generate(llama, PROMPTS, max_tokens=8)
    assert generate(llama, PROMPTS, [], outside, max_tokens=8) == plain


def test_a_gate_on_the_input_asks_the_prompt_alone(llama):
    dictionary = made("jumprelu", llama.info)
    code = run(llama, torch.tensor([PROMPTS[0]]), [dictionary]).codes[0].dense()[0]
    fires = int(code.amax(0).argmax())
    strong = Push("resid_post.2", torch.linspace(-4, 4, llama.info.width))
    gated = Push("resid_post.2", strong.direction, when=Gate(fires, on="input"))
    silent = Push("resid_post.2", strong.direction, when=Gate(SILENT, on="input"))
    for cache in (True, False):
        options = {"max_tokens": 6, "cache": cache}
        always = generate(llama, PROMPTS[:1], [dictionary], [strong], **options)
        assert generate(llama, PROMPTS[:1], [dictionary], [gated], **options) == always
        plain = generate(llama, PROMPTS[:1], **options)
        assert generate(llama, PROMPTS[:1], [dictionary], [silent], **options) == plain != always


def test_a_seed_gives_the_same_text_again_and_leaves_the_generator(llama):
    state = torch.get_rng_state()
    one, two, other = (
        generate(llama, PROMPTS[:1], max_tokens=12, temperature=1.0, seed=seed)
        for seed in (1, 1, 2)
    )
    assert one == two != other
    assert torch.equal(torch.get_rng_state(), state)
