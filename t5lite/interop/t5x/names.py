"""T5X's parameters of a model: their names, their shapes and their mapping to ours."""

import math
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

from t5lite.interop.t5x.architecture import Form, bias_of, check, mlp_of
from t5lite.interop.tensors import Part, Tensor, View
from t5lite.layers import LMHeadSpec
from t5lite.models import ModelSpec, StackSpec

_ATTENTIONS = {
    "encoder": {"attention": "attention"},
    "decoder": {"attention": "self_attention", "cross_attention": "encoder_decoder_attention"},
}
_NORMS = {"cross_attention": "pre_cross_attention_layer_norm", "mlp": "pre_mlp_layer_norm"}


class Leaf(NamedTuple):
    """A parameter of T5X's.

    A matrix has two sides, T5X's axes before and after `split`; ours are the same, in the same
    order, but perhaps cut differently into axes.

    Args:
      name: as T5X has it, after `target.`.
      places: path of ours and entry along its axis `layers` (or None), for each layer in it.
      shape: in T5X, of one layer.
      own_shape: in ours, of one layer.
      scanned: whether layers are stacked along T5X's second axis; otherwise `places` has one entry.
      split: how many of T5X's axes are rows; None unless it is a matrix.
      own_split: the same of ours.
      rows_are_embed: whether the rows are the residual stream, which T5X's factor rules ask.
      alias: another name of it, in other checkpoints.
    """

    name: str
    places: tuple[tuple[str, int | None], ...]
    shape: tuple[int, ...]
    own_shape: tuple[int, ...]
    scanned: bool = False
    split: int | None = None
    own_split: int | None = None
    rows_are_embed: bool = False
    alias: str | None = None

    @property
    def whole_shape(self) -> tuple[int, ...]:
        """The shape in T5X, of all layers together."""
        return inserted(self.shape, len(self.places), axis=1) if self.scanned else self.shape

    def tensor(self, prefix: str = "target.", own_prefix: str = "") -> Tensor:
        """Returns how this parameter, or an array of the same shape, stands among ours."""
        aliases = () if self.alias is None else (f"{prefix}{self.alias}",)
        parts = self.parts(self.own_shape, own_prefix, layer_axis=1)
        return Tensor(f"{prefix}{self.name}", self.whole_shape, parts, aliases)

    def parts(
        self, own_shape: tuple[int, ...], own_prefix: str = "", *, layer_axis: int
    ) -> tuple[Part, ...]:
        """Returns which of our arrays are in one of T5X's that belongs to this parameter.

        Args:
          own_shape: of ours, of one layer.
          own_prefix: of the paths of ours.
          layer_axis: along which T5X stacks the layers of this array, if it does.
        """
        if not self.scanned:
            ((path, entry),) = self.places
            return (Part(f"{own_prefix}{path}", entry, view(own_shape)),)
        if self.places == tuple((self.places[0][0], layer) for layer in range(len(self.places))):
            shape = (len(self.places), *own_shape)  # stacked as ours are, but for the axis
            return (Part(f"{own_prefix}{self.places[0][0]}", None, view(shape, layer_axis)),)
        return tuple(
            Part(f"{own_prefix}{path}", entry, view(own_shape, layer_axis, layer))
            for layer, (path, entry) in enumerate(self.places)
        )


def tensors(spec: ModelSpec, *, scanned: bool = False, joined: bool | None = None) -> list[Tensor]:
    """Returns the parameters of a model as T5X stores them.

    Args:
      spec: the model.
      scanned: see `Form`.
      joined: see `Form`; None as T5X's own code has it: where the layers are not scanned.

    Raises:
      InputError: if T5X has no such model.
    """
    form = Form(scanned, not scanned if joined is None else joined)
    return [leaf.tensor() for leaf in leaves(spec, form)]


def leaves(spec: ModelSpec, form: Form) -> list[Leaf]:
    """Returns T5X's parameters of a model; see `tensors`."""
    check(spec)
    embedding = _matrix(
        "token_embedder.embedding", "token_embedding/embedding", (spec.vocab, spec.embed)
    )
    if spec.encoder is None:  # then the decoder has it
        embedding = embedding._replace(name=f"decoder.{embedding.name}", alias=embedding.name)
    result = [embedding]
    head = spec.heads[0]
    if isinstance(head, LMHeadSpec) and not head.tied:
        name, shape = "decoder.logits_dense.kernel", (spec.embed, spec.vocab)
        result.append(_matrix(name, "lm_head/projection/kernel", shape, rows_are_embed=True))
    for name in ("encoder", "decoder"):
        if (stack := getattr(spec, name)) is not None:
            result += _stack(name, stack, spec.embed, form)
    return result


