"""The site as somebody uses it: opened from the disk in Chromium, clicked, typed into, pointed at."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from dictlearn.features.pages import write_pages
from dictlearn.store.explanations import Explanation, Failure
from tests.browser.devtools import Browser
from tests.browser.many import many_features
from tests.store.made import RULES, made_store, pico_tokenizer

NASTY = "<img src=x onerror=\"document.title='hacked'\"><script>document.title='hacked'</script>"
HEADING = "document.querySelector('#view h1').textContent"
OPEN = "document.querySelector('#rows [aria-current]')?.textContent ?? ''"
LISTED = "[...document.querySelectorAll('#rows .name')].map((name) => name.textContent)"


def described(index: int, text: str, score: float) -> Explanation:
    scores = {"balanced_accuracy": score, "recall": 0.8}
    baselines = {"shuffled": 0.5, "random_dictionary": 0.62}
    failing = (Failure(f"def <<{NASTY}>>", True, False),)
    return Explanation(
        0, index, text, "lexical", None, "", scores, baselines, 40, score > 0.7, failing
    )


EXPLANATIONS = [
    described(0, "the word `self` or `` ` ``", 0.97),
    described(1, NASTY, 0.55),
    described(4, "after an opening bracket", 0.8),
]


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A CLT of two layers and six features each, three of them described."""
    folder = tmp_path_factory.mktemp("site") / "small"
    store = made_store(folder, ("mlp_in.0", "mlp_in.1"), ("mlp_out.0", "mlp_out.1"))
    by_feature = {(one.source, one.feature): one for one in EXPLANATIONS}
    return write_pages(store, by_feature, pico_tokenizer(), store.folder)


def at(browser: Browser, row: int | None) -> None:
    """Waits until the feature is on the screen, or with None the overview."""
    browser.until(f"document.getElementById('view').dataset.row === '{'' if row is None else row}'")


def choose(browser: Browser, control: str, value: str) -> None:
    browser.value(
        f"""(() => {{
            const control = document.getElementById('{control}');
            control.value = '{value}';
            control.dispatchEvent(new Event('input', {{ bubbles: true }}));
        }})()"""
    )


def listed(browser: Browser) -> list[str]:
    return browser.value(LISTED)


def test_it_opens_on_an_overview(browser, page):
    browser.open(page)
    at(browser, None)
    assert browser.value(HEADING) == "Features of small"
    assert browser.value("document.getElementById('count').textContent") == "12 of 12 features"
    assert listed(browser)[:2] == ["mlp_in.0/0", "mlp_in.0/1"]
    assert "CLT on mlp_in.0, mlp_in.1 → mlp_out.0, mlp_out.1 of pico: 12 features" in browser.value(
        "document.querySelector('.lede').textContent"
    )


def texts(browser: Browser, selector: str) -> list[str]:
    return browser.value(f"[...document.querySelectorAll('{selector}')].map((e) => e.textContent)")


def test_scores_stand_beside_every_baseline(browser, page):
    browser.open(page)
    at(browser, None)
    assert texts(browser, "#view .marked") == ["shuffled", "random dictionary"]


def test_a_description_shows_its_code_and_what_scored_it(browser, page):
    browser.open(page, "#/0/0")
    at(browser, 0)
    assert texts(browser, "#view .description .text code") == ["self", "`"]
    assert texts(browser, "#view .description .text") == ["the word self or `"]
    (said, *_) = texts(browser, "#view .description .note")
    assert said == "by lexical, scored on other documents, where the feature fires 40 times"


def test_numbers_of_one_quantity_have_as_many_decimals(browser, page):
    browser.open(page, "#/0/0")
    at(browser, 0)
    values = texts(browser, "#view .examples .value")
    assert len(values) > 5 and len({len(value.partition(".")[2]) for value in values}) == 1
    shown = "[0.4, 0.41, 0.4236].map(alike(0.4236)).join() + share(0.05) + share(1e-6) + power(-3)"
    assert browser.value(shown) == "0.400,0.410,0.4245.00%<0.01%0.1%"


