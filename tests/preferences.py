"""DPO's loss as an objective of a user's own: pairs of texts, and a reference policy."""

import dataclasses

import jax
import jax.numpy as jnp

from t5lite.objectives import Objective, decoder_batch


@dataclasses.dataclass(frozen=True, kw_only=True)
class Preferences(Objective):
    """DPO's loss, whose reference is the model that the run starts from."""

    features = ("chosen", "rejected")
    head = "lm"
    packable = False
    token_arrays = ("chosen_segment_ids", "rejected_segment_ids")
    references: dict = dataclasses.field(default_factory=lambda: {"policy": "start"}, hash=False)

    def axes(self):
        return {
            f"{text}_{name}": axes
            for text in self.features
            for name, axes in {
                **dict.fromkeys(("input_tokens", "target_tokens"), ("batch", "length")),
                **dict.fromkeys(("loss_weights", "segment_ids"), ("batch", "length")),
                "lengths": ("batch",),
            }.items()
        }

    def prepare(self, examples, *, lengths, vocabulary, rng):
        yield from examples

    def batch(self, rows):
        return {
            f"{text}_{name.removeprefix('decoder_')}": array
            for text in self.features
            for name, array in decoder_batch(
                {key.replace(text, "targets"): value for key, value in rows.items() if text in key}
            ).items()
        }

    def weights(self, batch):
        return {"preference": jnp.sum((batch["chosen_lengths"] > 0).astype(jnp.float32))}

    def loss(self, model, params, batch, *, frozen, rngs, train):
        def log_probability(model, params, text):
            own = {
                name.replace(text, "decoder"): array
                for name, array in batch.items()
                if name.startswith(text)
            }
            log_p = jax.nn.log_softmax(model.logits(params, model.hidden(params, own)[0]))
            targets = own["decoder_target_tokens"][..., None]
            log_p = jnp.take_along_axis(log_p, targets, axis=-1)[..., 0]
            return jnp.sum(log_p * own["decoder_loss_weights"], axis=1)

        policy, start = self.reference_models["policy"], frozen["policy"]
        margin = sum(
            sign * (log_probability(model, params, text) - log_probability(policy, start, text))
            for sign, text in ((1.0, "chosen"), (-1.0, "rejected"))
        )
        exists = (batch["chosen_lengths"] > 0).astype(jnp.float32)
        total = jnp.sum(-jax.nn.log_sigmoid(margin) * exists)
        return {"preference": (total, jnp.float32(1))}, {}
