"""explainer=local: a language model on this machine, through transformers."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import final

import torch
from jinja2 import TemplateError
from transformers import PreTrainedTokenizerBase

from dictlearn.explain.client import Answer, Client
from dictlearn.explain.prompt import Messages, Prompt, without_system
from dictlearn.explain.scorers import Scorer
from dictlearn.explain.written import Written
from dictlearn.lm.language_model import LanguageModel
from dictlearn.lm.load import load_model
from dictlearn.ranges import Count, NonNegative


def local_explainer(
    prompt: Prompt,
    scorers: Mapping[str, Scorer],
    path: str,
    device: str = "auto",
    temperature: NonNegative = 0.0,
    max_tokens: Count = 200,
    score_tokens: Count | None = None,
    best_of: Count = 1,
) -> Written:
    """The arguments are explained in conf/explainer/local.yaml."""
    client = Local(path, device, temperature)
    return Written("local", client, prompt, scorers, 1, max_tokens, score_tokens, best_of)


@final
class Local(Client):
    """A causal language model, loaded at its first prompt; it answers one prompt at a time."""

    def __init__(self, path: str, device: str = "auto", temperature: float = 0.0):
        self.model, self.temperature, self._device = path, temperature, device
        self._lm: LanguageModel | None = None

    async def complete(self, messages: Messages, max_tokens: int) -> Answer:
        return await asyncio.to_thread(self._complete, messages, max_tokens)

    def _complete(self, messages: Messages, max_tokens: int) -> Answer:
        if self._lm is None:
            self._lm = load_model(self.model, device=self._device)
        lm, tokenizer = self._lm, self._lm.tokenizer
        if tokenizer is None:
            raise ValueError(f"explainer.path={self.model}: has no tokenizer")
        text = self._prompted(tokenizer, messages)
        ids_1P = tokenizer(text, return_tensors="pt", add_special_tokens=False)["input_ids"]
        ids_1P = ids_1P.to(lm.device)  # type: ignore[union-attr]
        if length := lm.info.context_length:  # some configs have none
            room = length - max_tokens
            if room < 1:
                raise ValueError(
                    f"explainer: answers of up to {max_tokens} tokens are asked for, and {self.model} "
                    f"reads {length} in all; lower explainer.max_tokens or explainer.score_tokens"
                )
            ids_1P = ids_1P[:, -room:]
        sampling = {"do_sample": True, "temperature": self.temperature}
        with torch.no_grad():
            out_1P = lm.model.generate(  # type: ignore[operator]
                ids_1P,
                attention_mask=torch.ones_like(ids_1P),
                max_new_tokens=max_tokens,
                use_cache=True,
                pad_token_id=tokenizer.pad_token_id or 0,
                **(sampling if self.temperature else {"do_sample": False}),
            )
        new_P = out_1P[0, ids_1P.shape[1] :]
        answer = tokenizer.decode(new_P, skip_special_tokens=True)
        return Answer(str(answer), len(new_P) < max_tokens, ids_1P.shape[1], len(new_P))

    def _prompted(self, tokenizer: PreTrainedTokenizerBase, messages: Messages) -> str:
        """A prompt as text, by the model's chat template if it has one."""
        if tokenizer.chat_template is None:
            return "\n\n".join(message["content"] for message in messages) + "\n"
        try:
            return _templated(tokenizer, messages)
        except TemplateError:
            pass  # some templates raise at a system message
        try:
            return _templated(tokenizer, without_system(messages))
        except TemplateError as error:
            raise ValueError(
                f"explainer.path={self.model}: its chat template doesn't take a user's message ({error})"
            ) from error


def _templated(tokenizer: PreTrainedTokenizerBase, messages: Messages) -> str:
    return str(tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True))
