"""The self-contained HTML page of `t5lite inspect --attention`."""

import base64
import datetime
import functools
import html
import json
from collections.abc import Iterator
from importlib import resources
from typing import Any

import numpy as np

from t5lite.errors import InputError

MAX_BYTES = 32_000_000  # of all maps, one a weight: browsers get slow beyond
_KINDS = {  # title, and the stacks of queries and keys
    "encoder": ("Encoder", "encoder", "encoder"),
    "decoder": ("Decoder", "decoder", "decoder"),
    "cross": ("Cross-attention", "decoder", "encoder"),
}


def check(inside: Any) -> None:
    """Raises an InputError if a page would hold too many weights for a browser."""
    size = sum(weights.size for layers in inside.maps.values() for weights in layers)
    if size > MAX_BYTES:
        count = sum(map(len, inside.tokens.values()))
        raise InputError(
            f"a text of {count} tokens has {size:,} attention weights in this model, and a page "
            f"holds {MAX_BYTES:,}; give a shorter text"
        )


def render(inside: Any, shares: np.ndarray | None, *, name: str, text: str) -> str:
    """Returns attention maps, token losses and attributions as one self-contained HTML page.

    `inside` is the record of `inference.attention_maps`, and `shares`, `[outputs, inputs]`, the
    `attribution` of the same text; None without losses.
    """
    data = {
        "tokens": inside.tokens,
        "maps": [
            {
                **dict(zip(("title", "queries", "keys"), _KINDS[kind], strict=True)),
                "heads": [len(layer) for layer in maps],
                "data": base64.b64encode(b"".join(map(_bytes, maps))).decode(),
            }
            for kind, maps in inside.maps.items()
        ],
        "last": list(inside.tokens)[-1],
        "outputs": [
            {"piece": piece, "place": int(index), "loss": _short(loss), "alternatives": likeliest}
            for piece, index, loss, likeliest in zip(
                inside.outputs,
                inside.places,
                inside.losses,
                [[(token, _short(p)) for token, p in row] for row in inside.alternatives],
                strict=True,
            )
        ],
        "attribution": [] if shares is None else [[*map(_short, row)] for row in shares],
    }
    texts = {"Text": text, "Targets": inside.targets}
    return _template("attention_page.html").format(
        title=html.escape(name),
        style=_style(),
        script=_template("attention_page.js"),
        texts='<div class="said">{}</div>'.format(
            "".join(
                f"<p><b>{label}</b>{html.escape(value)}</p>"
                for label, value in texts.items()
                if value is not None
            )
        ),
        tiles="".join(
            f"<div><dt>{label}</dt><dd>{value}<small>{more}</small></dd></div>"
            for label, value, more in _tiles(inside)
        ),
        tokens=_tokens(inside),
        drawn=datetime.datetime.now().astimezone().strftime("%Y-%m-%d %H:%M %Z"),
        # JSON that cannot end the script that it stands in.
        data=json.dumps(data, allow_nan=False, separators=(",", ":")).replace("<", "\\u003c"),
    )


def _tiles(inside: Any) -> Iterator[tuple[str, str, str]]:
    for stack, tokens in inside.tokens.items():
        maps = inside.maps[stack]
        heads = "–".join(map(str, sorted({len(layer) for layer in maps})))
        yield stack.capitalize(), f"{len(tokens):,} tokens", f"{len(maps)} layers × {heads} heads"
    if len(inside.losses):
        mean = inside.losses.mean(dtype=np.float64)
        yield "Mean loss", f"{mean:.3f}", f"nats, of {len(inside.losses):,} tokens"
        name = "Perplexity" if "decoder" in inside.tokens else "Pseudo-perplexity"
        yield name, f"{np.exp(mean):.4g}", "exp of the mean loss"


def _tokens(inside: Any) -> str:
    """Returns the cards of token losses and attributions."""
    if inside.no_losses is not None:
        return f'<div class="card soft">No losses: {html.escape(inside.no_losses)}.</div>'
    masked = list(inside.tokens) == ["encoder"]
    how = " with that one token masked" if masked else " given what comes before"
    return (
        '<div class="told"><div class="card">'
        f'<h3>Loss</h3><p class="note">−log probability of each token{how}, in nats. '
        'Click one.</p><div class="strip" id="outputs"></div>'
        '<h3>Attribution</h3><p class="note">Gradient × input: the share of each input in '
        'that log-probability, to first order; <span style="color:var(--c0)">blue raises it</span>'
        ', <span style="color:var(--c1)">orange lowers it</span>. Sum: <span id="sum"></span>. '
        f"The dashed token is {'masked' if masked else 'the one that predicts it'}.</p>"
        '<div id="inputs"></div></div><div class="card detail" id="detail"></div></div>'
    )


def _bytes(weights: np.ndarray) -> bytes:
    """Returns 255 × √weight: roots, so that small weights keep some digits."""
    return np.rint(255 * np.sqrt(np.nan_to_num(weights).clip(0, 1))).astype(np.uint8).tobytes()


def _short(value: Any) -> float | None:
    return float(f"{value:.4g}") if np.isfinite(value) else None


@functools.cache
def _style() -> str:
    report = resources.files("t5lite.reporting.report") / "page.css"
    return report.read_text(encoding="utf-8") + _template("attention_page.css")


@functools.cache
def _template(name: str) -> str:
    return (resources.files(__package__) / name).read_text(encoding="utf-8")
