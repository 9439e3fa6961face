"""`t5lite convert`: converts checkpoints between t5lite, Hugging Face and T5X."""

import argparse
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from t5lite.errors import InputError
from t5lite.text import in_bytes, table

if TYPE_CHECKING:
    from t5lite.configuration import Configuration

NAMES = {"t5lite": "t5lite", "huggingface": "Hugging Face", "t5x": "T5X"}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares from where to where, and how."""
    parser.epilog = (
        "what SOURCE is, is found out; example: t5lite convert runs/quickstart quickstart-hf"
    )
    parser.add_argument(
        "source",
        metavar="SOURCE",
        help="a MODEL_DIR, a Hugging Face folder, its ORGANISATION/NAME[@REVISION] on the hub, or "
        "a T5X checkpoint",
    )
    parser.add_argument("target", metavar="TARGET", help="a folder that is new or empty")
    parser.add_argument(
        "--to",
        choices=("t5lite", "huggingface", "t5x"),
        help="the layout of TARGET (t5lite; of a MODEL_DIR, huggingface)",
    )
    parser.add_argument(
        "--dtype",
        choices=("float32", "bfloat16", "float16"),
        help="of the parameters (as they are stored)",
    )
    parser.add_argument(
        "--scanned", action="store_true", help="write T5X's layout for scanned layers"
    )
    parser.add_argument(
        "--dry-run",
        "--dry_run",
        action="store_true",
        help="list which tensor is which parameter, and write nothing",
    )


def run(arguments: argparse.Namespace, configuration: "Configuration") -> None:
    """Reads SOURCE, writes TARGET, and says what went where."""
    if configuration.source.bindings or configuration.source.macros:
        raise InputError("convert reads no gin configuration; name the folders")

    import jax

    from t5lite import interop
    from t5lite.inference.loaded import place
    from t5lite.interop import huggingface, t5x
    from t5lite.interop.foreign import mapping_lines
    from t5lite.models import Model
    from t5lite.reporting.bars import Bar

    opened = interop.open_model(arguments.source)
    kind, spec = opened.kind, opened.spec
    target = arguments.to or ("huggingface" if kind == "t5lite" else "t5lite")
    if arguments.scanned and target != "t5x":
        raise InputError("--scanned is for --to=t5x")
    if not arguments.dry_run:
        interop.check_target(arguments.target)
    # Both before anything is read: what cannot be written is refused early.
    out = None
    if target == "huggingface":
        try:
            out = huggingface.describe(spec).tensors
        except InputError as error:
            if note := huggingface.export_note(spec):
                raise InputError(f"{note}\n  --to=t5lite keeps the run as it is") from error
            raise
    elif target == "t5x":
        out = t5x.tensors(spec, scanned=arguments.scanned)
    model = Model(spec)
    shapes = model.shapes()
    count = sum(leaf.size for leaf in jax.tree.leaves(shapes))
    print(
        f"{opened.where} is {NAMES[kind]}'s: {spec.family}, {spec.topology}, {count:,} parameters"
    )
    opened.shapes(model)  # raises if tensors do not fit
    for name in opened.left_out():
        print(f"  left out: {name}")
    if target == "t5x" and (lost := unsaid(spec, out or ())):
        print(f"  not stored in T5X checkpoints, pass `spec=` to `load`: {', '.join(lost)}")
    for line in interop.losses(opened.description, kind=target):
        print(f"  lost: {line}")
    if arguments.dry_run:
        for name, tensors in ((kind, opened.tensors), (target, out)):
            if tensors:
                heading = (f"{NAMES[name]} tensor", "shape", "parameter")
                print("", *table([heading, *mapping_lines(tensors, shapes)]), sep="\n")
        return
    with Bar("reading") as bar:
        loaded = place(opened, dtype=arguments.dtype, progress=bar)
    with Bar("writing") as bar:
        interop.save(
            arguments.target,
            opened.description,
            loaded.params,
            kind=target,
            step=loaded.step or 0,
            scanned=arguments.scanned,
            progress=bar,
        )
    size = sum(leaf.nbytes for leaf in jax.tree.leaves(loaded.params))
    without = "" if loaded.vocabulary is not None and target != "t5x" else ", without a vocabulary"
    print(f"{arguments.target}: {NAMES[target]}'s layout, {in_bytes(size)}{without}")


def unsaid(spec: Any, tensors: Sequence[Any]) -> list[str]:
    """Returns what a spec says that T5X's names and shapes do not, as `field = value`."""
    from t5lite.interop import t5x
    from t5lite.models import differences

    read = t5x.infer_spec({tensor.name: tensor for tensor in tensors})
    return [f"{each.path} = {each.old}" for each in differences(spec, read)]
