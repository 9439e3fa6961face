"""SentencePiece models as tokenizers of the `tokenizers` library, with SentencePiece's own ids.

Source: transformers 5, `SpmConverter.build_tokenizer_from_spm_proto`.
"""

import re
from collections.abc import Sequence
from typing import Any

from t5lite.data.vocabularies.tokenizer_files import import_tokenizers
from t5lite.errors import InputError
from t5lite.interop.huggingface.tokenizer_building import (
    Draft,
    Made,
    Parts,
    byte_pair_merges,
    finish,
)
from t5lite.interop.huggingface.tokenizer_settings import Settings

UNIGRAM, BPE = 1, 2  # model types
NORMAL, CONTROL, USER_DEFINED = 1, 3, 4  # types of pieces


def read_sentencepiece(content: bytes, path: Any) -> Any:
    """Returns a file's `ModelProto`; InputError if damaged, or a model of words or characters."""
    from google.protobuf.message import DecodeError
    from sentencepiece import sentencepiece_model_pb2

    protos: Any = sentencepiece_model_pb2  # whose classes are made when it is imported
    try:
        model = protos.ModelProto.FromString(content)
    except DecodeError:
        model = None
    if model is None or not model.pieces:
        raise InputError(f"{path} is not a SentencePiece model, or is damaged; restore it")
    if model.trainer_spec.model_type not in (UNIGRAM, BPE):
        raise InputError(f"{path} is a SentencePiece model of words or characters: use another")
    return model


def from_sentencepiece(model: Any, settings: Settings) -> Made:
    """Returns the tokenizer of a SentencePiece `ModelProto` without a named class."""
    names = {number: token["content"] for number, token in settings.added.items()}
    trainer = model.trainer_spec
    texts = [piece.piece for piece in model.pieces]
    if trainer.model_type != UNIGRAM:
        unchanged = {text for number, text in enumerate(texts) if number not in names}
        for number, text in names.items():
            if number < len(texts) and text not in unchanged:
                texts[number] = text
    tokenizer = plain_sentencepiece(model, texts, legacy=settings.options.get("legacy", True))
    tokens = {
        name: getattr(trainer, f"{name}_piece")
        for name in ("bos", "eos", "unk")
        if getattr(trainer, f"{name}_id") >= 0
    }
    additional = [
        {"content": piece.piece, "normalized": False, "special": True}
        for piece in model.pieces
        if piece.type == CONTROL
    ]
    if model.normalizer_spec.add_dummy_prefix:
        added = {number: {**token, "normalized": False} for number, token in settings.added.items()}
        settings = settings._replace(added=added)
    return finish(Draft(tokenizer, tokens, additional), Parts({}), settings)


def plain_sentencepiece(
    model: Any, texts: Sequence[str] | None = None, *, legacy: bool = True
) -> Any:
    """Returns a tokenizer with the ids of SentencePiece, without special tokens or a template.

    Args:
      model: the `ModelProto`.
      texts: of its pieces; None for the model's.
      legacy: whether each part of a text between special tokens begins with a space, as if
        SentencePiece encoded each; otherwise the first alone.
    """
    library, trainer, normalizer = import_tokenizers(), model.trainer_spec, model.normalizer_spec
    texts = [piece.piece for piece in model.pieces] if texts is None else texts
    pieces = list(zip(texts, model.pieces, strict=True))
    whole = [text for text, piece in pieces if piece.type == USER_DEFINED]
    if trainer.model_type == UNIGRAM:
        scores = [(text, piece.score) for text, piece in pieces]
        pieces_model = library.models.Unigram(scores, trainer.unk_id, trainer.byte_fallback)
    else:
        ranks = {
            text: (-piece.score, number)
            for number, (text, piece) in enumerate(pieces)
            if piece.type == NORMAL
        }
        pieces_model = library.models.BPE(
            {text: number for number, text in enumerate(texts)},
            byte_pair_merges(ranks),
            unk_token=trainer.unk_piece,
            fuse_unk=True,
            byte_fallback=trainer.byte_fallback,
            ignore_merges=bool(whole),
        )
    tokenizer, normalizers = library.Tokenizer(pieces_model), library.normalizers
    steps: list[Any] = []
    if normalizer.precompiled_charsmap:
        steps.append(normalizers.Precompiled(normalizer.precompiled_charsmap))
    if normalizer.remove_extra_whitespaces:
        steps.append(normalizers.Replace(library.Regex(r"\A +| +\z"), ""))
        steps.append(normalizers.Replace(library.Regex(" {2,}"), " "))
    if normalizer.escape_whitespaces:
        steps.append(normalizers.Replace(" ", "▁"))
    if normalizer.add_dummy_prefix and legacy:  # which Metaspace does not add where there is one
        steps.append(normalizers.Replace(library.Regex(r"\A▁"), "▁▁"))
    tokenizer.normalizer = normalizers.Sequence(steps)
    cuts: list[Any] = []
    if normalizer.add_dummy_prefix:
        scheme = "always" if legacy else "first"
        cuts.append(library.pre_tokenizers.Metaspace("▁", prepend_scheme=scheme, split=False))
    if whole:
        pattern = "|".join(re.escape(text) for text in sorted(whole, key=len, reverse=True))
        cuts.append(library.pre_tokenizers.Split(library.Regex(pattern), behavior="isolated"))
    if cuts:
        tokenizer.pre_tokenizer = library.pre_tokenizers.Sequence(cuts)
    decoders = [library.decoders.Replace("▁", " ")]
    if trainer.byte_fallback:
        decoders.append(library.decoders.ByteFallback())
    if normalizer.add_dummy_prefix or trainer.byte_fallback:
        decoders.append(library.decoders.Fuse())
    if normalizer.add_dummy_prefix:
        decoders.append(library.decoders.Strip(content=" ", left=1))
    tokenizer.decoder = library.decoders.Sequence(decoders)
    return tokenizer