def test_a_site_that_the_name_says_is_not_said_again(browser, page, tmp_path):
    browser.open(page, "#/0/0")
    at(browser, 0)
    assert len(texts(browser, "#view header .site")) == 1  # it writes to several
    store = made_store(tmp_path / "one")
    browser.open(write_pages(store, {}, pico_tokenizer(), store.folder), "#/0/0")
    at(browser, 0)
    assert texts(browser, "#view header .site") == []


def test_nothing_but_files_is_loaded(browser, page):
    browser.loaded.clear()
    browser.open(page, "#/0/0")
    files = {name for name in browser.loaded if name != "about:blank"}
    assert len(files) > 10 and all(name.startswith("file://") for name in files)


def test_typing_searches(browser, page):
    browser.open(page)
    browser.press("/")
    browser.type("word SELF")
    assert listed(browser) == ["mlp_in.0/0"]
    assert "q=word+SELF" in browser.value("location.hash")
    browser.press("Enter")
    at(browser, 0)
    browser.press("Escape")
    assert len(listed(browser)) == 2 * len(RULES)


def test_a_number_finds_the_feature(browser, page):
    browser.open(page)
    browser.press("/")
    browser.type("mlp_in.1/3")
    assert listed(browser) == ["mlp_in.1/3"]


def test_sorting_and_showing(browser, page):
    browser.open(page)
    choose(browser, "sort", "score")
    assert listed(browser)[:3] == ["mlp_in.0/0", "mlp_in.0/4", "mlp_in.0/1"]
    choose(browser, "sort", "density")
    assert listed(browser)[:2] == ["mlp_in.0/5", "mlp_in.1/5"]
    choose(browser, "sort", "text")
    assert listed(browser)[:3] == ["mlp_in.0/1", "mlp_in.0/4", "mlp_in.0/0"]
    choose(browser, "show", "unreliable")
    assert listed(browser) == ["mlp_in.0/1"]
    choose(browser, "show", "dead")
    choose(browser, "site", "1")
    assert listed(browser) == ["mlp_in.1/3", "mlp_in.1/4"]


def test_a_click_opens_and_back_returns(browser, page):
    browser.open(page)
    browser.click("#rows .row:nth-child(3) a")
    at(browser, 2)
    assert browser.value(HEADING) == "mlp_in.0/2"
    assert "mlp_in.0/2" in browser.value(OPEN)
    browser.click("#view .links a")  # its nearest neighbour
    at(browser, 0)
    browser.value("history.back()")
    at(browser, 2)
    browser.value("history.back()")
    at(browser, None)


def test_a_search_leaves_the_feature_where_it_was_read(browser, page):
    browser.look(1400, 400)
    browser.open(page, "#/0/0")
    browser.value("document.getElementById('view').scrollTop = 200")
    browser.press("/")
    browser.type("bracket")
    assert listed(browser) == ["mlp_in.0/4"]
    assert browser.value("document.getElementById('view').scrollTop") == 200
    assert browser.value("document.querySelector('#view nav .place').textContent") == ""
    assert browser.value("document.querySelector('#view .links a').hash").endswith("?q=bracket")


def test_an_address_opens_the_feature_and_the_search(browser, page):
    browser.open(page, "#/1/2?sort=density&site=1")
    at(browser, len(RULES) + 2)
    assert browser.value("document.title") == "mlp_in.1/2 of small"
    assert all(name.startswith("mlp_in.1/") for name in listed(browser))
    browser.open(page, "#/7/9999?sort=nonsense&site=x")
    at(browser, None)


@pytest.mark.parametrize(
    "address", ["#mlp_in.1/2", "#/mlp_in.1/2", "#/1/2", "#1/2", "#mlp%5Fin.1/2"]
)
def test_a_features_name_is_its_address(browser, page, address):
    browser.open(page, address)
    at(browser, len(RULES) + 2)
    browser.press("j")
    at(browser, len(RULES) + 3)
    assert browser.value("location.hash") == "#mlp_in.1/3"


@pytest.mark.parametrize(
    "address", ["#mlp_in.2/0", "#mlp_in.1/6", "#mlp_in.1/x", "#3", "#%", "#__proto__/0"]
)
def test_an_address_of_nothing_opens_the_overview(browser, page, address):
    browser.open(page, address)
    at(browser, None)


