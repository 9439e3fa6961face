"""Trials of a search: variations of a run, compiled one by one and ranked."""

import collections
import dataclasses
import math
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from t5lite.errors import InputError
from t5lite.planning.plan_text import excess
from t5lite.planning.search import Variation
from t5lite.planning.topology import Slice
from t5lite.text import in_bytes, table

_MIN_SECONDS = 20  # of a compilation: with less left, none starts
_INTERRUPTED = "not tried, interrupted"

# Compiles a run with changes, shows `title=`, gives up after `seconds=`; returns the plan.
Compile = Callable[..., dict[str, Any]]


def try_all(
    order: Sequence[Variation], on: Slice, compile_: Compile, *, seconds: float
) -> dict[str, Any]:
    """Compiles a run, then its variations in order, within `seconds`, and prints those that fit."""
    end = time.monotonic() + seconds
    tried: list[tuple[Variation | None, dict[str, Any]]] = []  # None: as it is configured
    left_out: collections.Counter = collections.Counter()
    for number, variation in enumerate([None, *order]):
        if reason := _skipped(variation, tried):
            left_out[reason] += 1
            continue
        if (left := end - time.monotonic()) < _MIN_SECONDS:
            left_out["no time was left for"] += 1
            continue
        changes = (
            dataclasses.asdict(variation) | {"mesh": dict(variation.mesh)} if variation else {}
        )
        name = _name_of(variation)
        try:
            result = compile_(changes, title=f"{number}. {name}", seconds=left)
        except KeyboardInterrupt:
            left_out[_INTERRUPTED] += len(order) - number + 1
            break
        except InputError as error:
            result = {"aborted": str(error)}
        tried.append((variation, result))
        print(f"{number:3}. {name}: {_outcome(result)}", flush=True)
    fits = [pair for pair in tried if pair[1].get("fits")]
    fits.sort(key=lambda pair: pair[1]["estimate"].get("step") or math.inf)
    print("\n".join(["", *_ranking(fits, on), *(f"{n} {why}" for why, n in left_out.items())]))
    if _INTERRUPTED in left_out:
        print("interrupted: these are the results until then")
    plans = [
        result | {"flags": variation.flags() if variation else []} for variation, result in fits
    ]
    failed = [
        (dataclasses.asdict(variation) if variation else {}) | result
        for variation, result in tried
        if not result.get("fits")
    ]
    return {"plans": plans, "did_not_fit": failed, "left_out": dict(left_out)}


def _skipped(
    variation: Variation | None, tried: Sequence[tuple[Variation | None, Mapping[str, Any]]]
) -> str:
    """Returns the reason not to compile a variation; "" for none."""
    if variation is None:
        return ""
    for earlier, result in tried:
        too_large = result.get("fits") is False
        if too_large and earlier is not None and earlier.needs_no_more_than(variation):
            return "need more than what did not fit"
    return "is the run as it is" if any(_same(variation, result) for _, result in tried) else ""


def _name_of(variation: Variation | None) -> str:
    return variation.name if variation else "as configured"


def _same(variation: Variation, result: Mapping[str, Any]) -> bool:
    """Whether a variation was compiled already."""
    return (dict(variation.mesh), variation.remat, variation.num_microbatches) == tuple(
        result.get(name) for name in ("mesh", "remat", "microbatches")
    )


def _outcome(result: Mapping[str, Any]) -> str:
    if "aborted" in result:
        return result["aborted"].splitlines()[0]
    if not result["fits"]:
        return f"does not fit, {excess(result)}"
    step = result["estimate"].get("step")
    memory = in_bytes(result["memory"]["total"])
    return f"{memory} a device" + (f", {1000 * step:.3g} ms estimated" if step else "")


def _ranking(fits: Sequence[tuple[Variation | None, Mapping[str, Any]]], on: Slice) -> list[str]:
    if not fits:
        return ["nothing that was compiled fits"]
    rows = [("", "mesh, remat, microbatches", "memory", "step", "utilisation", "tokens/s/chip")]
    for rank, (variation, result) in enumerate(fits, 1):
        estimates = result["estimate"]
        rows.append(
            (
                f"{rank}.",
                _name_of(variation),
                in_bytes(result["memory"]["total"]),
                *(
                    (
                        f"{1000 * estimates['step']:.3g} ms",
                        f"{100 * estimates['utilisation']:.1f} %",
                        f"{estimates['tokens_per_second_per_chip']:,.0f}",
                    )
                    if estimates.get("step")
                    else ("?", "?", "?")
                ),
            )
        )
    lines = [f"what fits {on.name}, fastest first, by the compiler's estimates", ""]
    lines += table(rows, right=2)
    if (fastest := fits[0][0]) is None:
        return [*lines, "", "none that was tried is faster than the run as it is configured"]
    return [*lines, "", "the first one, as flags:", *(f"  {flag}" for flag in fastest.flags())]
