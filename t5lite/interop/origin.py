"""The files beside a Hugging Face model's tensors, kept to be written back unchanged.

A folder of t5lite has copies of them in `origin/`: what a spec does not express (positions of
rotary models, ids of special tokens, dropout of parts), the tokenizer's own files, chat templates.
"""

import dataclasses
import json
import re
from collections.abc import Callable, Iterable, Mapping
from pathlib import PurePosixPath
from typing import Any

from t5lite.data import Vocabulary
from t5lite.data.paths import as_path, write_changed
from t5lite.errors import InputError

FOLDER = "origin"
CONFIG, GENERATION, MODULES = "config.json", "generation_config.json", "modules.json"
TOKENIZER = (
    *("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json"),
    *("vocab.json", "merges.txt", "vocab.txt", "spiece.model", "tokenizer.model"),
    *("sentencepiece.bpe.model", "sentencepiece.model", "source.spm", "target.spm"),
    *("target_vocab.json", "chat_template.jinja", "chat_template.json"),
)
_TEMPLATES = "additional_chat_templates"
_SENTENCES = (
    MODULES,
    "sentence_bert_config.json",
    "sentence_roberta_config.json",
    "config_sentence_transformers.json",
)
# What a config must not keep: names of code that is not copied, and of how weights were stored.
_DROPPED = ("auto_map", "quantization_config")
# Written anew: what the tensors are, and what the labels are called.
_FRESH = ("architectures", "model_type", "dtype", "torch_dtype", "id2label", "label2id")
_IDS = re.compile(r".*(token_ids?|_tokens|_ids)")
_WEIGHTS = re.compile(r"model(-\d{5}-of-\d{5})?\.safetensors(\.index\.json)?")


@dataclasses.dataclass(frozen=True)
class Origin:
    """The files of a Hugging Face folder but for its tensors.

    Args:
      folder: local or remote: a Hugging Face folder, or the copies in a folder of t5lite.
    """

    folder: Any

    def config(self) -> dict[str, Any]:
        """Returns the content of `config.json`."""
        return json.loads((self.folder / CONFIG).read_bytes())

    def tokenizer_files(self) -> list[str]:
        """Returns the names of the tokenizer's files that are there."""
        names = [name for name in TOKENIZER if (self.folder / name).exists()]
        templates = self.folder / _TEMPLATES
        if templates.exists():
            names += sorted(f"{_TEMPLATES}/{path.name}" for path in templates.iterdir())
        return names

    def sentence_files(self) -> list[str]:
        """Returns the names of sentence-transformers' files that are there, but for tensors."""
        names = [name for name in _SENTENCES if (self.folder / name).exists()]
        if MODULES in names:
            try:
                modules = json.loads((self.folder / MODULES).read_bytes())
                folders = [PurePosixPath(module["path"]) for module in modules if module["path"]]
            except (ValueError, KeyError, TypeError):
                return []  # reported where the folder is opened
            inside = [str(folder / CONFIG) for folder in folders if ".." not in folder.parts]
            names += [name for name in inside if (self.folder / name).exists()]
        return names

    def names(self) -> list[str]:
        """Returns the names of all files that are kept."""
        own = [name for name in (CONFIG, GENERATION) if (self.folder / name).exists()]
        return [*own, *self.tokenizer_files(), *self.sentence_files()]

    def others(self) -> list[str]:
        """Returns the names of other files and folders, tensors excepted."""
        kept = {name.partition("/")[0] for name in self.names()}
        names = sorted(path.name for path in self.folder.iterdir())
        return [
            name
            for name in names
            if name not in kept and not name.startswith(".") and not _WEIGHTS.fullmatch(name)
        ]

    def copy(self, folder: Any, names: Iterable[str]) -> None:
        """Copies files, byte for byte."""
        for name in names:
            write_changed(as_path(folder) / name, (self.folder / name).read_bytes())


def keep(folder: Any, origin: Origin | None) -> None:
    """Copies the files of an origin into a folder of t5lite; None: nothing."""
    if origin is not None:
        target = as_path(folder) / FOLDER
        if str(target) != str(origin.folder):
            origin.copy(target, origin.names())


def kept(folder: Any) -> Origin | None:
    """Returns the origin of which a folder of t5lite has the files; None if it has none."""
    path = as_path(folder) / FOLDER
    return Origin(path) if (path / CONFIG).exists() else None


def same_vocabulary(
    origin: Origin, vocabulary: Vocabulary | None, read: Callable[[Any], Vocabulary | None]
) -> bool:
    """Whether an origin's tokenizer files are those of a vocabulary.

    Args:
      origin: whose files they are.
      vocabulary: of a model.
      read: opens the tokenizer of a folder.
    """
    try:
        theirs = read(origin.folder)
    except (InputError, ModuleNotFoundError):
        return False
    if theirs is None or vocabulary is None:
        return theirs is vocabulary
    return theirs.fingerprint == vocabulary.fingerprint


def merged(
    ours: Mapping[str, Any],
    theirs: Mapping[str, Any],
    *,
    agrees: Callable[[Mapping[str, Any]], bool],
    ids: bool,
) -> tuple[dict[str, Any], list[str]]:
    """Adds what a model's first config says, and its spec does not, to the config of its spec.

    Args:
      ours: the config of the spec.
      theirs: the config that the model was opened from; the model may have changed since.
      agrees: whether a config describes the model.
      ids: whether ids of tokens still mean the same.

    Returns:
      The config, and the names of fields of theirs that it does not keep.
    """
    fresh = [name for name in _FRESH if name in ours or name in ("dtype", "torch_dtype")]
    fresh += ["num_labels"] if "id2label" in ours else []
    named = {name: ours[name] for name in fresh if name in ours}
    lost = [name for name in _DROPPED if name in theirs]
    usable = {name: value for name, value in theirs.items() if name not in (*fresh, *lost)}
    if not ids:
        lost += [name for name in usable if _IDS.fullmatch(name)]
        usable = {name: value for name, value in usable.items() if not _IDS.fullmatch(name)}
    whole = {**usable, **named}
    if ids and agrees(whole):  # to the letter
        return whole, lost
    content = dict(ours)
    for name, value in usable.items():
        if content.get(name, ...) != value and agrees({**content, name: value}):
            content[name] = value
    return content, lost + [name for name in usable if content.get(name, ...) != usable[name]]
