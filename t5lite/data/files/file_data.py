"""Data in files of one's own: columns to features, split by hash or by file, and shown by class."""

import dataclasses
import functools
import hashlib
import os
from collections.abc import Mapping, Sequence
from typing import Any, Self

from t5lite.data.dataset import Dataset
from t5lite.data.files.columns import Answer, Class, Column, SplitKey, Tags, Text, as_column
from t5lite.data.files.index import SPLITS, Hashes, Index, Table, hash_of, scan
from t5lite.data.files.index_cache import cached_index
from t5lite.data.files.readers import (
    DataFile,
    Row,
    file_id,
    find_files,
    format_of,
    status_of,
)
from t5lite.data.files.source import FileSource, Shots, most_shots
from t5lite.data.files.templates import SHOTS, Template
from t5lite.data.input_format import InputFormat
from t5lite.data.labels import Labels
from t5lite.data.sources import Component, NoSplit
from t5lite.data.vocabularies.base import Vocabulary
from t5lite.data.vocabularies.opening import open_vocabulary
from t5lite.errors import InputError, unknown
from t5lite.rows import HostHalf

_SHOWN = 5  # classes
_CHECKED = 1000  # rows whose answers are looked for
_MEANT_GB, _MOST_GB = 10, 100  # of files
_SHARDS = "write the rows once with t5lite.data.write_shards and train on them with ShardedData"


