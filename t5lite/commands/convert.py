"""`t5lite convert`: a checkpoint of one layout as one of another."""

import argparse
from typing import TYPE_CHECKING, Any

from t5lite.commands.bars import Bar
from t5lite.commands.text import in_bytes, table
from t5lite.errors import InputError

if TYPE_CHECKING:
    from t5lite.configuration import Configuration

NAMES = {"t5lite": "t5lite", "huggingface": "Hugging Face", "t5x": "T5X"}


def run(arguments: argparse.Namespace, configuration: "Configuration") -> None:
    """Reads SOURCE, writes TARGET, and says what went where."""
    if configuration.source.bindings or configuration.source.macros:
        raise InputError("convert reads no gin configuration; name the folders")

    from t5lite import interop, models
    from t5lite.interop import huggingface, t5x
    from t5lite.interop.foreign import Foreign, mapping_lines

    kind, path = interop.kind_of(arguments.source)
    target = arguments.to or ("huggingface" if kind == "t5lite" else "t5lite")
    found = interop.open_model(arguments.source)
    spec = found.spec
    # Both before anything is read: what cannot be written is refused early.
    out = None
    if target == "huggingface":
        out = huggingface.describe(spec).tensors
    elif target == "t5x":
        out = t5x.tensors(spec, scanned=arguments.scanned)
    shapes = models.Model(spec).shapes()
    count = sum(leaf.size for leaf in _leaves(shapes))
    print(f"{path} is {NAMES[kind]}'s: {spec.family}, {spec.topology}, {count:,} parameters")
    if isinstance(found, Foreign):
        for name in found.left_out():
            print(f"  left out: {name}")
    if arguments.dry_run:
        for heading, tensors in (
            (f"{NAMES[kind]} tensor", found.tensors if isinstance(found, Foreign) else None),
            (f"{NAMES[target]} tensor", out),
        ):
            if tensors is not None:
                print()
                rows = [(heading, "shape", "parameter"), *mapping_lines(tensors, shapes)]
                print("\n".join(table(rows)))
        return
    with Bar("reading") as bar:
        loaded = interop.load(arguments.source, dtype=arguments.dtype, progress=bar)
    with Bar("writing") as bar:
        interop.save(
            arguments.target,
            loaded.model,
            loaded.params,
            kind=target,
            vocabulary=loaded.vocabulary,
            step=loaded.step or 0,
            scanned=arguments.scanned,
            progress=bar,
        )
    size = sum(leaf.nbytes for leaf in _leaves(loaded.params))
    without = "" if loaded.vocabulary is not None and target != "t5x" else ", without a vocabulary"
    print(f"{arguments.target}: {NAMES[target]}'s layout, {in_bytes(size)}{without}")


def _leaves(tree: Any) -> list[Any]:
    import jax

    return jax.tree.leaves(tree)
