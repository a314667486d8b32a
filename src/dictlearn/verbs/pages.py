"""`dictlearn pages`: writes the site over a run's features anew."""

from __future__ import annotations

from functools import partial
from pathlib import Path

from omegaconf import DictConfig
from transformers import PreTrainedTokenizerBase

from dictlearn import escape
from dictlearn.ckpt import lock
from dictlearn.disk.replace import refuse_other_run
from dictlearn.evals.record import FILE as FIGURES
from dictlearn.features.pages import write_pages
from dictlearn.lm.load import load_tokenizer
from dictlearn.store.explanations import read_explanations
from dictlearn.store.features import FeatureStore, open_store
from dictlearn.verbs.bars import bars
from dictlearn.verbs.reported import write_report_of
from dictlearn.verbs.trained_in import tokenizer_for


class Keys:
    """Declares the values that the keys of conf/pages.yaml take."""

    run: str
    tokenizer: str | None
    output: str | None
    overwrite: bool


def main(cfg: DictConfig) -> int:
    store = open_store(cfg.run)
    folder = store.folder if cfg.output is None else Path(cfg.output)
    refuse_other_run(folder, store.folder.parent)
    named = cfg.tokenizer
    tokenizer = tokenizer_for(store) if named is None else load_tokenizer(named)
    with lock.writing(folder, "pages"):
        write_site(store, tokenizer, folder, cfg.overwrite)
    return 0


def write_site(
    store: FeatureStore, tokenizer: PreTrainedTokenizerBase | None, folder: Path, overwrite: bool
) -> None:
    """Writes the site over `store` and its explanations into `folder`, and the run's report again.

    Other verbs call it too.
    """
    with bars("") as progress:
        page = write_pages(
            store,
            read_explanations(store.folder, store.info.dictionary_sha256),
            tokenizer,
            folder,
            progress=partial(progress, "writing pages"),
            overwrite=overwrite,
        )
    escape.say(f"The pages: {page}")
    run = store.folder.parent
    if page.parent.resolve() == store.folder.resolve() and (run / FIGURES).is_file():
        with lock.writing(run / "report.html", "pages", wait=True):
            write_report_of(run)  # it shows some of the features and links to the site
