"""Data in files: columns to features, split by hash or by file, classes counted."""

import dataclasses
import functools
import hashlib
import os
from collections.abc import Mapping, Sequence
from typing import Any, Self

from t5lite.data.dataset import Dataset
from t5lite.data.files.columns import Answer, Class, Column, SplitKey, Tags, Text, as_column
from t5lite.data.files.index import SPLITS, Hashes, Index, Table, cached_index, hash_of, scan
from t5lite.data.files.opening import file_id, find_files, format_of, status_of
from t5lite.data.files.readers import DataFile, Row
from t5lite.data.files.source import FileSource, Shots, most_shots
from t5lite.data.files.templates import SHOTS, Template
from t5lite.data.input_format import InputFormat
from t5lite.data.labels import Labels
from t5lite.data.sources import Component, NoSplit
from t5lite.data.vocabularies.base import Vocabulary
from t5lite.data.vocabularies.opening import open_vocabulary
from t5lite.errors import InputError, require_integer, unknown
from t5lite.rows import HostHalf

_SHOWN = 5  # classes
_CHECKED = 1000  # rows whose answers are compared with the length
_MEANT_GB, _MOST_GB = 10, 100  # of files
_SHARDS = "write the rows once with t5lite.data.write_shards and train on them with ShardedData"


