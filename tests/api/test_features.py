"""dictlearn.features: the store and its descriptions as records."""

from __future__ import annotations

import sys

import pytest

import dictlearn
from dictlearn.api.features import Features
from dictlearn.api.record import Shown
from dictlearn.ckpt.dictionary import save_dictionary
from dictlearn.store.explanations import Explanation, add_explanations
from dictlearn.store.features import FeatureStore
from tests.dictionaries import small_dictionary
from tests.store.made import RULES, made_store

SITES = ("mlp_in.0", "mlp_in.1")
TEXT = "<script>alert(1)</script> the token `self`"


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> FeatureStore:
    store = made_store(tmp_path_factory.mktemp("run"), SITES, ("mlp_out.0", "mlp_out.1"))
    scores = {"balanced_accuracy": 0.91}
    add_explanations(
        store.folder,
        [
            Explanation(0, 0, TEXT, "lexical", scores=scores, reliable=True),
            Explanation(1, 2, "a Capital", "lexical", scores=scores),
        ],
    )
    return store


@pytest.fixture(scope="module")
def features(store: FeatureStore) -> Features:
    return dictlearn.features(store.folder.parent)


def test_every_feature_has_its_place_and_its_name(features, store):
    assert len(features) == 2 * len(RULES) == len(list(features))
    names = [record.name for record in features]
    assert names[0] == "mlp_in.0/0" and names[-1] == f"mlp_in.1/{len(RULES) - 1}"
    for number, name in enumerate(names):
        record = features[name]
        assert record == features[number] == features[number - len(features)]
        assert (record.source, record.index) == divmod(number, len(RULES))
    assert [r.name for r in features[1:3]] == names[1:3]
    assert features["0/1"].name == "mlp_in.0/1"
    expected = store.feature(1, 1)
    assert (features["mlp_in.1/1"].density, features["mlp_in.1/1"].maximum) == (
        expected.density,
        expected.maximum,
    )


@pytest.mark.parametrize("name", ["mlp_in.7/0", "mlp_in.0/x", "mlp_in.0/99"])
def test_a_name_that_is_none_gets_a_sentence(features, name):
    with pytest.raises(ValueError, match="want <source>/<index>"):
        features[name]
    with pytest.raises(IndexError, match="feature 12: there are 12"):
        features[12]


def test_a_record_is_its_text(features):
    record = features[0]
    assert "«" in record.text and "self" in record.text.partition("«")[2].partition("»")[0]
    shown = record.examples[0]
    assert len(shown.pieces) == len(shown.activations) and shown.activation == record.maximum == 2
    assert record.description == TEXT and record.reliable and record.scores
    assert list(record.promoted) == ["mlp_out.0", "mlp_out.1"]
    assert record.neighbours[0][0] in [other.name for other in features]
    plain = TEXT.replace("`", '"')
    assert plain in repr(record) and "balanced accuracy 0.91" in repr(record)
    assert "unreliable: a Capital" in repr(features["mlp_in.1/2"])
    dead = features[3]
    assert dead.dead and dead.text == "" and "never fired" in repr(dead)
    assert "no description" in dead._repr_html_()


def test_what_a_notebook_shows_holds_no_markup_of_the_text(features):
    page = features[0]._repr_html_()
    assert "<script" not in page and "&lt;script&gt;" in page
    assert "the token <code>self</code>" in page
    assert "the token <code>self</code>" in features._repr_html_()
    assert 'style="background' in page and "self" in page
    shown = Shown(("<b>", "\n", "x"), (0.0, 1.0, 2.0), 2)
    assert "<b>" not in shown._repr_html_() and "⏎" in shown._repr_html_()
    assert "<script" not in features._repr_html_()
    record = Shown(("\x1b[31m",), (1.0,), 0)
    assert "\x1b" in record.text  # the text as it is; what is printed of a record is not
    assert "\x1b" not in repr(features[0])


def test_descriptions_are_searched_in_any_case(features):
    assert [r.name for r in features.search("CAPITAL")] == ["mlp_in.1/2"]
    assert features.search("nothing of the kind") == []


def test_a_table_has_a_row_for_each_feature(features):
    table = features.to_pandas()
    assert list(table.index) == [record.name for record in features]
    assert table.loc["mlp_in.0/0", "description"] == TEXT
    assert table.loc["mlp_in.0/0", "text"] == features[0].text
    assert table.loc["mlp_in.0/0", "maximum"] == 2 and bool(table.loc["mlp_in.0/3", "dead"])
    assert "text" not in features.rows(examples=0)[0]


def test_without_pandas_it_says_what_to_do(features, monkeypatch):
    monkeypatch.setitem(sys.modules, "pandas", None)
    with pytest.raises(ImportError, match="pip install pandas; rows.. gives the same"):
        features.to_pandas()


def test_features_of_another_dictionary_are_refused(tmp_path):
    run = made_store(tmp_path).folder.parent
    save_dictionary(small_dictionary().float(), run / "dictionary", {})
    with pytest.raises(ValueError, match="its features are those of another dictionary"):
        dictlearn.features(run)


def test_a_run_without_features_is_told_how_to_get_them(tmp_path):
    with pytest.raises(ValueError, match="dictlearn features run="):
        dictlearn.features(tmp_path)
