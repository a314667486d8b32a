"""Write a folder for the Hugging Face hub, and upload it.

dictionary.safetensors, dictionary.json    our own form, for `dictlearn.load`
README.md                                  the model card
<format>/                                  files for other tools, for each of `formats`
features/explanations.jsonl                explanations of features, if the run has some
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import final

from huggingface_hub import HfApi, constants, get_token
from huggingface_hub.errors import (
    HFValidationError,
    HTTPError,  # pyright: ignore[reportPrivateImportUsage]  httpx's or httpx2's: the hub's choice
    OfflineModeIsEnabled,
)
from huggingface_hub.utils import validate_repo_id

from dictlearn import export, sparsity
from dictlearn.ckpt.commit import MANIFEST
from dictlearn.ckpt.dictionary import load_dictionary, write_dictionary
from dictlearn.dicts.dictionary import Dictionary
from dictlearn.dicts.identity import sha256_of
from dictlearn.export.calibrate import as_jumprelu
from dictlearn.export.card import PLACEHOLDER, model_card
from dictlearn.export.compare import difference
from dictlearn.export.protocol import Exporter, Job, why_not
from dictlearn.store.explanations import Explanation, add_explanations, read_explanations
from dictlearn.types import ModelInfo


@final
class Hub(Exporter):
    """
    Args:
        formats: other formats to write beside our own, a folder each.
        license: the license of the weights, in the hub's words (mit, apache-2.0, ...); null for none.
        push: owner/name of the repository to upload to, which is made if need be; null: no upload.
        private: whether a new repository is private.
    """

    name = "hub"

    def __init__(
        self,
        formats: Sequence[str] = (),
        license: str | None = None,
        push: str | None = None,
        private: bool = True,
    ):
        known = sorted(set(export.registry()) - {self.name})
        for name in formats:
            if name not in known:
                raise ValueError(f"format.formats={list(formats)}: want some of {', '.join(known)}")
        if push is not None:
            _check_repository(push)
        self.exporters = [export.registry()[name]() for name in formats]
        self.license, self.push, self.private = license, push, private

    def holds(self, dictionary: Dictionary) -> frozenset[str]:
        return frozenset(sparsity.registry())

    def refusal(self, dictionary: Dictionary, info: ModelInfo) -> str | None:
        for exporter in self.exporters:
            reason = why_not(exporter, dictionary, info)
            if reason is not None:
                return f"{exporter.name} is among formats, and {reason}"
        if self.push is not None and constants.HF_HUB_OFFLINE:
            return f"push={self.push} needs the hub, and HF_HUB_OFFLINE is set"
        if self.push is not None and get_token() is None:
            return f"push={self.push} needs a token; log in with `hf auth login`, or set HF_TOKEN"
        return None

    def write(self, job: Job, folder: Path) -> None:
        write_dictionary(job.dictionary, folder, job.training)
        usages = {}
        for exporter in self.exporters:
            dictionary, note = job.dictionary, ""
            if dictionary.sparsity.name not in exporter.holds(dictionary):
                dictionary, exact = as_jumprelu(dictionary, job.samples)
                note = _conversion_note(job.dictionary, exact)
            inner = folder / exporter.name
            inner.mkdir()
            exporter.write(replace(job, dictionary=dictionary), inner)
            _compare(exporter.name, dictionary, inner, job)
            repo = self.push or PLACEHOLDER
            usages[exporter.name] = (note, exporter.usage(dictionary, repo, exporter.name))
        explanations = self._explanations(job)
        if explanations:
            add_explanations(folder / "features", explanations)
        card = model_card(job, self.push, self.license, usages, bool(explanations))
        (folder / "README.md").write_text(card, encoding="utf-8")

    def _explanations(self, job: Job) -> list[Explanation]:
        """The run's explanations of this dictionary; it may have some of an earlier one."""
        if job.run is None:
            return []
        return list(read_explanations(job.run / "features", sha256_of(job.dictionary)).values())

    def usage(self, dictionary: Dictionary, repo: str, inner: str) -> str:
        return f'import dictlearn\n\ndictionary = dictlearn.load("{repo}")\n'

    def finish(self, folder: Path) -> str | None:
        return None if self.push is None else upload(folder, self.push, self.private)


def upload(folder: Path, repo: str, private: bool) -> str:
    """Uploads the folder and returns a sentence with its address. Raises ValueError if refused."""
    api = HfApi()
    try:
        url = api.create_repo(repo, private=private, exist_ok=True)
        api.upload_folder(
            repo_id=repo,
            folder_path=folder,
            commit_message="Upload with dictlearn",
            ignore_patterns=[MANIFEST],
        )
    except (HTTPError, OfflineModeIsEnabled, OSError, ValueError) as error:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise ValueError(
            f"format.push={repo}: the folder is in {folder}, but the hub did not take it: {reason}"
        ) from error
    return f"uploaded to {url}"


def _check_repository(push: str) -> None:
    try:
        validate_repo_id(push)
        valid = push.count("/") == 1
    except HFValidationError:
        valid = False
    if not valid:
        raise ValueError(f"format.push={push}: want owner/name of a repository on the hub")


def _conversion_note(dictionary: Dictionary, exact: bool) -> str:
    name = dictionary.sparsity.name
    if exact:
        return f"Its {name} features are written as JumpReLU: the same function."
    return (
        f"Its {name} features are written as JumpReLU here, with thresholds that make each feature "
        f"fire as often on held-out text: a close approximation, not the same function."
    )


def _compare(name: str, dictionary: Dictionary, inner: Path, job: Job) -> None:
    reloaded = load_dictionary(inner).to(dictionary.encoder.W_enc.device)
    change = difference(dictionary, reloaded, job.samples())
    if not change.small:
        raise ValueError(f"format=hub: the dictionary in {name} reads back differently ({change})")
