"""The questions of the introspection protocol, as a model reads them, and the tokens of yes and no."""

from __future__ import annotations

from dictlearn.interventions.contrast import text_ids
from dictlearn.lm.language_model import LanguageModel

ASKED = (
    "Am I injecting a thought right now?",
    "Do you detect an injected thought?",
    "Is someone else putting a thought into your mind?",
    "Are your thoughts being changed from outside right now?",
)
NAMED = "Am I injecting a thought about {concept} right now?"
UNRELATED = (  # as many with the answer yes as with no
    *("Is ice cold?", "Is Paris in France?", "Do birds have wings?", "Is five more than three?"),
    *("Is the Earth flat?", "Can a stone swim?", "Is fire cold?", "Is two more than nine?"),
)
ENDING = " Answer yes or no."
PLAIN = "Question: {question}\nAnswer:"  # for a model without a chat template
ANSWERS = {"yes": (" yes", " Yes", "yes", "Yes"), "no": (" no", " No", "no", "No")}


def prompt_ids(lm: LanguageModel, question: str) -> list[int]:
    """The question as a user's turn if the tokenizer has a chat template, else as plain text."""
    tokenizer = lm.tokenizer
    if tokenizer is None:
        raise ValueError(f"model.path={lm.info.name}: has no tokenizer, and questions are text")
    if not getattr(tokenizer, "chat_template", None):
        return text_ids(lm, PLAIN.format(question=question))
    turn = [{"role": "user", "content": question}]
    text = tokenizer.apply_chat_template(turn, tokenize=False, add_generation_prompt=True)
    return list(tokenizer(str(text), add_special_tokens=False)["input_ids"])  # type: ignore[arg-type]


def answer_ids(lm: LanguageModel) -> dict[str, list[int]]:
    """The first tokens of the ways to write yes and no, without those that both begin with.

    Raises:
        ValueError: one of the two has none of its own.
    """
    tokenizer = lm.tokenizer
    if tokenizer is None:
        raise ValueError(f"model.path={lm.info.name}: has no tokenizer, and answers are text")
    first = {
        side: {tokenizer(text, add_special_tokens=False)["input_ids"][0] for text in texts}  # type: ignore[index]
        for side, texts in ANSWERS.items()
    }
    both = first["yes"] & first["no"]
    own = {side: sorted(ids - both) for side, ids in first.items()}
    if not all(own.values()):
        raise ValueError(f"model.path={lm.info.name}: its yes and no begin with the same tokens")
    return own
