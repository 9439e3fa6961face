"""The error for a checkpoint whose tensors do not fit the model."""

import itertools
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple

from t5lite.errors import InputError
from t5lite.training.mapping import nearest

Shape = tuple[int, ...]
_OUTPUT_LAYER = re.compile(
    r"(.*\.)?(lm_head|embed_out|proj_out|predictions\.decoder|generator_lm_head)\.(weight|bias)"
)


class Misfit(NamedTuple):
    """Tensors that do not fit the model; `shapes` and `dtypes`: (stored, expected) by name."""

    missing: list[str]
    unexpected: list[str]
    shapes: dict[str, tuple[Shape, Shape]]
    dtypes: dict[str, tuple[str, str]]


def misfit_error(
    misfit: Misfit, *, expected: Iterable[str], stored: Iterable[str], checkpoint: str
) -> InputError:
    """Returns the error that lists all tensors that do not fit, with the likely causes.

    Args:
      expected, stored: the names of all tensors of the model, of the checkpoint.
    """
    causes = [*_causes_of_names(misfit, set(expected), set(stored))]
    if misfit.shapes and all(stored == shape[::-1] for stored, shape in misfit.shapes.values()):
        causes.append("all of these are transposed: another library's, or another class's, layout")
    if any("int" in stored for stored, _ in misfit.dtypes.values()):
        causes.append("the file is quantized, which is not read: take the original")
    missing = misfit.missing
    if not causes and len(missing) <= 5:
        missing = [name + nearest(name, misfit.unexpected) for name in missing]
    sections = {
        "missing": missing,
        "unexpected": misfit.unexpected,
        "of another shape": [
            f"{name} is {list(stored)}, wanted {list(shape)}"
            for name, (stored, shape) in misfit.shapes.items()
        ],
        "of another type": [
            f"{name} is {stored}, wanted {dtype}" for name, (stored, dtype) in misfit.dtypes.items()
        ],
    }
    return InputError(
        "\n".join(
            [
                f"the tensors of {checkpoint} are not those of the model",
                *(f"likely cause: {cause}" for cause in causes),
                *(
                    f"{title} ({len(lines)}): {', '.join(folded(lines))}"
                    for title, lines in sections.items()
                    if lines
                ),
            ]
        )
    )


def folded(lines: Iterable[str]) -> list[str]:
    """Joins lines that differ in one layer's number: `h.0.w`, `h.1.w` → `h.{0-1}.w`."""
    rows = [re.split(r"(?<=\.)(\d{1,6})(?=\.)", line) for line in lines]
    for position in range(1, max(map(len, rows), default=0), 2):
        groups: dict[tuple[str, ...], list[str]] = {}
        for row in rows:
            beside = (*row[:position], "", *row[position + 1 :]) if len(row) > position else (*row,)
            groups.setdefault(beside, []).extend(row[position : position + 1])
        rows = [
            [*beside[:position], _ranges(numbers), *beside[position + 1 :]]
            if numbers
            else [*beside]
            for beside, numbers in groups.items()
        ]
    return ["".join(row) for row in rows]


def _ranges(numbers: Sequence[str]) -> str:
    """Returns numbers as `{0-2,7}`; a single one, perhaps folded already, as it is."""
    if len(numbers) == 1:
        return numbers[0]
    ordered = sorted(map(int, numbers))
    runs = [
        [number for _, number in run]
        for _, run in itertools.groupby(enumerate(ordered), lambda pair: pair[1] - pair[0])
    ]
    texts = (str(run[0]) if len(run) == 1 else f"{run[0]}-{run[-1]}" for run in runs)
    return "{" + ",".join(texts) + "}"


def _causes_of_names(misfit: Misfit, expected: set[str], stored: set[str]) -> Iterator[str]:
    missing, unexpected = set(misfit.missing), set(misfit.unexpected)
    for longer, shorter, cause in (
        (unexpected, missing, "the file's names begin with {!r}, the wanted ones do not"),
        (missing, unexpected, "the wanted names begin with {!r}, the file's do not"),
    ):
        # The prefix that most names have before one of the shorter names.
        prefixes = Counter(
            name[: dot.end()]
            for name in longer
            for dot in re.finditer(r"\.", name)
            if name[dot.end() :] in shorter
        )
        prefix, count = prefixes.most_common(1)[0] if prefixes else ("", 0)
        if 2 * count >= max(1, len(missing)):
            yield cause.format(prefix) + ": it was saved from another class of the family"
            return
    counts, counts_stored = _layers(expected), _layers(stored)
    for prefix in counts.keys() & counts_stored.keys():
        if counts[prefix] != counts_stored[prefix]:
            yield (
                f"{prefix} has {counts_stored[prefix]} layers in the file and {counts[prefix]} in "
                "the model: is its config.json the file's?"
            )
    if outputs := [name for name in misfit.missing if _OUTPUT_LAYER.fullmatch(name)]:
        yield (
            f"the file has no output layer ({outputs[0]}): the model it is from shares that with "
            "the embeddings (tie_word_embeddings), or has none"
        )
    if missing and not stored & expected:
        yield "not one name is as wanted: is it the file of another family of models?"


def _layers(names: Iterable[str]) -> dict[str, int]:
    """Returns the number of layers by prefix, by the first number in each name."""
    counts: dict[str, int] = {}
    for name in names:
        if match := re.match(r"(.*?)\.(\d{1,6})\.", name):
            counts[match[1]] = max(counts.get(match[1], 0), int(match[2]) + 1)
    return counts
