"""A model of two tables, whose numbers can be computed by hand."""

import dataclasses
import types

import jax
import jax.numpy as jnp


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class BagCache:
    lengths: jax.Array
    bag: jax.Array

    def rewind(self, lengths):
        return dataclasses.replace(self, lengths=lengths)


def spec(*sides):
    """Returns a spec without layers, of any number of positions."""
    stack = types.SimpleNamespace(max_length=None, num_periods=0)
    stacks = {side: stack if side in sides else None for side in ("encoder", "decoder")}
    return types.SimpleNamespace(vocab=20, **stacks)


class BagModel:
    """Logits: a table of the last decoder token, plus the mean of a table over the inputs."""

    topology, heads = "encoder_decoder", {"lm": None}
    start_id = 0
    spec = spec("encoder", "decoder")
    traces = 0

    @property
    def unstacked(self):
        return self

    def hidden(self, params, batch, *, rngs=None, train=False):
        assert not train
        self.traces += 1
        tokens, given = batch["encoder_input_tokens"], batch["decoder_input_tokens"]
        inside = (tokens > 0).astype(jnp.float32)
        seen = jnp.broadcast_to(inside[:, None], (*given.shape, tokens.shape[1]))
        if "decoder_segment_ids" in batch:
            same = batch["decoder_segment_ids"][:, :, None] == batch["encoder_segment_ids"][:, None]
            seen = seen * same.astype(jnp.float32)
        share = seen / jnp.maximum(seen.sum(axis=-1, keepdims=True), 1)
        bag = jnp.einsum("bde,bev->bdv", share, params["encoder"][tokens])
        return params["decoder"][given] + bag, {}

    def logits(self, params, hidden):
        return hidden

    def start(self, params, batch, *, max_length, draft_length=0):
        first = {
            **batch,
            "decoder_input_tokens": jnp.zeros((len(batch["encoder_input_tokens"]), 1), int),
        }
        bag = self.hidden(params, first)[0][:, 0] - params["decoder"][0][None]
        return BagCache(jnp.zeros(len(bag), jnp.int32), bag)

    def extend(self, params, tokens, cache):
        lengths = cache.lengths + tokens.shape[1]
        return params["decoder"][tokens] + cache.bag[:, None], BagCache(lengths, cache.bag)