def view(shape: tuple[int, ...], layer_axis: int | None = None, layer: int | None = None) -> View:
    """Returns the view of an array of T5X's with its axes cut as ours are.

    Args:
      shape: of ours.
      layer_axis: along which T5X stacks layers; None for not at all.
      layer: which one; None for all.
    """

    def viewed(array: np.ndarray) -> np.ndarray:
        if layer_axis is not None:
            array = np.moveaxis(array, layer_axis, 0)
            array = array if layer is None else array[layer]
        return array.reshape(shape)  # which only ever cuts one axis in two, so it copies nothing

    return viewed


def inserted(shape: tuple[int, ...], size: int, *, axis: int) -> tuple[int, ...]:
    """Returns a shape with one more axis."""
    return (*shape[:axis], size, *shape[axis:])


def _stack(name: str, stack: StackSpec, embed: int, form: Form) -> Iterator[Leaf]:
    paths = [stack.place(layer) for layer in range(stack.num_layers)]
    own = _one_layer(name, stack, embed, joined=form.joined)
    for leaf in own:
        places = [(f"{name}/{path}/{leaf.places[0][0]}", entry) for path, entry in paths]
        if form.scanned:
            scanned = f"{name}.{name}.{leaf.name}"
            yield leaf._replace(name=scanned, places=tuple(places), scanned=True)
        else:
            for layer, location in enumerate(places):
                yield leaf._replace(name=f"{name}.layers_{layer}.{leaf.name}", places=(location,))
    if not bias_of(name, stack).per_layer:
        bias = _bias(name, stack)
        path = f"{name}/{bias.places[0][0]}"
        yield bias._replace(name=f"{name}.{bias.name}", places=((path, None),))
    yield _vector(f"{name}.{name}_norm.scale", f"{name}/final_norm/scale", embed)


def _one_layer(name: str, stack: StackSpec, embed: int, *, joined: bool) -> Iterator[Leaf]:
    """Yields the parameters of a layer, named from the layer on."""
    block = stack.blocks[0]
    for own, theirs in _ATTENTIONS[name].items():
        attention = getattr(block, own)
        if attention is None:
            continue
        heads = (attention.num_heads, attention.head_dim)
        flat = (math.prod(heads),) if joined else heads
        for part in ("query", "key", "value"):
            yield Leaf(
                f"{theirs}.{part}.kernel",
                ((f"{own}/{part}/kernel", None),),
                (embed, *flat),
                (embed, *heads),
                split=1,
                own_split=1,
                rows_are_embed=True,
            )
        yield Leaf(
            f"{theirs}.out.kernel",
            ((f"{own}/output/kernel", None),),
            (*flat, embed),
            (*heads, embed),
            split=len(flat),
            own_split=2,
        )
        norm = _NORMS.get(own, f"pre_{theirs}_layer_norm")
        yield _vector(f"{norm}.scale", f"{own}_norm/scale", embed)
    mlp = mlp_of(name, stack)
    up, down = (embed, mlp.hidden), (mlp.hidden, embed)
    for theirs, own in {"wi_0": "gate", "wi_1": "up"}.items() if mlp.gated else [("wi", "up")]:
        yield _matrix(f"mlp.{theirs}.kernel", f"mlp/{own}/kernel", up, rows_are_embed=True)
    yield _matrix("mlp.wo.kernel", "mlp/down/kernel", down)
    yield _vector(f"{_NORMS['mlp']}.scale", "mlp_norm/scale", embed)
    if bias_of(name, stack).per_layer:
        yield _bias(name, stack)


def _bias(name: str, stack: StackSpec) -> Leaf:
    shape = (stack.blocks[0].attention.num_heads, bias_of(name, stack).num_buckets)
    return Leaf("relpos_bias.rel_embedding", (("position_bias/embedding", None),), shape, shape)


def _vector(name: str, path: str, size: int) -> Leaf:
    return Leaf(name, ((path, None),), (size,), (size,))


def _matrix(name: str, path: str, shape: tuple[int, int], *, rows_are_embed: bool = False) -> Leaf:
    places = ((path, None),)
    return Leaf(name, places, shape, shape, split=1, own_split=1, rows_are_embed=rows_are_embed)
