"""The error for a checkpoint whose tensors do not fit the model."""

import itertools
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import NamedTuple

from t5lite.errors import InputError
from t5lite.training.mapping import nearest

Shape = tuple[int, ...]
_OUTPUT_LAYER = re.compile(
    r"(.*\.)?(lm_head|embed_out|proj_out|predictions\.decoder|generator_lm_head)\.(weight|bias)"
)


class Misfit(NamedTuple):
    """The tensors that do not fit.

    Args:
      missing: tensors that are wanted and not stored.
      unexpected: tensors that are stored and not wanted.
      shapes: the stored and the wanted shape of tensors by name.
      dtypes: the same of dtypes.
    """

    missing: list[str]
    unexpected: list[str]
    shapes: dict[str, tuple[Shape, Shape]]
    dtypes: dict[str, tuple[str, str]]


def misfit_error(
    misfit: Misfit, *, wanted: Iterable[str], stored: Iterable[str], where: str
) -> InputError:
    """Returns the error that lists what is wrong, by name and with the likely causes.

    Args:
      misfit: at least one of its fields is not empty.
      wanted: the names of all tensors that are wanted.
      stored: the names of all that the checkpoint has.
      where: of the checkpoint.
    """
    causes = [*_causes_of_names(misfit, wanted, stored), *_causes_of_shapes(misfit.shapes)]
    if any("int" in stored for stored, _ in misfit.dtypes.values()):
        causes.append("the file is quantized, which is not read: take the original")
    missing = list(misfit.missing)
    if not causes and len(missing) <= 5:
        missing = [name + nearest(name, misfit.unexpected) for name in missing]
    shapes = [
        f"{name} is {list(stored)}, wanted {list(wanted)}"
        for name, (stored, wanted) in misfit.shapes.items()
    ]
    dtypes = [
        f"{name} is {stored}, wanted {wanted}" for name, (stored, wanted) in misfit.dtypes.items()
    ]
    return InputError(
        "\n".join(
            [
                f"the tensors of {where} are not those of the model",
                *(f"likely cause: {cause}" for cause in causes),
                *_section("missing", missing),
                *_section("unexpected", misfit.unexpected),
                *_section("of another shape", shapes),
                *_section("of another type", dtypes),
            ]
        )
    )


def _section(title: str, lines: Sequence[str]) -> Iterator[str]:
    if lines:
        yield f"{title} ({len(lines)}): {', '.join(folded(lines))}"


def folded(lines: Iterable[str]) -> list[str]:
    """Returns lines with those that differ in one layer's number alone joined into one.

    `h.0.w`, `h.1.w`, `h.2.w`, `h.7.w` become `h.{0-2,7}.w`. Nothing is left out.
    """
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
    """Returns numbers as `{0-2,7}`; one alone, or what is folded already, as it is."""
    if len(numbers) == 1:
        return numbers[0]
    ordered = sorted(map(int, numbers))
    runs = [
        [number for _, number in run]
        for _, run in itertools.groupby(enumerate(ordered), lambda pair: pair[1] - pair[0])
    ]
    texts = (str(run[0]) if len(run) == 1 else f"{run[0]}-{run[-1]}" for run in runs)
    return "{" + ",".join(texts) + "}"


def _causes_of_names(misfit: Misfit, wanted: Iterable[str], stored: Iterable[str]) -> Iterator[str]:
    missing, unexpected = set(misfit.missing), set(misfit.unexpected)
    stored = set(stored)
    for longer, shorter, cause in (
        (unexpected, missing, "the file's names begin with {!r}, the wanted ones do not"),
        (missing, unexpected, "the wanted names begin with {!r}, the file's do not"),
    ):
        prefix, count = _prefix(longer, shorter)
        if 2 * count >= max(1, len(missing)):
            yield cause.format(prefix) + ": it was saved from another class of the family"
            return
    counts, counts_there = _layers(wanted), _layers(stored)
    for prefix in counts.keys() & counts_there.keys():
        if counts[prefix] != counts_there[prefix]:
            yield (
                f"{prefix} has {counts_there[prefix]} layers in the file and {counts[prefix]} in "
                "the model: is its config.json the file's?"
            )
    if outputs := [name for name in misfit.missing if _OUTPUT_LAYER.fullmatch(name)]:
        yield (
            f"the file has no output layer ({outputs[0]}): the model it is from shares that with "
            "the embeddings (tie_word_embeddings), or has none"
        )
    if missing and not stored & set(wanted):
        yield "not one name is as wanted: is it the file of another family of models?"


def _prefix(longer: Iterable[str], shorter: set[str]) -> tuple[str, int]:
    """Returns what most often stands before a shorter name in a longer one, and how often."""
    prefixes = Counter(
        name[: dot.end()]
        for name in longer
        for dot in re.finditer(r"\.", name)
        if name[dot.end() :] in shorter
    )
    return prefixes.most_common(1)[0] if prefixes else ("", 0)


def _layers(names: Iterable[str]) -> dict[str, int]:
    """Returns how many layers there are: the first number in a name counts them."""
    counts: dict[str, int] = {}
    for name in names:
        if match := re.match(r"(.*?)\.(\d{1,6})\.", name):
            counts[match[1]] = max(counts.get(match[1], 0), int(match[2]) + 1)
    return counts


def _causes_of_shapes(shapes: Mapping[str, tuple[Shape, Shape]]) -> Iterator[str]:
    if shapes and all(stored == wanted[::-1] for stored, wanted in shapes.values()):
        yield "all of these are transposed: another library's, or another class's, layout"
