"""The parts of the page that are text: configuration, model, data, generations, differences."""

import html
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from t5lite.reporting.report.record import Record, Text
from t5lite.reporting.report.words import number

_MAX_TEXTS, _MAX_CHARACTERS = 40, 20_000  # of a name; of each
_NUM_COLORS = 8


def named(record: Record, run: int) -> str:
    """Returns a run's name with its colour."""
    color = f"var(--c{run % _NUM_COLORS})"
    mark = f'<span class="swatch" style="background:{color}"></span>'
    return f'<span class="name">{mark}{html.escape(record.name)}</span>'


def differences(records: Sequence[Record]) -> str:
    """Returns a table of the settings that are not the same in all runs."""
    settings = [record.settings() for record in records]
    names = dict.fromkeys(name for bindings in settings for name in bindings)
    changed = [name for name in names if len({bindings.get(name) for bindings in settings}) > 1]
    if not changed:
        return '<div class="card soft">No setting differs.</div>'
    head = "".join(f"<th>{named(record, run)}</th>" for run, record in enumerate(records))
    rows = "".join(
        f'<tr><th scope="row">{html.escape(name).replace(".", ".<wbr>")}</th>'
        + "".join(f"<td>{html.escape(_cut(run.get(name, '–'), 400))}</td>" for run in settings)
        + "</tr>"
        for name in changed
    )
    return (
        '<div class="card scroll"><table class="differences"><thead><tr><th>Setting</th>'
        f"{head}</tr></thead><tbody>{rows}</tbody></table></div>"
    )


def config_card(records: Sequence[Record]) -> str:
    """Returns the configurations, that of a single run open."""
    return "".join(
        _card(
            named(record, run) if len(records) > 1 else "config.gin",
            f'<pre tabindex="0"><code class="gin">{_gin(record.config)}</code></pre>',
            closed=len(records) > 1,
        )
        for run, record in enumerate(records)
        if record.config
    )


def examples_card(records: Sequence[Record]) -> str:
    """Returns the description of the data; runs with the same one share it."""
    seen: dict[tuple, list[int]] = {}
    for run, record in enumerate(records):
        examples = record.facts.get("examples") or []
        about = (str(record.facts.get("data") or ""), *map(str, examples))
        if any(about):
            seen.setdefault(about, []).append(run)
    cards = []
    for (about, *examples), runs in seen.items():
        names = "".join(named(records[run], run) for run in runs)
        names = f"<h3>{names}</h3>" if len(records) > 1 else ""
        items = "".join(f"<li><pre>{_shown(text)}</pre></li>" for text in examples)
        lines = html.escape(about).replace("\n", "<br>")
        cards.append(
            f'<div class="card">{names}<p class="soft">{lines}</p>'
            + (f'<br><ol class="examples">{items}</ol>' if items else "")
            + "</div>"
        )
    return "".join(cards)


def text_cards(records: Sequence[Record]) -> str:
    """Returns the texts of each name, newest first, the runs side by side."""
    names = dict.fromkeys(name for record in records for name in record.texts)
    return "".join(
        '<div class="columns">'
        + "".join(
            _text_card(name, record.texts[name], named(record, run) if len(records) > 1 else "")
            for run, record in enumerate(records)
            if name in record.texts
        )
        + "</div>"
        for name in names
    )


def model_card(records: Sequence[Record]) -> str:
    """Returns the parameters as trees to unfold."""
    return "".join(
        _card(
            named(record, run) if several else "Parameters",
            f'<div class="tree">{_tree(record.facts["parameters"])}</div>',
            closed=several,
        )
        for several in [len(records) > 1]
        for run, record in enumerate(records)
        if record.facts.get("parameters")
    )


def _card(title: str, body: str, *, closed: bool) -> str:
    opened = "" if closed else " open"
    return f'<details class="card"{opened}><summary>{title}</summary>{body}</details>'


def _text_card(name: str, texts: Sequence[Text], run: str) -> str:
    shown = list(_thinned(texts))
    pages = "".join(
        f'<section data-step="{step}"><h4>step {step:,}</h4>'
        f'<pre tabindex="0">{_shown(text)}</pre></section>'
        for step, text in reversed(shown)
    )
    label = html.escape(f"step of {name}", quote=True)
    return (
        f'<div class="card texts"><header><h3>{html.escape(name)} {run}</h3>'
        '<span class="steps" hidden><button type="button" aria-label="earlier">‹</button>'
        f'<input type="range" min="0" value="0" aria-label="{label}">'
        '<button type="button" aria-label="later">›</button><output></output></span></header>'
        f'<div class="pages">{pages}</div></div>'
    )


def _thinned(texts: Sequence[Text]) -> Iterator[Text]:
    """Yields at most `_MAX_TEXTS`, evenly from the first to the last."""
    count = min(len(texts), _MAX_TEXTS)
    for index in range(count):
        yield texts[round(index * (len(texts) - 1) / max(count - 1, 1))]


def _shown(text: str) -> str:
    return html.escape(_cut(text, _MAX_CHARACTERS))


def _cut(text: str, length: int) -> str:
    return text if len(text) <= length else text[:length] + " …"


def _gin(config: str) -> str:
    """Returns a configuration in HTML, comments dimmed and bound names highlighted."""

    def line(text: str) -> str:
        if text.lstrip().startswith("#"):
            return f'<span class="comment">{html.escape(text)}</span>'
        bound = re.match(r"[\w./@%]+(?=\s*=)", text)
        if not bound:
            return html.escape(text)
        rest = html.escape(text[bound.end() :])
        return f'<span class="bound">{html.escape(bound[0])}</span>{rest}'

    return "\n".join(map(line, config.strip().splitlines()))


def _tree(rows: Iterable[Sequence[Any]]) -> str:
    """Returns `[path, shape, count, axes]` rows as nested lists."""
    tree: dict[str, Any] = {}
    for path, shape, count, axes in rows:
        *parents, name = str(path).split("/")
        node = tree
        for parent in parents:
            node = node.setdefault(parent, {})
        node[name] = (shape, int(count), axes)
    total = _count(tree)
    return "".join(_node("all", tree, total, depth=0))


def _node(name: str, node: Any, total: int, *, depth: int) -> Iterator[str]:
    while isinstance(node, Mapping) and len(node) == 1 and depth:
        ((only, node),) = node.items()
        name = f"{name}/{only}"
    count = _count(node)
    share = count / total if total else 0
    numbers = (
        f'<span class="number" title="{count:,}">{number(count)}</span>'
        f'<span class="share" title="{share:.1%}"><i style="width:{share:.1%}"></i></span>'
    )
    label = f'<span class="path">{html.escape(name)}'
    if isinstance(node, Mapping):
        opened = " open" if depth < 2 else ""
        yield f"<details{opened}><summary>{label}</span>{numbers}</summary><div>"
        for child, inside in node.items():
            yield from _node(child, inside, total, depth=depth + 1)
        yield "</div></details>"
    else:
        shape, _, axes = node
        sizes = " × ".join(map(str, shape)) or "scalar"
        names = " ".join("·" if axis is None else str(axis) for axis in axes or ())
        more = html.escape(f"[{sizes}] {names}")
        yield f'<div class="leaf">{label}<span class="soft">{more}</span></span>{numbers}</div>'


def _count(node: Any) -> int:
    return sum(map(_count, node.values())) if isinstance(node, Mapping) else node[1]