def test_the_overviews_counts_add_up(browser, page):
    browser.open(page)
    counts = browser.value(
        "[...document.querySelectorAll('.key dd:not(.beside)')].map((d) => d.textContent)"
    )
    assert counts == ["1", "1", "6", "4"] and sum(map(int, counts)) == 2 * len(RULES)
    for kind, count in zip(("reliable", "unreliable", "none", "dead"), counts, strict=True):
        browser.open(page, f"#/about?show={kind}")
        found = browser.value("document.getElementById('count').textContent")
        assert found == f"{count} of 12 features"


def test_norms_by_target_are_shown_sorted_and_filtered(browser, page):
    browser.open(page, "#mlp_in.0/0")
    at(browser, 0)
    shown = browser.value("document.querySelector('.norms').textContent")
    assert "mlp_out.02.00 · 67%" in shown and "mlp_out.11.00 · 33%" in shown
    assert "→ mlp_out.0 67%" in browser.value(OPEN)
    choose(browser, "target", "1")
    assert listed(browser) == [f"mlp_in.1/{i}" for i in (0, 1, 2, 5)]
    assert browser.value("location.hash") == "#mlp_in.0/0?target=1"
    choose(browser, "target", "")
    choose(browser, "sort", "centre")
    assert listed(browser)[:4] == [f"mlp_in.0/{i}" for i in (0, 1, 2, 5)]


def test_bars_of_cosines_have_one_scale(browser, page):
    browser.open(page, "#mlp_in.0/0")
    at(browser, 0)
    width = browser.value("document.querySelector('.links .bar').style.width")
    assert width == "90%"  # a cosine of 0.9


def test_keys(browser, page):
    browser.open(page)
    browser.press("j")
    at(browser, 0)
    browser.press("j")
    at(browser, 1)
    browser.press("k")
    at(browser, 0)
    browser.press("k")  # nothing before the first
    browser.press("Escape")
    at(browser, None)
    browser.press("/")
    for _ in range(3):
        browser.press("ArrowDown")
    browser.press("Enter")
    at(browser, 2)


def test_pointing_at_a_token_says_how_strong_it_is(browser, page):
    browser.open(page, "#/0/0")
    assert browser.value("document.getElementById('tip').hidden")
    browser.hover("#view .examples mark")
    tip = browser.value("document.getElementById('tip').textContent")
    assert tip == "2.00, 100% of its maximum"
    assert not browser.value("document.getElementById('tip').hidden")
    browser.hover("#view h1")
    assert browser.value("document.getElementById('tip').hidden")


def test_an_example_opens_to_its_whole_context(browser, page):
    browser.open(page, "#/0/0")
    browser.click("#view .examples .value")
    browser.until("document.querySelector('#view .whole p') !== null")
    shown = browser.value("document.querySelector('#view .whole p').textContent")
    assert "self" in shown and "\n" in shown


def test_text_is_never_markup(browser, page):
    browser.open(page, "#/0/1")
    at(browser, 1)
    assert browser.value("document.querySelector('#view .description .text').textContent") == NASTY
    assert NASTY in browser.value("document.querySelector('#view .failing').textContent")
    assert browser.value("document.querySelectorAll('img, body script').length") == 0
    assert browser.value("document.title") == "mlp_in.0/1 of small"


def test_an_unreliable_description_says_so_everywhere(browser, page):
    browser.open(page, "#/0/1")
    at(browser, 1)
    assert "unreliable 0.55" in browser.value(OPEN)
    said = browser.value("document.querySelector('#view .description').textContent")
    assert said.startswith("Unreliable description.") and "shuffled" in said
    assert browser.value("document.querySelector('#view .failing').open")
    browser.open(page, "#/0/0")
    said = browser.value("document.querySelector('#view .description').textContent")
    assert "nreliable" not in said and not browser.value(
        "document.querySelector('#view .failing').open"
    )
    browser.open(page, "#/0/2")
    assert browser.value("document.querySelector('#view .description').textContent") == (
        "No description."
    )