@dataclasses.dataclass(frozen=True, eq=False)
class FileData(Dataset):
    """CSV, TSV, JSON-lines, Parquet and text files, columns made into features.

    Files are read once at the start, to find and check their rows, and then row by row. Every
    epoch has all training rows in a random order of its own, so that files sorted by class do no
    harm, and the files' own does not matter. A job stops at a file that has changed, and does not
    resume on it.

    Rows are found at some 10 MB a second, and kept in the cache (48 bytes a row) with the sizes and
    times of the files: later starts read none of it. It is meant for up to 10 GB, on a disk where
    single rows are read fast; more than 100 GB are refused. `write_shards` and `ShardedData` are
    for more, and for object stores. A field of CSV has at most 16,777,216 characters.

    A value is missing where a JSON or Parquet row has none, null or NaN, and a row that lacks one
    that a feature needs is a broken line. An empty field of CSV is an empty text to a template, and
    missing to `Class`, `Number` and `split_by`. "NA", "null" and the like are text.

    Attributes:
      files: paths or patterns (`data/*.csv`, `**/*.txt`), or names of TensorFlow Datasets
        (`tfds:glue/sst2`, `tfds:imdb_reviews#test`; see `tfds_files.tfds_file`). `.gz`, `.bz2`,
        `.xz`, Parquet files and JSON arrays are unpacked into the cache once. A text file has the
        column `text`.
      features: for each feature a template of columns (`"question: {question}"`), or a `Class`,
        `Number`, `Tags` or `Answer`. `Tags` and `Answer` also make `labels`.
      vocab: a vocabulary, what returns one, or the path of a saved vocabulary, a SentencePiece
        model, a `tokenizer.json` or a `vocab.txt`.
      validation_files: likewise `files`; None: `validation_share` of the rows of `files`.
      validation_share: in `[0, 1)`. A row's side depends on its content alone.
      split_by: the columns that decide the side, so that rows that share them stay together; None:
        all.
      format: `csv`, `tsv`, `jsonl`, `parquet`, `text` (a row a line) or `document` (a row a file);
        None: by the file's ending.
      column_names: of CSV and TSV files without a first line of names.
      quotes: whether CSV and TSV fields may be in double quotes; False: quotes are text.
      skip_spaces: whether spaces at the start of CSV and TSV fields are left out, so that
        `a, "b, c"` has two.
      bad_lines: "stop" at broken lines, or "skip" and count them.
      shots: how many other training rows, told by `shot`, fill a template's slot `{shots}`; none
        shares the row's `split_by`, or all that features read.
      shot: the template of one of them.
    """

    files: str | Sequence[str]
    _: dataclasses.KW_ONLY
    features: Mapping[str, Any]
    vocab: Any
    validation_files: str | Sequence[str] | None = None
    validation_share: float = 0.05
    split_by: str | Sequence[str] | None = None
    format: str | None = None
    column_names: Sequence[str] | None = None
    quotes: bool = True
    skip_spaces: bool = False
    bad_lines: str = "stop"
    shots: int = 0
    shot: str | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        share, shots = self.validation_share, self.shots
        if isinstance(share, bool) or not isinstance(share, int | float) or not 0 <= share < 1:
            raise InputError(
                f"validation_share = {share!r}: must be at least 0 and less than 1",
                field="validation_share",
            )
        if self.bad_lines not in ("stop", "skip"):
            raise unknown("bad_lines", self.bad_lines, ("stop", "skip"))
        if isinstance(shots, bool) or not isinstance(shots, int) or shots < 0:
            raise InputError(
                f"shots = {shots!r}: must be a whole number of at least 0", field="shots"
            )
        if bool(self.shots) != bool(self.shot):
            raise InputError(
                f"shots = {self.shots} and shot = {self.shot!r}: set both (how many examples, and "
                "the template of one), or neither",
                field="shots",
            )
        if self.split_by is not None and not self.split_by:
            raise InputError(
                f"split_by = {self.split_by!r}: name a column, or set it to None", field="split_by"
            )
        if not self.features:
            raise InputError(
                "features is empty: name at least one, such as {'inputs': '{text}'}",
                field="features",
            )

    def vocabulary(self) -> Vocabulary:
        """Returns the vocabulary that texts are encoded with.

        Raises:
          InputError: if `vocab` names none.
        """
        return self._vocabulary

    def describe(self) -> str:
        """Returns the files, the rows of each split, the classes, and what was left out."""
        index, names = self._index, self._paths[0]
        more = f" and {len(names) - 1} more files" if len(names) > 1 else ""
        train, validation = (len(index.tables[split]) for split in SPLITS)
        how = "by hash" if self.validation_files is None else "from validation_files"
        lines = [f"{names[0]}{more}: {train:,} rows to train on, {validation:,} to test ({how})"]
        if index.num_shared:
            fix = (
                f"but for columns that no feature reads; set split_by = {self._columns_read}"
                if self.validation_files is None
                else "as far as features read them"
            )
            lines.append(f"{index.num_shared:,} of the rows to test are also trained on, {fix}")
        for feature, counts in self.class_counts("train").items():
            common = sorted(counts.items(), key=lambda item: -item[1])[:_SHOWN]
            listed = ", ".join(f"{name} {count:,}" for name, count in common)
            tail = ", …" if len(counts) > _SHOWN else ""
            lines.append(f"{feature}: {len(counts)} classes: {listed}{tail}")
        if cut := self._num_cut_answers():
            lines.append(
                f"{cut:,} answers of the first {_CHECKED:,} rows are past the length: they "
                "train as no answer"
            )
        if index.num_broken:
            lines.append(f"skipped: {index.broken()}")
        if (size := self._gigabytes()) > _MEANT_GB:
            lines.append(
                f"{size:,.0f} GB of files, and FileData is meant for {_MEANT_GB}: {_SHARDS}"
            )
        if self._repeated:
            name, first = next(iter(self._repeated.items()))
            more = f" and {len(self._repeated) - 1:,} more" if len(self._repeated) > 1 else ""
            lines.append(f"named twice, read once: {name} (as {first}){more}")
        return "\n".join(lines)

    def num_examples(self, split: str) -> int | None:
        """Returns how many rows a split has."""
        return len(self._table(split))

    def class_counts(self, split: str) -> dict[str, dict[str, int]]:
        """Returns how often each class of a label feature occurs, in the order of the classes."""
        self._table(split)
        return {
            column.features(feature)[-1]: {
                name: self._index.classes[split][feature].get(name, (0, ""))[0]
                for name in column.classes
            }
            for feature, column in self._columns.items()
            if isinstance(column, Class | Tags) and column.classes is not None
        }

    def labels(self) -> dict[str, list[str]]:
        """Returns the names of each label feature's labels, in the order of their ids."""
        named = {
            column.features(name)[-1]: column.names() for name, column in self._columns.items()
        }
        return {feature: list(names) for feature, names in named.items() if names}

    def input_format(self) -> InputFormat:
        """Returns the template of `inputs`, and their length."""
        value = self.features.get("inputs")
        column = None if value is None else as_column("inputs", value)
        return InputFormat.of(column, length=self.lengths.get("inputs"))

    def with_labels(self, labels: Labels) -> Self:
        """Returns the same data with its labels numbered as a model's are; others are refused."""
        columns = {name: as_column(name, value) for name, value in self.features.items()}
        for name, column in columns.items():
            if known := labels.get(column.features(name)[-1]):
                columns[name] = column.with_names(known)
        return dataclasses.replace(self, features=columns)

    @functools.cached_property
    def _vocabulary(self) -> Vocabulary:
        vocab = self.vocab
        if callable(vocab):
            vocab = vocab()
        if isinstance(vocab, str | os.PathLike):
            vocab = open_vocabulary(vocab)
        if not isinstance(vocab, Vocabulary):
            raise InputError(
                f"vocab = {vocab!r}: must be a vocabulary, what returns one, or the path of one",
                field="vocab",
            )
        return vocab

    @functools.cached_property
    def _repeated(self) -> dict[str, str]:
        """Other names of files that are read once, under their first name; see `_paths`."""
        return {}

    @functools.cached_property
    def _paths(self) -> tuple[list[str], list[str]]:
        """The files to train on (and to split), and those to validate on."""
        given, repeated = self.validation_files, self._repeated
        train = find_files(self.files, field="FileData.files", repeated=repeated)
        validation = []
        if given is not None:
            field = "FileData.validation_files"
            validation = find_files(given, field=field, repeated=repeated)
        both = {*map(file_id, train)} & {*map(file_id, validation)}
        for path in validation:
            if file_id(path) in both:
                raise InputError(
                    f"validation_files has {path!r}, which is also among FileData.files: it would "
                    "test on what was trained on; leave it out of one of them"
                )
        return train, validation

    @functools.cached_property
    def _index(self) -> Index:
        """The rows of all files, found and checked; those to train on in the order of hashes."""
        train, validation = self._paths
        if (size := self._gigabytes()) > _MOST_GB:
            raise InputError(
                f"files hold {size:,.0f} GB, and FileData would take days to find its rows in more "
                f"than {_MOST_GB}: {_SHARDS}",
                field="FileData.files",
            )
        files = [
            {
                "path": path,
                "format": format_of(path, self.format),
                "column_names": self.column_names,
                "quotes": self.quotes,
                "skip_spaces": self.skip_spaces,
            }
            for path in (*train, *validation)
        ]
        columns = {name: as_column(name, value) for name, value in self.features.items()}
        _check_features(columns)
        self._check_shots(columns)
        if self.shot is not None:
            columns["shot"] = Text(Template(self.shot))
        if self._split_by is not None:
            columns["split_by"] = SplitKey(self._split_by)

        def side(number: int, hashes: Hashes) -> str:
            if self.validation_files is not None:
                return "train" if number < len(train) else "validation"
            return "validation" if hashes.group / 2**64 < self.validation_share else "train"

        def scanned(opened: Sequence[DataFile]) -> Index:
            extra = [SHOTS] if self.shots else []
            return scan(opened, columns, side, hashes=self._hashes_of, extra=extra, by_hash=True)

        splits = [len(train), len(validation), self.validation_share, self._split_by]
        # What a column of a user's own does, only its code says.
        known = all(type(column).__module__ == Column.__module__ for column in columns.values())
        recipe = repr([columns, splits, self.shots]) if known else None
        index = cached_index(files, recipe, scanned)
        if index.num_broken and self.bad_lines == "stop":
            raise InputError(f"{index.broken()}\nfix them, or set FileData.bad_lines = 'skip'")
        if self.shots and self.shots > (most := most_shots(**index.tables)):
            raise InputError(
                f"shots = {self.shots}: must be at most {most}, the number of different training "
                "rows that may stand beside any row: not of its own split_by",
                field="shots",
            )
        return index

    def _gigabytes(self) -> float:
        return sum(status_of(path)[0] for paths in self._paths for path in paths) / 1e9

    @functools.cached_property
    def _columns_read(self) -> list[str]:
        """The columns that features read, sorted."""
        columns = (as_column(name, value) for name, value in self.features.items())
        return sorted({read for column in columns for read in column.columns_read()} - {SHOTS})

    def _hashes_of(self, row: Row) -> Hashes:
        whole, read, split_by = hash_of(row), self._columns_read, self._split_by
        content = whole if row.keys() == set(read) else hash_of(row, read)
        return Hashes(whole, content, whole if split_by is None else hash_of(row, split_by))

    @functools.cached_property
    def _columns(self) -> dict[str, Column]:
        """What makes each feature, its classes known."""
        columns = {}
        for feature, value in self.features.items():
            found = {split: self._index.classes[split][feature] for split in SPLITS}
            given = as_column(feature, value)
            columns[feature] = column = given.with_classes(found["train"])
            for split in SPLITS:
                known = getattr(column, "classes", None) or ()
                for name, (count, where) in found[split].items():
                    if name not in known:
                        why = "not among the known" if given.names() else "in none of train"
                        raise InputError(
                            f"{where}: {unknown(f'class of {feature!r}', name, known)}\n"
                            f"it is in {count:,} rows of {split} and {why}"
                        )
        return columns

    @functools.cached_property
    def _digest(self) -> str:
        """Hex digest of everything that decides the examples: content and settings."""
        settings = [
            [self._index.digest, self._vocabulary.fingerprint],
            {name: repr(column) for name, column in self._columns.items()},
            [self.validation_files is None, self.validation_share, self._split_by],
            [self.bad_lines, self.shots, self.shot],
        ]
        return hashlib.sha256(repr(settings).encode()).hexdigest()[:16]

    @property
    def _split_by(self) -> Sequence[str] | None:
        return [self.split_by] if isinstance(self.split_by, str) else self.split_by

    def _table(self, split: str) -> Table:
        """Returns the rows of a split.

        Raises:
          InputError: if there is no such split, or it is empty.
        """
        if split not in SPLITS:
            raise unknown("split of FileData", split, SPLITS)
        table = self._index.tables[split]
        if not len(table):
            count = len(self._index.tables["train"])
            fix = (
                f"validation_share {self.validation_share} of {count:,} rows left none; raise it, "
                "or name validation_files"
                if split == "validation" and self.validation_files is None
                else f"the files hold no rows for it: {', '.join(self._paths[split != 'train'])}"
            )
            raise NoSplit(f"FileData has no rows in split {split!r}: {fix}")
        return table

    def components(self, split: str, objective: HostHalf) -> list[Component]:
        table, columns = self._table(split), self._columns
        made = {name for feature in columns for name in columns[feature].features(feature)}
        wanted = [name for name in objective.features if name in made]
        source = self._source(split, table, wanted)
        missing = [name for name in objective.features if name not in made]
        # An objective may also make what it names; one example tells, before any batch does.
        if missing and not (wanted and self.can_prepare(source, objective)):
            raise InputError(
                f"FileData.features lacks what {type(objective).__name__} reads: "
                f"{unknown('feature', missing[0], made)}"
            )
        return [Component(source, 1.0, objective)]

    def _source(self, split: str, table: Table, wanted: Sequence[str]) -> "FileSource":
        shots = None
        if self.shots and self.shot is not None:
            train = self._index.tables["train"]
            template = Template(self.shot)
            shots = Shots(train, count=self.shots, template=template, hashes=self._hashes_of)
        columns = {
            feature: column
            for feature, column in self._columns.items()
            if set(column.features(feature)) & set(wanted)
        }
        return FileSource(
            f"{os.path.basename(self._paths[0][0])}:{split}:{self._digest}",
            table,
            columns,
            wanted=wanted,
            vocabulary=self._vocabulary,
            shots=shots,
        )

    def _check_shots(self, columns: Mapping[str, Column]) -> None:
        """Refuses shots that no template takes."""
        taken = any(
            isinstance(column, Text) and SHOTS in column.template.slots
            for column in columns.values()
        )
        if self.shots and not taken:
            raise InputError(
                f"shots = {self.shots}: no template has the slot {{{SHOTS}}}", field="shots"
            )
        if self.shot is not None and SHOTS in Template(self.shot).slots:
            raise InputError(
                f"shot = {self.shot!r}: must not have the slot {{{SHOTS}}} itself", field="shot"
            )

    def _num_cut_answers(self) -> int:
        """Returns how many of the first training rows have an answer past the length."""
        table = self._index.tables["train"]
        rows = table.read(range(min(_CHECKED, len(table))))
        count = 0
        for feature, column in self._columns.items():
            if isinstance(column, Answer) and feature in self.lengths:
                room = self.lengths[feature] - self._vocabulary.frame.size
                made = column.arrays(feature, rows, vocabulary=self._vocabulary)
                count += sum(int(last) >= room for _, last in made["labels"])
        return count


def _check_features(columns: Mapping[str, Column]) -> None:
    """Refuses features that are made twice."""
    made: dict[str, str] = {}
    for feature, column in columns.items():
        for name in column.features(feature):
            if name in made:
                raise InputError(
                    f"features: {made[name]!r} and {feature!r} both make {name!r}; remove one"
                )
            made[name] = feature
