"""Vocabularies of t5lite in SeqIO tasks: the same ids in TensorFlow graphs."""

import functools
import itertools
from collections.abc import Iterable
from typing import Any

import numpy as np

from t5lite.data.importing import import_seqio


@functools.cache
def seqio_class() -> type:
    """Returns the class that wraps a vocabulary for SeqIO (imports TensorFlow)."""
    seqio = import_seqio()
    import tensorflow as tf

    class TokenizersVocabulary(seqio.Vocabulary):  # type: ignore[name-defined]
        def __init__(self, twin: Any):
            self.twin = twin
            super().__init__(extra_ids=twin.num_sentinels)

        bos_id = property(lambda self: self.twin.bos_id)
        eos_id = property(lambda self: self.twin.eos_id)
        pad_id = property(lambda self: self.twin.pad_id)
        unk_id = property(lambda self: None if self.twin.unk_id < 0 else self.twin.unk_id)
        _base_vocab_size = property(lambda self: self.twin.size - self.twin.num_sentinels)

        def __eq__(self, other: object) -> bool:
            twin = getattr(other, "twin", None)
            return getattr(twin, "fingerprint", None) == self.twin.fingerprint

        def __hash__(self) -> int:
            return hash(self.twin.fingerprint)

        def __str__(self) -> str:
            return f"TokenizersVocabulary({self.twin!r})"

        def _encode(self, s: str) -> list[int]:
            return self.twin.encode(s)

        def _decode(self, ids: Iterable[int]) -> str:
            return self.twin.decode(ids)

        def decode(self, ids: Iterable[int]) -> str:
            return self.twin.decode(ids)  # SeqIO's own maps sentinels to unknown

        def _encode_tf(self, s: Any) -> Any:
            """Encodes one string as `[length]`, or `[n]` strings as ragged `[n, None]`, int32."""
            if s.shape.rank == 0:
                ids = tf.numpy_function(self._encode_one, [s], tf.int32, stateful=False)
                return tf.ensure_shape(ids, [None])
            values, sizes = tf.numpy_function(
                self._encode_many, [s], (tf.int32, tf.int64), stateful=False
            )
            return tf.RaggedTensor.from_row_lengths(
                tf.ensure_shape(values, [None]), tf.ensure_shape(sizes, [None])
            )

        def _decode_tf(self, ids: Any) -> Any:
            """Decodes `[length]` to a string, or `[n, length]` to `[n]`."""
            texts = tf.numpy_function(self._decode_many, [ids], tf.string, stateful=False)
            return tf.ensure_shape(texts, ids.shape[:-1])

        def decode_tf(self, ids: Any) -> Any:
            return self._decode_tf(ids)

        def _encode_one(self, text: bytes) -> np.ndarray:
            # As SentencePiece; invalid UTF-8 is reported where the text is read.
            return np.asarray(self.twin.encode(text.decode(errors="replace")), np.int32)

        def _encode_many(self, texts: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
            ids = self.twin.encode_all([text.decode(errors="replace") for text in texts])
            values = np.array([*itertools.chain(*ids)], np.int32)
            return values, np.array([*map(len, ids)], np.int64)

        def _decode_many(self, ids: np.ndarray) -> Any:
            if ids.ndim == 1:
                return self.twin.decode(ids).encode()
            return np.array([self.twin.decode(row).encode() for row in ids], object)

    return TokenizersVocabulary
