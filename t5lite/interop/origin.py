"""The files of a Hugging Face model but for its tensors, to be written back unchanged.

A folder of t5lite has copies in `origin/`: fields that a spec does not express (positions of rotary
models, ids of special tokens, dropout of parts), the tokenizer's own files, chat templates.
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
# Dropped from configs: code that is not copied, and the storage of weights.
_DROPPED = ("auto_map", "quantization_config")
# Taken from the spec: the kind of the tensors, and the labels' names.
_FRESH = ("architectures", "model_type", "dtype", "torch_dtype", "id2label", "label2id")
_IDS = re.compile(r".*(token_ids?|_tokens|_ids)")
_WEIGHTS = re.compile(r"model(-\d{5}-of-\d{5})?\.safetensors(\.index\.json)?")


@dataclasses.dataclass(frozen=True)
class Origin:
    """Files of a Hugging Face folder, or copies in a folder of t5lite, except tensors."""

    folder: Any

    def config(self) -> dict[str, Any]:
        return json.loads((self.folder / CONFIG).read_bytes())

    def _existing(self, names: Iterable[str]) -> list[str]:
        return [name for name in names if (self.folder / name).exists()]

    def tokenizer_files(self) -> list[str]:
        templates = self.folder / _TEMPLATES
        inside = sorted(templates.iterdir()) if templates.exists() else []
        return [*self._existing(TOKENIZER), *(f"{_TEMPLATES}/{path.name}" for path in inside)]

    def sentence_files(self) -> list[str]:
        """Returns the names of sentence-transformers' files, except tensors."""
        names = self._existing(_SENTENCES)
        if MODULES not in names:
            return names
        try:
            modules = json.loads((self.folder / MODULES).read_bytes())
            folders = [PurePosixPath(module["path"]) for module in modules if module["path"]]
        except (ValueError, KeyError, TypeError):
            return []  # reported where the folder is opened
        inside = [str(folder / CONFIG) for folder in folders if ".." not in folder.parts]
        return names + self._existing(inside)

    def names(self) -> list[str]:
        config = self._existing((CONFIG, GENERATION))
        return [*config, *self.tokenizer_files(), *self.sentence_files()]

    def uncopied(self) -> list[str]:
        """Returns the names of other files and folders, tensors excepted."""
        copied = {name.partition("/")[0] for name in self.names()}
        return [
            name
            for name in sorted(path.name for path in self.folder.iterdir())
            if name not in copied and not name.startswith(".") and not _WEIGHTS.fullmatch(name)
        ]

    def copy(self, folder: Any, names: Iterable[str]) -> None:
        """Copies files, byte for byte."""
        for name in names:
            write_changed(as_path(folder) / name, (self.folder / name).read_bytes())


def save_origin(folder: Any, origin: Origin | None) -> None:
    if origin is not None:
        target = as_path(folder) / FOLDER
        if str(target) != str(origin.folder):
            origin.copy(target, origin.names())


def read_origin(folder: Any) -> Origin | None:
    path = as_path(folder) / FOLDER
    return Origin(path) if (path / CONFIG).exists() else None


def same_vocabulary(
    origin: Origin, vocabulary: Vocabulary | None, read: Callable[[Any], Vocabulary | None]
) -> bool:
    """Whether an origin's tokenizer, opened by `read`, is that of a vocabulary."""
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
    """Adds fields of a model's first config that its spec lacks to the config of its spec.

    Args:
      ours: the config of the spec.
      theirs: the config that the model was opened from; the model may have changed since.
      agrees: whether a config describes the model.
      ids: whether ids of tokens are still valid.

    Returns: the config, and the names of fields of theirs that it lacks.
    """
    fresh = [name for name in _FRESH if name in ours or name in ("dtype", "torch_dtype")]
    fresh += ["num_labels"] if "id2label" in ours else []
    lost = [
        name
        for name in theirs
        if name in _DROPPED or (not ids and name not in fresh and _IDS.fullmatch(name))
    ]
    usable = {name: value for name, value in theirs.items() if name not in (*fresh, *lost)}
    whole = {**usable, **{name: ours[name] for name in fresh if name in ours}}
    if ids and agrees(whole):  # to the letter
        return whole, lost
    content = dict(ours)
    for name, value in usable.items():
        if content.get(name, ...) != value and agrees({**content, name: value}):
            content[name] = value
    return content, lost + [name for name in usable if content.get(name, ...) != usable[name]]
