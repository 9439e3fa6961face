"""Conversion of a checkpoint between the layouts of t5lite, Hugging Face and T5X."""

import functools
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax

from t5lite.errors import InputError, option
from t5lite.interop import huggingface, t5x
from t5lite.interop.finite import check_dtype
from t5lite.interop.foreign import mapping_lines
from t5lite.interop.opened import Opened
from t5lite.interop.opening import open_model
from t5lite.interop.save import check_target, losses, save
from t5lite.interop.tensors import Tensor
from t5lite.models import Model, ModelSpec, differences
from t5lite.parallel import Layout, make_mesh
from t5lite.text import in_bytes, table

Progress = Callable[[str, int, int], None]  # stage, bytes done, bytes in all
NAMES = {"t5lite": "t5lite", "huggingface": "Hugging Face", "t5x": "T5X"}


def convert(
    source: str,
    target: str,
    *,
    to: str | None = None,
    dtype: str | None = None,
    scanned: bool = False,
    dry_run: bool = False,
    say: Callable[[str], object] = print,
    progress: Progress | None = None,
) -> None:
    """Writes a checkpoint in another layout.

    Args:
      source: any folder or name that `open_model` opens.
      target: a folder, new or empty.
      to: the layout of `target`, see `save`; None: "huggingface" for t5lite's own, else "t5lite".
      dtype: of the parameters; None: as stored.
      scanned: whether "t5x" is written for scanned layers.
      dry_run: whether to list tensors and parameters, and write nothing.
      say: prints a line.
      progress: called with the stage, bytes done and bytes in all.
    Raises: InputError for a folder that cannot be opened or written, or a model that the layout
      cannot express, before parameters are read.
    """
    opened = open_model(source)
    to = to or ("huggingface" if opened.kind == "t5lite" else "t5lite")
    if scanned and to != "t5x":
        raise InputError(f"{option('scanned')} is for {option('to', 't5x')}", field="scanned")
    if not dry_run:
        check_target(target)
    tensors = _tensors(opened.spec, to, scanned=scanned)
    shapes = Model(opened.spec).shapes()
    count = sum(leaf.size for leaf in jax.tree.leaves(shapes))
    spec, layout = opened.spec, NAMES[opened.kind]
    say(f"{opened.folder} is {layout}'s: {spec.family}, {spec.topology}, {count:,} parameters")
    for line in _omissions(opened, to, tensors):
        say(f"  {line}")
    if dry_run:
        for kind, mapped in ((opened.kind, opened.tensors), (to, tensors)):
            if mapped:
                heading = (f"{NAMES[kind]} tensor", "shape", "parameter")
                say("\n".join(["", *table([heading, *mapping_lines(mapped, shapes)])]))
        return
    params = read_params(opened, dtype=dtype, progress=progress)
    save(
        target,
        opened.description,
        params,
        kind=to,
        step=opened.step or 0,
        scanned=scanned,
        progress=progress and functools.partial(progress, "writing"),
    )
    size = sum(leaf.nbytes for leaf in jax.tree.leaves(params))
    without = "" if opened.vocabulary is not None and to != "t5x" else ", without a vocabulary"
    say(f"{target}: {NAMES[to]}'s layout, {in_bytes(size)}{without}")


def read_params(opened: Opened, *, dtype: str | None, progress: Progress | None = None) -> Any:
    """Reads all parameters of a checkpoint, replicated on the devices here."""
    check_dtype(dtype)
    layout = Layout()
    return opened.params(
        Model(opened.spec),
        layout=layout,
        mesh=make_mesh(layout),
        dtype=dtype,
        progress=progress and functools.partial(progress, "reading"),
    )


def _tensors(spec: ModelSpec, kind: str, *, scanned: bool) -> Sequence[Tensor]:
    """Returns the tensors that a layout stores for a model; () for t5lite's own."""
    if kind == "t5x":
        return t5x.tensors(spec, scanned=scanned)
    if kind == "t5lite":
        return ()
    try:
        return huggingface.describe(spec).tensors
    except InputError as error:
        if note := huggingface.export_note(spec):
            fix = f"{option('to', 't5lite')} keeps the run as it is"
            raise InputError(f"{note}\n  {fix}", field=error.field) from error
        raise


def _omissions(opened: Opened, kind: str, tensors: Sequence[Tensor]) -> Iterator[str]:
    """Yields the parts of a checkpoint that are not read, or that a layout does not store."""
    opened.shapes(Model(opened.spec))
    yield from (f"left out: {name}" for name in opened.left_out())
    if kind == "t5x":
        inferred = t5x.infer_spec({tensor.name: tensor for tensor in tensors})
        lost = [f"{diff.path} = {diff.old}" for diff in differences(opened.spec, inferred)]
        if lost:
            yield f"not stored in T5X checkpoints, pass `spec=` to `load`: {', '.join(lost)}"
    yield from (f"lost: {line}" for line in losses(opened.description, kind=kind))
