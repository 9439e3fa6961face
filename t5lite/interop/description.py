"""The description of a checkpoint."""

import contextlib
import dataclasses
import json
from types import MappingProxyType
from typing import Any

from t5lite.data import Vocabulary, load_vocabulary
from t5lite.data.input_format import InputFormat, load_input_format, save_input_format
from t5lite.data.labels import Labels, load_labels, save_labels
from t5lite.data.paths import as_path
from t5lite.errors import InputError
from t5lite.interop.embedding_defaults import EmbeddingDefaults, read_embedding, save_embedding
from t5lite.interop.generation_defaults import GenerationDefaults, read_defaults, save_defaults
from t5lite.interop.origin import FOLDER as ORIGIN
from t5lite.interop.origin import Origin, read_origin, save_origin
from t5lite.interop.prompts import read_prompts, save_prompts
from t5lite.models import ModelSpec, load_spec, save_spec
from t5lite.objectives import Prompts
from t5lite.training.tuning import FILE as TUNING
from t5lite.training.tuning import Everything, Tuning, read_tuning, write_tuning

MODEL, VOCABULARY = "model.json", "vocabulary"
# Names of the files and folders that `Description.write` writes.
FILES = (
    *(MODEL, VOCABULARY, "labels.json", "prompts.json", "inputs.json", "generation_config.json"),
    *("embedding.json", ORIGIN, TUNING),
)


@dataclasses.dataclass(frozen=True)
class Description:
    """Everything in a checkpoint's folder except the arrays.

    Attributes:
      spec: the architecture, `model.json`.
      vocabulary: of the token ids, `vocabulary/`; None for none.
      labels: names of the classes of a head by label feature, `labels.json`; {} for none.
      prompts: the prompt format of training, `prompts.json`; None if unknown.
      inputs: the format of texts from rows in training, `inputs.json`.
      generation: default generation options, `generation_config.json`; None for none.
      embedding: default embedding options, `embedding.json`; None for none.
      origin: the files of the Hugging Face folder that the model comes from, `origin/`.
      tuning: which parameters the run trains, `tuning.json`.
    """

    spec: ModelSpec
    vocabulary: Vocabulary | None = None
    labels: Labels = dataclasses.field(default_factory=lambda: MappingProxyType({}))
    prompts: Prompts | None = None
    inputs: InputFormat = InputFormat()
    generation: GenerationDefaults | None = None
    embedding: EmbeddingDefaults | None = None
    origin: Origin | None = None
    tuning: Tuning = Everything()

    def replace(self, **changes: Any) -> "Description":
        return dataclasses.replace(self, **changes)

    @classmethod
    def read(cls, folder: Any, *, vocabulary: Vocabulary | None = None) -> "Description":
        """Reads the description in a run's folder; files of newer versions may be missing.

        Args:
          folder: that holds `model.json`, local or remote.
          vocabulary: instead of the folder's own.

        Raises: InputError for a missing `model.json`, or a damaged file or newer format.
        """
        root = as_path(folder)
        spec = load_spec(str(root / MODEL))
        if vocabulary is None and (root / VOCABULARY).exists():
            vocabulary = load_vocabulary(str(root / VOCABULARY))
        return cls(
            spec,
            vocabulary,
            labels=load_labels(folder),
            prompts=read_prompts(folder, vocabulary, topology=spec.topology),
            inputs=load_input_format(folder),
            generation=None if spec.decoder is None else read_defaults(folder),
            embedding=read_embedding(folder),
            origin=read_origin(folder),
            tuning=read_tuning(str(root)),
        )

    def write(self, folder: Any) -> None:
        """Writes the files that `read` reads, `model.json` last.

        Unchanged files stay untouched, since other processes may be reading them; attributes that
        are None leave an existing file as it is.
        """
        root = as_path(folder)
        if self.vocabulary is not None:
            old = None
            with contextlib.suppress(InputError):  # none, or half-written by a run that was killed
                old = load_vocabulary(str(root / VOCABULARY))
            if old is None or old.fingerprint != self.vocabulary.fingerprint:
                self.vocabulary.save(str(root / VOCABULARY))
        save_labels(folder, self.labels)
        save_prompts(folder, self.prompts)
        save_input_format(folder, self.inputs)
        save_defaults(folder, self.generation)
        save_embedding(folder, self.embedding)
        save_origin(folder, self.origin)
        if read_tuning(str(root)) != self.tuning:
            write_tuning(str(root), self.tuning)
        path = root / MODEL
        if not path.exists() or json.loads(path.read_text()).get("model") != self.spec.to_json():
            save_spec(str(path), self.spec)
