"""Puts a run's figures, curves and settings on one page."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from importlib.resources import files
from pathlib import Path
from string import Template
from typing import Any

from dictlearn.disk.errors import CONTENT_ERRORS, content_error
from dictlearn.disk.whole import write_bytes, write_text
from dictlearn.escape import html as escape
from dictlearn.evals import attribution, layers, table
from dictlearn.evals.record import FILE, HELD_OUT, ROWS, read_record
from dictlearn.evals.report.descriptions import descriptions
from dictlearn.evals.report.features import features
from dictlearn.evals.report.history import read_history
from dictlearn.evals.report.layer_plots import layer_plots
from dictlearn.evals.report.parts import html_table, section
from dictlearn.evals.report.plots import Plot, evaluation_plots, training_plots
from dictlearn.evals.report.settings import group_line, read_settings, summary
from dictlearn.evals.report.theme import inline_svg, png
from dictlearn.sources.named import text_of

BY_LAYER = (
    "Valid tokens only. A cell of the heat map is the mean decoder norm from source to target, times "
    "the mean value of the source's active features, over the target's standard deviation."
)


History = list[dict[str, float]]
Traced = Mapping[str, Any] | None
PARTS = ("dictionary", "model", "text", "baselines", "series", "versions", "date")


def write_report(folder: Path) -> Path:
    """Writes report.html and figures/*.png from the run folder's own files; returns the page.

    Reads figures.json (ValueError if there is none) and, where they exist, metrics.jsonl,
    attribution.json, features/summary.json, features/explanations.json and config.yaml. Nothing
    else goes in: a report can be written again at any time.
    """
    record = read_record(folder)
    if absent := [part for part in PARTS if part not in record]:
        raise ValueError(
            f"{folder / FILE}: has no {absent[0]}: a report shows the figures of a dictionary on a "
            "language model's text, which dictlearn evaluate takes"
        )
    beside = _beside(folder)
    try:
        html, plots = _drawn(folder.resolve().name, record, *beside)
    except CONTENT_ERRORS as error:
        raise ValueError(
            f"{folder / FILE}: not what dictlearn evaluate writes ({content_error(error)}); "
            f"evaluate again"
        ) from error
    for name, picture in plots.items():
        write_bytes(folder / "figures" / f"{name}.png", picture)
    path = folder / "report.html"
    write_text(path, html)
    return path


def _beside(folder: Path) -> tuple[History, str, Traced, str, str]:
    """What other files say than the one with the figures. Each ValueError names its file."""
    settings = read_settings(folder / "config.yaml")
    if settings:
        summary(settings)  # for what it refuses
    history, traced = read_history(folder / "metrics.jsonl"), attribution.read_attribution(folder)
    return history, settings, traced, descriptions(folder), features(folder)


def _drawn(
    name: str,
    record: Mapping[str, Any],
    history: History,
    settings: str,
    traced: Traced,
    described: str,
    stored: str,
) -> tuple[str, dict[str, bytes]]:
    """The page and its pictures."""
    training, evaluation = training_plots(history), evaluation_plots(record)
    by_layer = layer_plots(record)
    html = page(name, record, settings, training, evaluation, by_layer, traced, described, stored)
    plots = (*training, *by_layer, *evaluation)
    return html, {plot.name: png(plot.draw, plot.title, plot.width) for plot in plots}


def page(
    name: str,
    record: Mapping[str, Any],
    settings: str,
    training: Iterable[Plot],
    evaluation: Iterable[Plot],
    by_layer: Iterable[Plot] = (),
    traced: Traced = None,
    described: str = "",
    stored: str = "",
) -> str:
    """The whole HTML document.

    `settings` is the run's configuration as YAML, or empty; `described` the section on descriptions,
    `stored` the one on features.
    """
    evaluated = "On held-out text" if _is_held_out(record["text"]) else "On the text"
    if _is_rows(record["text"]):
        evaluated = "On held-out activations"
    sections = [
        _key_figures(record),
        _comparison(record),
        _prefixes(record),
        _side_by_side(record),
        _replacement(record),
        _attribution(traced),
        stored,
        described,
        _plots("By layer", BY_LAYER, by_layer, "plots few"),
        _plots("Training", "As logged during the run, on training text.", training, "plots"),
        _plots(evaluated, "Valid tokens only.", evaluation, "plots few"),
        _text(record["text"]),
        _settings(settings),
    ]
    here = files("dictlearn.evals.report")
    return Template((here / "page.html").read_text(encoding="utf-8")).substitute(
        title=escape(name),
        style=(here / "style.css").read_text(encoding="utf-8").strip(),
        lede=_lede(record),
        sections="\n".join(filter(None, sections)),
        footer=_footer(record),
    )


def _lede(record: Mapping[str, Any]) -> str:
    """One sentence that names the dictionary, its model and the text."""
    dictionary, model = record["dictionary"], record["model"]
    sources, targets = ", ".join(dictionary["sources"]), ", ".join(dictionary["targets"])
    sites = sources if sources == targets else f"{sources} \N{RIGHTWARDS ARROW} {targets}"
    size = f"{dictionary['n_features']:,} features"
    if dictionary["code_sources"] > 1:
        size += " per layer"
    text = record["text"]
    part = "rows" if _is_rows(text) else "tokens"
    part = f"held-out {part}" if _is_held_out(text) else part
    read = f"{text['tokens']:,} {part} of <b>{escape(text_of(text.get('data') or {}))}</b>"
    kind = table.label_of(dictionary)
    return (
        f"<b>{escape(kind[:1].upper() + kind[1:])}</b> with <b>{size}</b> on "
        f"<b>{escape(sites)}</b> of <b>{escape(model['name'])}</b>, evaluated on {read}."
    )


def _key_figures(record: Mapping[str, Any]) -> str:
    """The five numbers one looks for first, each with a number to compare it with."""
    figures, baselines = record["figures"], record["baselines"]
    beside = next(iter(baselines), None)

    def add(key: str, name: str, column: table.Column) -> None:
        if figures.get(key) is None:
            return
        other = baselines.get(beside, {}).get(key)
        note = "" if other is None else f"{beside}: {table.cell(column, {column.key: other})}"
        entries.append((name, table.cell(column, {column.key: figures[key]}), note))

    columns = {column.key: column for column in table.COLUMNS}  # and their numbers of decimals
    entries: list[tuple[str, str, str]] = []
    add("explained_variance", "Explained variance", columns["fvu"])
    if "l0" in figures:
        spread = f"90% of tokens: {table.l0_range(figures)}"
        entries.append(("L0, features per token", table.cell(table.L0, figures), spread))
        seen = f"never fired in {figures['tokens']:,.0f} tokens"
        entries.append(("Dead features", table.cell(table.DEAD, figures), seen))
    for key in ("ce_increase", "kl"):
        add(key, f"{columns[key].title}, nats/token", columns[key])
    cells = "\n".join(
        f'<div><dt>{name}</dt><dd>{value}</dd><dd class="beside">{escape(note)}</dd></div>'
        for name, value, note in entries
    )
    return f'<dl class="key">\n{cells}\n</dl>' if entries else ""


def _comparison(record: Mapping[str, Any]) -> str:
    body = [([label], cells, own) for label, cells, own in table.rows(record)]
    facts = "\n".join(
        f'<tr><th scope="row">{escape(name)}</th><td>{escape(value)}</td>'
        f"<td>{escape(meaning)}</td></tr>"
        for name, value, meaning in table.facts(record)
    )
    held_out = _is_held_out(record["text"])
    noun = "activations" if _is_rows(record["text"]) else "text"
    fitted = f"Baselines are fitted on {'training' if held_out else 'the same'} {noun}."
    details = f'<div class="scroll"><table class="facts"><tbody>\n{facts}\n</tbody></table></div>'
    note = (
        "FVU is pooled over tokens in float64. CE and KL compare the model with the reconstruction in "
        f"place to the clean model, per token. {fitted}"
    )
    figures = html_table(["Reconstruction"], table.COLUMNS, body)
    return section("Beside the baselines", note, figures, details if facts else "")


def _prefixes(record: Mapping[str, Any]) -> str:
    body = [([label], cells, own) for label, cells, own in table.prefixes(record)]
    if not body:
        return ""
    note = (
        "Each row decodes the first features alone, of the same codes: what a smaller dictionary cut "
        "from this one would give."
    )
    return section("Nested dictionaries", note, html_table(["Features"], table.PREFIXES, body))


def _side_by_side(record: Mapping[str, Any]) -> str:
    body = [([label], cells, own) for label, cells, own in layers.side_by_side(record)]
    if not body:
        return ""
    sentences = "\n".join(f"<p>{escape(text)}</p>" for text in layers.verdicts(record))
    note = (
        "The Jacobian cosine compares how outputs change with inputs to how the MLPs' do. What a "
        "dictionary computes in one layer and writes to another, past its MLP, counts against it."
    )
    figures = html_table(["Dictionary"], layers.SIDE_BY_SIDE, body)
    return section("Side by side", note, figures, sentences)


def _replacement(record: Mapping[str, Any]) -> str:
    rows = list(layers.replaced(record))
    if not rows:
        return ""
    several = len(table.dictionaries(record)) > 1
    body = [
        ([setting, label] if several else [setting], cells, own and several)
        for setting, label, cells, own in rows
    ]
    heads = ["Layers replaced", "Dictionary"] if several else ["Layers replaced"]
    note = (
        "Teacher forced, encoders read the clean run; free running, the patched one. One layer is the "
        "mean over each alone, half the mean over the even and the odd layers. The score is 1 minus KL "
        "over the KL of zero ablation of the same layers."
    )
    return section("Replacement model", note, html_table(heads, layers.REPLACED, body))


def _attribution(traced: Mapping[str, Any] | None) -> str:
    if traced is None:
        return ""
    body = [([prompt, name], cells, own) for prompt, name, cells, own in attribution.rows(traced)]
    versions = ", ".join(f"{name} {version}" for name, version in traced["versions"].items())
    note = (
        "Of prompts, by circuit-tracer. The replacement score is the share of the tokens' influence on "
        "the output that reaches it through features and not through errors; completeness, the share of "
        f"all nodes' inputs, weighted by their influence, that are not errors. {escape(versions)}."
    )
    figures = html_table(["Prompt", "Dictionary"], attribution.COLUMNS, body)
    return section("Attribution graphs", note, figures)


def _plots(title: str, note: str, plots: Iterable[Plot], layout: str) -> str:
    drawn = "\n".join(
        f"<figure><figcaption>{escape(plot.title)}</figcaption>\n"
        f"{inline_svg(plot.draw, plot.name, escape(plot.label), plot.width)}</figure>"
        for plot in plots
    )
    return section(title, note, f'<div class="{layout}">\n{drawn}\n</div>') if drawn else ""


def _text(text: Mapping[str, Any]) -> str:
    """The text that the figures are of: its name, its files, how it was cut."""
    data = dict(text.get("data") or {})
    title = "Activations" if _is_rows(text) else "Text"
    pairs = [(title.lower(), text_of(data)), ("read", _read(text))]
    if not _is_held_out(text):
        data.pop("held_out", None)  # nothing was held out
    if data:
        pairs.append(("data", group_line(data, named=True)))
    return f"""<section>
<h2>{title}</h2>
{_listed(pairs)}
</section>"""


def _read(text: Mapping[str, Any]) -> str:
    part = " of the part that is held out from training" if _is_held_out(text) else ""
    if _is_rows(text):
        return f"{text['tokens']:,} rows{part}"
    return f"{text['tokens']:,} tokens{part}, special ones included"


def _is_held_out(text: Mapping[str, Any]) -> bool:
    return text.get("part") == HELD_OUT


def _is_rows(text: Mapping[str, Any]) -> bool:
    """Whether activations were read that have no text."""
    return bool(text.get(ROWS))


def _listed(pairs: Iterable[tuple[str, str]]) -> str:
    rows = "\n".join(
        f"<div><dt>{escape(name)}</dt><dd>{escape(value)}</dd></div>" for name, value in pairs
    )
    return f'<dl class="settings">\n{rows}\n</dl>'


def _settings(settings: str) -> str:
    if not settings:
        return ""
    return f"""<section>
<h2>Settings</h2>
{_listed(summary(settings))}
<details><summary>Every setting</summary>
<pre>{escape(settings.strip())}</pre>
</details>
</section>"""


def _footer(record: Mapping[str, Any]) -> str:
    versions = ", ".join(f"{name} {version}" for name, version in record["versions"].items())
    model = record["model"]
    revision = f" at {model['revision']}" if model["revision"] else ""
    text = f"text SHA-256 {record['text']['sha256'][:16]}" if record["text"]["sha256"] else ""
    parts = [f"{model['name']}{revision}", text, versions, str(record["date"])]
    return " \N{MIDDLE DOT} ".join(escape(part) for part in parts if part)