@dataclasses.dataclass(frozen=True, eq=False)
class FileData(Dataset):
    """CSV, TSV, JSON-lines, Parquet and text files, columns made into features.

    Files are scanned once at the start, to index and check their rows, and then read row by row.
    Every epoch has all training rows in a new random order, which does not depend on the order in
    the files. A job stops at a file that has changed, and does not resume on it.

    Scanning takes a second for some 10 MB; the index is cached (48 bytes a row) with the files'
    sizes and times, so that later starts scan nothing. FileData is meant for up to 10 GB on a disk
    with fast random access, and refuses more than 100 GB: `write_shards` and `ShardedData` are for
    more, and for object stores. A field of CSV has at most 16,777,216 characters.

    A value is missing where a JSON or Parquet row has none, null or NaN; a row without a value that
    a feature needs is broken. An empty field of CSV is an empty text to a template, and missing to
    `Class`, `Number` and `split_by`. "NA", "null" and the like are text.

    Attributes:
      files: paths or patterns (`data/*.csv`, `**/*.txt`), or names of TensorFlow Datasets
        (`tfds:glue/sst2`, `tfds:imdb_reviews#test`; see `tfds_files.tfds_file`). `.gz`, `.bz2`,
        `.xz`, Parquet files and JSON arrays are unpacked into the cache once. A text file has the
        column `text`.
      features: for each feature a template of columns (`"question: {question}"`), or a `Class`,
        `Number`, `Tags` or `Answer`. `Tags` and `Answer` also make `labels`.
      vocab: a vocabulary, a function that returns one, or the path of a saved vocabulary, a
        SentencePiece model, a `tokenizer.json` or a `vocab.txt`.
      validation_files: as `files`; None: `validation_share` of the rows of `files`.
      validation_share: in `[0, 1)`. A row's split depends on its content alone.
      split_by: the columns that decide the split, so that rows with equal values stay together;
        None: all.
      format: `csv`, `tsv`, `jsonl`, `parquet`, `text` (a row a line) or `document` (a row a file);
        None: by the file's ending.
      column_names: of CSV and TSV files without a first line of names.
      quotes: whether CSV and TSV fields may be in double quotes; False: quotes are text.
      skip_spaces: whether spaces at the start of CSV and TSV fields are dropped, so that
        `a, "b, c"` has two.
      bad_lines: "stop" at broken lines, or "skip" and count them.
      shots: number of other training rows, rendered by `shot`, in a template's slot `{shots}`; none
        shares the row's `split_by`, or all columns that features read.
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
        share = self.validation_share
        is_share = isinstance(share, int | float) and not isinstance(share, bool) and 0 <= share < 1
        both = "set both (how many examples, and the template of one), or neither"
        for field, is_good, fix in (
            ("validation_share", is_share, "must be at least 0 and less than 1"),
            ("shots", bool(self.shots) == bool(self.shot), f"shot is {self.shot!r}: {both}"),
            (
                "split_by",
                self.split_by is None or self.split_by,
                "name a column, or set it to None",
            ),
            ("features", self.features, "name at least one, such as {'inputs': '{text}'}"),
        ):
            if not is_good:
                raise InputError(f"{field} = {getattr(self, field)!r}: {fix}", field=field)
        require_integer("shots", self.shots, least=0)
        if self.bad_lines not in ("stop", "skip"):
            raise unknown("bad_lines", self.bad_lines, ("stop", "skip"), field="bad_lines")

    def vocabulary(self) -> Vocabulary:
        return self._vocabulary

    def describe(self) -> str:
        index, paths = self._index, self._paths[0]
        split_by_hash = self.validation_files is None
        train, validation = (len(index.tables[split]) for split in SPLITS)
        how = "by hash" if split_by_hash else "from validation_files"
        rows = f"{train:,} rows to train on, {validation:,} to test ({how})"
        lines = [f"{paths[0]}{_and_more(paths, ' files')}: {rows}"]
        if index.num_shared:
            fix = (
                f"but for columns that no feature reads; set split_by = {self._columns_read}"
                if split_by_hash
                else "as far as features read them"
            )
            lines.append(f"{index.num_shared:,} of the rows to test are also trained on, {fix}")
        for feature, counts in self.class_counts("train").items():
            common = sorted(counts.items(), key=lambda item: -item[1])[:_SHOWN]
            listed = ", ".join(f"{name} {count:,}" for name, count in common)
            tail = ", …" if len(counts) > _SHOWN else ""
            lines.append(f"{feature}: {len(counts)} classes: {listed}{tail}")
        if cut := self._num_cut_answers():
            share = f"{cut:,} answers of the first {_CHECKED:,} rows"
            lines.append(f"{share} are past the length: they train as no answer")
        if index.num_broken:
            lines.append(f"skipped: {index.broken()}")
        if (size := self._gigabytes()) > _MEANT_GB:
            lines.append(f"{size:,.0f} GB, and FileData is meant for {_MEANT_GB}: {_SHARDS}")
        if self._repeated:
            name, first = next(iter(self._repeated.items()))
            lines.append(f"named twice, read once: {name} (as {first}){_and_more(self._repeated)}")
        return "\n".join(lines)

    def num_examples(self, split: str) -> int | None:
        return len(self._table(split))

    def class_counts(self, split: str) -> dict[str, dict[str, int]]:
        self._table(split)
        return {
            column.features(feature)[-1]: {
                name: self._index.classes[split][feature].get(name, (0, ""))[0]
                for name in column.names()
            }
            for feature, column in self._columns.items()
            if isinstance(column, Class | Tags)
        }

    def labels(self) -> dict[str, list[str]]:
        named = {
            column.features(name)[-1]: column.names() for name, column in self._columns.items()
        }
        return {feature: list(names) for feature, names in named.items() if names}

    def input_format(self) -> InputFormat:
        column = self._listed.get("inputs")
        return InputFormat.of(column, length=self.lengths.get("inputs"))

    def with_labels(self, labels: Labels) -> Self:
        columns = {
            name: column.with_names(labels[label]) if labels.get(label) else column
            for name, column in self._listed.items()
            for label in column.features(name)[-1:]
        }
        return dataclasses.replace(self, features=columns)

    @functools.cached_property
    def _vocabulary(self) -> Vocabulary:
        vocab = self.vocab() if callable(self.vocab) else self.vocab
        if isinstance(vocab, str | os.PathLike):
            vocab = open_vocabulary(vocab)
        if not isinstance(vocab, Vocabulary):
            raise InputError(
                f"vocab = {vocab!r}: must be a vocabulary, a function that returns one, or the "
                "path of one",
                field="vocab",
            )
        return vocab

    @functools.cached_property
    def _listed(self) -> dict[str, Column]:
        """The columns as listed, without the classes of the training rows."""
        return {name: as_column(name, value) for name, value in self.features.items()}

    @functools.cached_property
    def _repeated(self) -> dict[str, str]:
        """Omitted names of files, each with the name that it repeats; filled by `_paths`."""
        return {}

    @functools.cached_property
    def _paths(self) -> tuple[list[str], list[str]]:
        """The training files (to be split), and the validation files."""
        fields = {"FileData.files": self.files, "FileData.validation_files": self.validation_files}
        train, validation = (
            [] if files is None else find_files(files, field=field, repeated=self._repeated)
            for field, files in fields.items()
        )
        trained = {*map(file_id, train)}
        for path in validation:
            if file_id(path) in trained:
                raise InputError(
                    f"validation_files has {path!r}, which is also among FileData.files: it would "
                    "test on what was trained on; leave it out of one of them",
                    field="validation_files",
                )
        return train, validation

    @functools.cached_property
    def _index(self) -> Index:
        """The rows of all files, checked; training rows sorted by hash."""
        train, validation = self._paths
        if (size := self._gigabytes()) > _MOST_GB:
            raise InputError(
                f"files hold {size:,.0f} GB, and FileData would take days to index more than "
                f"{_MOST_GB}: {_SHARDS}",
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
        columns = dict(self._listed)
        _check_columns(columns, self.shots, self.shot)
        if self.shot is not None:
            columns["shot"] = Text(Template(self.shot))
        if self._split_by is not None:
            columns["split_by"] = SplitKey(self._split_by)

        def split_of(number: int, hashes: Hashes) -> str:
            if self.validation_files is not None:
                return "train" if number < len(train) else "validation"
            return "validation" if hashes.group / 2**64 < self.validation_share else "train"

        def scanned(opened: Sequence[DataFile]) -> Index:
            extra = [SHOTS] if self.shots else []
            return scan(
                opened, columns, split_of, hashes=self._hashes_of, extra=extra, by_hash=True
            )

        splits = [len(train), len(validation), self.validation_share, self._split_by]
        # The repr of a user's own column does not say what its code does.
        own = any(type(column).__module__ != Column.__module__ for column in columns.values())
        recipe = None if own else repr([columns, splits, self.shots])
        index = cached_index(files, recipe, scanned)
        if index.num_broken and self.bad_lines == "stop":
            message = f"{index.broken()}\nfix them, or set FileData.bad_lines = 'skip'"
            raise InputError(message, field="FileData.bad_lines")
        if self.shots and self.shots > (most := most_shots(**index.tables)):
            raise InputError(
                f"shots = {self.shots}: must be at most {most}, the number of different training "
                "rows outside the largest group of split_by",
                field="shots",
            )
        return index

    def _gigabytes(self) -> float:
        return sum(status_of(path)[0] for paths in self._paths for path in paths) / 1e9

    @functools.cached_property
    def _columns_read(self) -> list[str]:
        names = {name for column in self._listed.values() for name in column.columns_read()}
        return sorted(names - {SHOTS})

    def _hashes_of(self, row: Row) -> Hashes:
        whole, read, split_by = hash_of(row), self._columns_read, self._split_by
        content = whole if row.keys() == set(read) else hash_of(row, read)
        return Hashes(whole, content, whole if split_by is None else hash_of(row, split_by))

    @functools.cached_property
    def _columns(self) -> dict[str, Column]:
        columns = {}
        for feature, listed in self._listed.items():
            classes = {split: self._index.classes[split][feature] for split in SPLITS}
            columns[feature] = column = listed.with_classes(classes["train"])
            for split in SPLITS if isinstance(column, Class | Tags) else ():
                for name, (count, location) in classes[split].items():
                    if name not in column.names():
                        why = "not among the classes" if listed.names() else "in none of train"
                        kind = f"class of {feature!r}"
                        raise InputError(
                            f"{location}: {unknown(kind, name, column.names())}\n"
                            f"it is in {count:,} rows of {split} and {why}",
                            field="FileData.features",
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
        available = {name for key, column in columns.items() for name in column.features(key)}
        features = [name for name in objective.features if name in available]
        source = self._source(split, table, features)
        missing = [name for name in objective.features if name not in available]
        # The objective may make the rest: an example shows it, before any batch does.
        if missing and not (features and self.can_prepare(source, objective)):
            raise InputError(
                f"FileData.features lacks what {type(objective).__name__} reads: "
                f"{unknown('feature', missing[0], available)}",
                field="FileData.features",
            )
        return [Component(source, 1.0, objective)]

    def _source(self, split: str, table: Table, features: Sequence[str]) -> FileSource:
        shots = None
        if self.shots and self.shot is not None:
            train, template = self._index.tables["train"], Template(self.shot)
            shots = Shots(train, count=self.shots, template=template, hashes=self._hashes_of)
        columns = {
            feature: column
            for feature, column in self._columns.items()
            if set(column.features(feature)) & set(features)
        }
        return FileSource(
            f"{os.path.basename(self._paths[0][0])}:{split}:{self._digest}",
            table,
            columns,
            features=features,
            vocabulary=self._vocabulary,
            shots=shots,
        )

    def _num_cut_answers(self) -> int:
        """Returns how many of the first training rows have an answer past the length."""
        table = self._index.tables["train"]
        rows = table.read(range(min(_CHECKED, len(table))))
        count = 0
        for feature, column in self._columns.items():
            if isinstance(column, Answer) and feature in self.lengths:
                room = self.lengths[feature] - self._vocabulary.frame.size
                arrays = column.arrays(feature, rows, vocabulary=self._vocabulary)
                count += sum(int(last) >= room for _, last in arrays["labels"])
        return count


def _check_columns(columns: Mapping[str, Column], shots: int, shot: str | None) -> None:
    """Refuses features that two columns make, and shots without a slot for them."""
    owners: dict[str, str] = {}
    for feature, column in columns.items():
        for name in column.features(feature):
            if owners.setdefault(name, feature) != feature:
                raise InputError(
                    f"features: {owners[name]!r} and {feature!r} both make {name!r}; remove one",
                    field="features",
                )
    texts = [column for column in columns.values() if isinstance(column, Text)]
    slots = {slot for text in texts for slot in text.template.slots}
    if shots and SHOTS not in slots:
        raise InputError(f"shots = {shots}: no template has the slot {{{SHOTS}}}", field="shots")
    if shot is not None and SHOTS in Template(shot).slots:
        raise InputError(f"shot = {shot!r}: must not have the slot {{{SHOTS}}}", field="shot")


def _and_more(items: Sequence | Mapping, noun: str = "") -> str:
    return f" and {len(items) - 1:,} more{noun}" if len(items) > 1 else ""
