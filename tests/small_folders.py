"""Small Hugging Face folders: the committed references with a tokenizer and other files beside."""

import json
import shutil
import string
from pathlib import Path

import numpy as np

REFERENCES = Path(__file__).parent / "interop" / "references"
SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
NAMES = {
    "pad_token": "[PAD]",
    "unk_token": "[UNK]",
    "cls_token": "[CLS]",
    "sep_token": "[SEP]",
    "mask_token": "[MASK]",
    "eos_token": "[SEP]",
}


def copied(case, folder, **changes):
    """Copies a reference, with changes of its config, and returns the folder."""
    folder.mkdir(parents=True)
    shutil.copy(REFERENCES / case / "model.safetensors", folder)
    config = json.loads((REFERENCES / case / "config.json").read_text()) | changes
    (folder / "config.json").write_text(json.dumps(config))
    return folder


def add_tokenizer(folder, *, ends=("[CLS]", "[SEP]"), words=()):
    """Writes a tokenizer.json of letters (57 ids) and words, and returns the folder."""
    import tokenizers

    letters = string.ascii_lowercase
    pieces = [*SPECIAL, *letters, *(f"##{letter}" for letter in letters), *words]
    vocab = {piece: index for index, piece in enumerate(pieces)}
    made = tokenizers.Tokenizer(tokenizers.models.WordPiece(vocab, unk_token="[UNK]"))
    made.normalizer = tokenizers.normalizers.BertNormalizer()
    made.pre_tokenizer = tokenizers.pre_tokenizers.BertPreTokenizer()
    made.decoder = tokenizers.decoders.WordPiece()
    made.add_special_tokens(list(SPECIAL))
    if ends:
        first, *last = ends
        made.post_processor = tokenizers.processors.TemplateProcessing(
            single=[first, "$A", *last],
            pair=[first, "$A", *last, "$B", *last],
            special_tokens=[(piece, vocab[piece]) for piece in ends],
        )
    folder.mkdir(parents=True, exist_ok=True)
    made.save(str(folder / "tokenizer.json"))
    content = NAMES | {"tokenizer_class": "PreTrainedTokenizerFast"}
    (folder / "tokenizer_config.json").write_text(json.dumps(content))
    return folder


def add_pooling(folder, pooling, *modules):
    """Writes sentence-transformers' files beside a model, and returns the folder."""
    kinds = ["Transformer", "Pooling", *modules]
    content = [
        {"idx": index, "path": f"{index}_{kind}" if index else "", "type": f"some.package.{kind}"}
        for index, kind in enumerate(kinds)
    ]
    (folder / "modules.json").write_text(json.dumps(content))
    (folder / "1_Pooling").mkdir()
    (folder / "1_Pooling/config.json").write_text(json.dumps(pooling))
    return folder


def leaves(tree):
    """Returns a tree's leaves by their paths, as bytes, with their shapes and dtypes."""
    import jax

    return {
        jax.tree_util.keystr(path, simple=True, separator="/"): (
            str(leaf.dtype),
            leaf.shape,
            np.asarray(leaf).tobytes(),
        )
        for path, leaf in jax.tree_util.tree_leaves_with_path(tree)
    }
