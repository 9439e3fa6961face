"""SentencePiece models as tokenizers of the `tokenizers` library, with SentencePiece's own ids.

Source: transformers 5, `SpmConverter.build_tokenizer_from_spm_proto`.
"""

import re
from collections.abc import Sequence
from typing import Any

from t5lite.data.vocabularies.tokenizer_files import import_tokenizers
from t5lite.interop.huggingface.sentencepiece_files import SentencePieceFile
from t5lite.interop.huggingface.tokenizer_building import (
    Draft,
    Made,
    Parts,
    byte_pair_merges,
    finish,
)
from t5lite.interop.huggingface.tokenizer_settings import Settings


def from_sentencepiece(read: SentencePieceFile, settings: Settings) -> Made:
    """Returns the tokenizer of a SentencePiece model that no class is named for.

    Args:
      read: the model.
      settings: what the folder says.
    """
    names = {number: token["content"] for number, token in settings.added.items()}
    kept = {piece.text for number, piece in enumerate(read.pieces) if number not in names}
    texts = [piece.text for piece in read.pieces]
    for number, text in names.items():
        if not read.is_unigram and number < len(texts) and text not in kept:
            texts[number] = text
    tokenizer = plain_sentencepiece(read, texts, legacy=settings.options.get("legacy", True))
    tokens = {
        name: text
        for name, number, text in (
            ("bos", read.bos_id, read.bos_piece),
            ("eos", read.eos_id, read.eos_piece),
            ("unk", read.unk_id, read.unk_piece),
        )
        if number >= 0
    }
    controls = [piece.text for piece in read.pieces if piece.is_control]
    additional = [
        {"content": text, "normalized": False, "special": True}
        for text in controls
        if text not in {piece.text for piece in read.pieces if piece.is_user_defined}
    ]
    if read.adds_prefix:
        added = {number: {**token, "normalized": False} for number, token in settings.added.items()}
        settings = settings._replace(added=added)
    return finish(Draft(tokenizer, tokens, additional), Parts({}), settings)


def plain_sentencepiece(
    read: SentencePieceFile, texts: Sequence[str] | None = None, *, legacy: bool = True
) -> Any:
    """Returns a tokenizer with the ids of SentencePiece, without special tokens or a template.

    Args:
      read: the model.
      texts: of its pieces; None for those that it has.
      legacy: whether each part of a text between special tokens begins with a space, as where
        SentencePiece is asked for each; otherwise the first alone.
    """
    library = import_tokenizers()
    texts = [piece.text for piece in read.pieces] if texts is None else texts
    whole = [text for text, piece in zip(texts, read.pieces, strict=True) if piece.is_user_defined]
    if read.is_unigram:
        scores = [(text, piece.score) for text, piece in zip(texts, read.pieces, strict=True)]
        model = library.models.Unigram(scores, read.unk_id, read.byte_fallback)
    else:
        ranks = {
            text: (-piece.score, number)
            for number, (text, piece) in enumerate(zip(texts, read.pieces, strict=True))
            if piece.is_normal
        }
        model = library.models.BPE(
            {text: number for number, text in enumerate(texts)},
            byte_pair_merges(ranks),
            unk_token=read.unk_piece,
            fuse_unk=True,
            byte_fallback=read.byte_fallback,
            ignore_merges=bool(whole),
        )
    tokenizer, normalizers = library.Tokenizer(model), library.normalizers
    steps: list[Any] = []
    if read.charsmap:
        steps.append(normalizers.Precompiled(read.charsmap))
    if read.removes_spaces:
        steps.append(normalizers.Replace(library.Regex(r"\A +| +\z"), ""))
        steps.append(normalizers.Replace(library.Regex(" {2,}"), " "))
    if read.escapes_spaces:
        steps.append(normalizers.Replace(" ", "▁"))
    if read.adds_prefix and legacy:  # which Metaspace does not add where there is one
        steps.append(normalizers.Replace(library.Regex(r"\A▁"), "▁▁"))
    tokenizer.normalizer = normalizers.Sequence(steps)
    cuts: list[Any] = []
    if read.adds_prefix:
        scheme = "always" if legacy else "first"
        cuts.append(library.pre_tokenizers.Metaspace("▁", prepend_scheme=scheme, split=False))
    if whole:
        pattern = "|".join(re.escape(text) for text in sorted(whole, key=len, reverse=True))
        cuts.append(library.pre_tokenizers.Split(library.Regex(pattern), behavior="isolated"))
    if cuts:
        tokenizer.pre_tokenizer = library.pre_tokenizers.Sequence(cuts)
    decoders = [library.decoders.Replace("▁", " ")]
    if read.byte_fallback:
        decoders.append(library.decoders.ByteFallback())
    if read.adds_prefix or read.byte_fallback:
        decoders.append(library.decoders.Fuse())
    if read.adds_prefix:
        decoders.append(library.decoders.Strip(content=" ", left=1))
    tokenizer.decoder = library.decoders.Sequence(decoders)
    return tokenizer