def test_targets_of_a_clt_can_be_chosen(browser, page):
    browser.open(page, "#/0/0")
    pressed = "[...document.querySelectorAll('.targets button')].map((b) => b.ariaPressed)"
    assert browser.value(pressed) == ["true", "false"]
    browser.click(".targets tr:nth-child(2) button")
    assert browser.value(pressed) == ["false", "true"]


def test_directions_of_a_transform(browser, page):
    browser.open(page)
    tokens = [["a", 0.5], [" b", 0.2]]
    record: dict[str, Any] = {"rank": 4, "directions": [[2.5, tokens, tokens, tokens, []]]}
    text = browser.value(f"transformOf({record}).textContent")
    assert text.startswith("Transform of rank 4") and "2.5" in text and "·b" in text


@pytest.mark.parametrize("width", [360, 700, 1000, 1400])
@pytest.mark.parametrize("address", ["", "#/about", "#/0/1"])
def test_it_fits_any_width(browser, page, width, address):
    browser.look(width, 800)
    browser.open(page, address)
    assert browser.value("document.documentElement.scrollWidth") <= width
    assert browser.value("document.getElementById('view').scrollWidth") <= width
    seen = (
        "[...document.querySelectorAll('#browse, #view')].filter((pane) => pane.offsetWidth).length"
    )
    assert browser.value(seen) == (1 if width < 800 else 2)


def test_it_follows_the_systems_colours(browser, page):
    background = "getComputedStyle(document.documentElement).backgroundColor"
    browser.look(1400, 900, dark=False)
    browser.open(page)
    assert browser.value(background) == "rgb(255, 255, 255)"
    browser.look(1400, 900, dark=True)
    assert browser.value(background) == "rgb(21, 23, 26)"


def test_many_features_cost_a_screenful(browser, tmp_path):
    store = many_features(tmp_path / "many", 200)
    page = write_pages(store, {}, pico_tokenizer(), store.folder)
    browser.open(page)
    assert browser.value("document.querySelectorAll('#rows .row').length") < 40
    browser.value("document.getElementById('list').scrollTop = 1e9")
    browser.until(f"({LISTED}).some((name) => name.endsWith('/199'))")
    browser.open(page, "#/0/198")
    at(browser, 198)
    browser.press("j")
    at(browser, 199)
    assert browser.value(OPEN).endswith(browser.value("share(data.density[199])"))


def test_a_list_drawn_anew_keeps_its_rows(browser, page):
    browser.open(page)
    browser.click("#rows .row:nth-child(3) a", meanwhile="drawList()")
    at(browser, 2)
    focused = "document.activeElement.closest('.row').getAttribute('aria-posinset')"
    assert browser.value(focused) == "3"
    browser.press("ArrowDown")
    assert browser.value(focused) == "4"


def test_walking_along_a_long_list(browser, tmp_path):
    store = many_features(tmp_path / "long", 200)
    page = write_pages(store, {}, pico_tokenizer(), store.folder)
    browser.look(1400, 500)
    browser.open(page)
    browser.press("/")
    for _ in range(40):
        browser.press("ArrowDown")
        browser.value("new Promise(requestAnimationFrame)")  # the list follows
    for _ in range(3):
        browser.press("ArrowUp")
        browser.value("new Promise(requestAnimationFrame)")
    assert browser.value("document.querySelectorAll('#rows .row').length") < 40
    places = "[...document.querySelectorAll('#rows .row')].map((row) => Number(row.ariaPosInSet))"
    drawn = browser.value(places)
    assert drawn == list(range(drawn[0], drawn[-1] + 1)) and drawn[0] > 1
    browser.press("Enter")
    at(browser, 36)


def test_a_lost_file_is_a_sentence(browser, tmp_path):
    store = made_store(tmp_path / "torn")
    page = write_pages(store, {}, pico_tokenizer(), store.folder)
    (page.parent / "pages" / "features-00000.js").unlink()
    browser.open(page, "#/0/0")
    at(browser, 0)
    told = browser.value("document.getElementById('view').textContent")
    assert told == "pages/features-00000.js cannot be read."
    assert all("ERR_FILE_NOT_FOUND" in error for error in browser.errors)
    browser.errors.clear()
