"""The encoder alone: BERT's topology."""

from jaxtyping import Array, Float

from t5lite.errors import InputError
from t5lite.layers import AttentionMask
from t5lite.models.block import Context
from t5lite.models.cache import Cache
from t5lite.models.transformer import Batch, Transformer, encoder_segments, positions_of


class Encoder(Transformer):
    """Every token sees every other."""

    def setup(self) -> None:
        super().setup()
        assert self.spec.encoder is not None
        self.encoder = self.stack(self.spec.encoder, stacked=self.stacked)

    def hidden(self, batch: Batch) -> Float[Array, "batch length embed"]:
        """Returns the encoder's output."""
        x = self.embed(batch["encoder_input_tokens"], batch.get("token_types"))
        context = Context(
            mask=AttentionMask.within(encoder_segments(batch), causal=False),
            positions=positions_of(batch, "encoder"),
        )
        return self.encoder(x, context)[0]

    def start(self, batch: Batch, max_length: int, draft_length: int) -> Cache:
        raise InputError("an encoder cannot generate: choose a model with a decoder")
