"""One name for a feature: what is printed is what is taken."""

from __future__ import annotations

import pytest

from dictlearn.names import code_names, feature_name, feature_named

SITES = ("mlp_in.0", "other/mlp_in.1")


def test_a_name_leads_back_to_its_feature() -> None:
    for source in range(2):
        assert feature_named(feature_name(SITES, source, 7), SITES, 8) == (source, 7)
        assert feature_named(f"{source}/7", SITES, 8) == (source, 7)
    assert feature_name(SITES, 1, 7) == "other/mlp_in.1/7"
    assert feature_named("7", ("resid_post.1",), 8) == (0, 7)


def test_a_code_that_sites_share_has_one_source() -> None:
    assert code_names(SITES, 2) == SITES
    assert code_names(SITES, 1) == ("all",)
    assert feature_named("all/3", code_names(SITES, 1), 8) == (0, 3)


@pytest.mark.parametrize(
    "name", ["7", "mlp_in.0/8", "mlp_in.2/1", "2/0", "0/-1", "0/", "", "0/٣", "x"]
)
def test_what_is_no_feature_is_refused(name: str) -> None:
    with pytest.raises(ValueError, match="want <source>/<index> with a source of mlp_in.0, other/"):
        feature_named(name, SITES, 8)
