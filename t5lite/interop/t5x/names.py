"""T5X's parameters of a model: names, shapes and their mapping to ours."""

import math
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

from t5lite.interop.t5x.architecture import Form, bias_of, check, form_of, mlp_of
from t5lite.interop.tensors import Part, Tensor, View
from t5lite.layers import LMHeadSpec
from t5lite.models import ModelSpec, StackSpec

_ATTENTIONS = {
    "encoder": {"attention": "attention"},
    "decoder": {"attention": "self_attention", "cross_attention": "encoder_decoder_attention"},
}
_NORMS = {"cross_attention": "pre_cross_attention_layer_norm", "mlp": "pre_mlp_layer_norm"}


class Leaf(NamedTuple):
    """A parameter of T5X.

    The rows of a matrix are T5X's axes before `split`, its columns those after; ours are the same,
    in the same order, but perhaps cut differently into axes.

    Args:
      name: in T5X, after `target.`.
      sources: our path, and the entry along its axis `layers` (or None), of each layer in it.
      shape: in T5X, of one layer.
      own_shape: in ours, of one layer.
      scanned: whether layers are stacked along T5X's second axis; otherwise it has one source.
      split: number of T5X's axes that are rows; None unless it is a matrix.
      own_split: the same of ours.
      rows_are_embed: whether the rows are the residual stream, by which T5X's factor rules go.
      alias: its name in other checkpoints.
    """

    name: str
    sources: tuple[tuple[str, int | None], ...]
    shape: tuple[int, ...]
    own_shape: tuple[int, ...]
    scanned: bool = False
    split: int | None = None
    own_split: int | None = None
    rows_are_embed: bool = False
    alias: str | None = None

    @property
    def path(self) -> str:
        """Our path of its first layer."""
        return self.sources[0][0]

    @property
    def whole_shape(self) -> tuple[int, ...]:
        """The shape in T5X, of all layers together."""
        return self.stacked(self.shape, 1)

    def stacked(self, shape: tuple[int, ...], axis: int) -> tuple[int, ...]:
        """Returns the shape of all layers' arrays, stacked along an axis if T5X scans them."""
        return (*shape[:axis], *[len(self.sources)] * self.scanned, *shape[axis:])

    def tensor(self, name: str, own_prefix: str = "", *, aliases: tuple[str, ...] = ()) -> Tensor:
        """Returns the mapping of this parameter, or of an array of the same shape, to ours."""
        parts = self.parts(self.own_shape, own_prefix, layer_axis=1)
        return Tensor(name, self.whole_shape, parts, aliases)

    def parts(
        self, own_shape: tuple[int, ...], own_prefix: str = "", *, layer_axis: int
    ) -> tuple[Part, ...]:
        """Returns our arrays in an array of T5X's that belongs to this parameter.

        Args:
          own_shape: of ours, of one layer.
          own_prefix: of the paths of ours.
          layer_axis: along which T5X stacks the layers of this array, if it does.
        """
        if not self.scanned:
            ((path, entry),) = self.sources
            return (Part(f"{own_prefix}{path}", entry, _view(own_shape)),)
        num_layers = len(self.sources)
        if self.sources == tuple((self.path, layer) for layer in range(num_layers)):
            shape = (num_layers, *own_shape)  # stacked as ours are, but for the axis
            return (Part(f"{own_prefix}{self.path}", None, _view(shape, layer_axis)),)
        return tuple(
            Part(f"{own_prefix}{path}", entry, _view(own_shape, layer_axis, layer))
            for layer, (path, entry) in enumerate(self.sources)
        )


def tensors(spec: ModelSpec, *, scanned: bool = False, joined: bool | None = None) -> list[Tensor]:
    """Returns the parameters of a model as T5X stores them; arguments as in `form_of`.

    Raises: InputError if T5X has no such model.
    """
    return [
        leaf.tensor(f"target.{leaf.name}", aliases=(f"target.{leaf.alias}",) if leaf.alias else ())
        for leaf in leaves(spec, form_of(scanned, joined))
    ]


def leaves(spec: ModelSpec, form: Form) -> list[Leaf]:
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


def _view(shape: tuple[int, ...], layer_axis: int | None = None, layer: int | None = None) -> View:
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
        return array.reshape(shape)  # only ever cuts one axis in two, so it copies nothing

    return viewed


def _stack(name: str, stack: StackSpec, embed: int, form: Form) -> Iterator[Leaf]:
    layers = [stack.location(layer) for layer in range(stack.num_layers)]
    for leaf in _one_layer(name, stack, embed, joined=form.joined):
        sources = tuple((f"{name}/{path}/{leaf.path}", entry) for path, entry in layers)
        if form.scanned:
            yield leaf._replace(name=f"{name}.{name}.{leaf.name}", sources=sources, scanned=True)
        else:
            for layer, source in enumerate(sources):
                yield leaf._replace(name=f"{name}.layers_{layer}.{leaf.name}", sources=(source,))
    if not bias_of(name, stack).per_layer:
        bias = _bias(name, stack)
        yield bias._replace(name=f"{name}.{bias.name}", sources=((f"{name}/{bias.path}", None),))
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
    sources = ((path, None),)
    return Leaf(name, sources, shape, shape, split=1, own_split=1, rows_are_embed=rows_are_embed)
