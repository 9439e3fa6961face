"""`t5lite inspect --attention`: attention maps and token losses of one text, as a page."""

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from etils import epath

from t5lite.errors import InputError
from t5lite.inference import attention_maps, attribution, load
from t5lite.reporting.attention_page import check, render
from t5lite.reporting.files import replace_text

if TYPE_CHECKING:
    from t5lite.configuration import Configuration


def run(arguments: argparse.Namespace, configuration: "Configuration") -> None:
    """Looks into the model of `--model_dir`, draws the page, and prints where it is."""
    if configuration.source.bindings or configuration.source.macros:
        raise InputError("--attention reads no gin configuration; the model is --model_dir=DIR")
    if arguments.model_dir is None:
        raise InputError("--attention needs a model to look into: --model_dir=DIR")
    name, text = Path(arguments.model_dir).expanduser().resolve().name, arguments.attention
    output = epath.Path(arguments.output or f"attention-{name}.html").expanduser()
    if output.is_dir():
        raise InputError(f"--output={output}: must be a file, e.g. {output / 'attention.html'}")
    loaded = load(arguments.model_dir)
    inside = attention_maps(loaded, text, arguments.targets)
    check(inside)
    shares = None if inside.no_losses else attribution(loaded, text, inside.targets)
    page = render(inside, shares, name=name, text=text)
    try:
        replace_text(output, page)
    except OSError as error:
        reason = error.strerror or error
        raise InputError(
            f"--output={output}: cannot be written: {reason}; choose another"
        ) from error
    print(output)
