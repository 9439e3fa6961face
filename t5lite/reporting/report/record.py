"""Records: runs as read from their folders."""

import dataclasses
import json
import math
import re
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

from etils import epath

from t5lite.errors import InputError
from t5lite.reporting.report.series import Series

TRAIN = "train/"
_CHOSEN = ("headline", "data", "seed", "steps", "tokens", "epochs")
_BINDING = re.compile(r"^([\w./@%]+(?:\.[\w/]+)*)\s*=\s*", re.MULTILINE)


class Text(NamedTuple):
    """A text of a step, such as samples of the model."""

    step: int
    text: str


@dataclasses.dataclass(frozen=True)
class Record:
    """The contents of a run's folder; empty where a file is missing.

    Args:
      name: the label of the run.
      series: by metric.
      texts: name → texts by step.
      facts: of `run.json`.
      config: of `config.gin`.
      model: of `model.json`.
      times: seconds since 1970 of each step with metrics.
    """

    name: str
    series: Mapping[str, Series]
    texts: Mapping[str, list[Text]]
    facts: Mapping[str, Any]
    config: str
    model: Mapping[str, Any]
    times: Series

    @property
    def step(self) -> int:
        """The last recorded step."""
        return max((int(series.steps[-1]) for series in self.series.values()), default=0)

    @property
    def seconds(self) -> float:
        """From the first line to the last."""
        return self.times.values[-1] - self.times.values[0] if self.times else 0.0

    @property
    def started(self) -> float | None:
        """Seconds since 1970."""
        starts = [self.facts.get("started"), self.times.values[0] if self.times else None]
        return min((start for start in starts if start), default=None)

    @property
    def held_out(self) -> str | None:
        """The prefix of the held-out metrics that belong beside those of training, or None."""
        prefixes = dict.fromkeys(name.rpartition("/")[0] + "/" for name in self.series)
        with_loss = [
            prefix for prefix in prefixes if prefix != TRAIN and f"{prefix}loss" in self.series
        ]
        return next((p for p in ("held_out/", "validation/") if p in with_loss), None) or next(
            iter(with_loss), None
        )

    def last(self, name: str) -> float | None:
        """Returns a metric's last finite value."""
        return self.series[name].last() if name in self.series else None

    def share(self) -> float | None:
        """Returns the finished share of the run, in [0, 1]; None without a limit."""
        values = {
            "steps": self.step,
            "tokens": self.last(TRAIN + "tokens"),
            "epochs": self.last(TRAIN + "epoch"),
        }
        shares = [(values[end] or 0) / self.facts[end] for end in values if self.facts.get(end)]
        return min(max(shares), 1.0) if shares else None

    def settings(self) -> dict[str, str]:
        """Returns a run's settings by name, for comparisons."""
        facts = {name: self.facts.get(name) for name in _CHOSEN}
        versions = self.facts.get("versions") or {}
        facts |= {f"version of {name}": version for name, version in versions.items()}
        model = {f"model.{path}": value for path, value in _flat(self.model)}
        shown = {name: str(value) for name, value in (facts | model).items() if value is not None}
        return shown | bindings(self.config)


def read_record(folder: epath.PathLike, *, name: str | None = None) -> Record:
    """Reads a model_dir as a run labelled `name`, by default the folder's name.

    A half-written last line, of a run that is writing now, is left out.

    Raises: InputError if it is not the folder of a run, or has no metrics yet.
    """
    root = epath.Path(folder).expanduser()
    metrics = root / "metrics.jsonl"
    if not metrics.exists():
        present = [name for name in ("run.json", "model.json") if (root / name).exists()]
        if present:
            raise InputError(
                f"{root} has no metrics yet: it has {present[0]}, but no metrics.jsonl; give a run "
                "that has logged steps"
            )
        problem = "is not the folder of a run" if root.exists() else "does not exist"
        raise InputError(f"{root} {problem}; give a model_dir, which has a metrics.jsonl")
    times: dict[int, float] = {}
    values: dict[str, dict[int, float]] = {}
    for line in _lines(metrics):
        step = line.pop("step")
        times[step] = line.pop("time", math.nan)
        for metric, value in line.items():
            if value is None or isinstance(value, int | float):
                values.setdefault(metric, {})[step] = math.nan if value is None else float(value)
    if not times:
        raise InputError(
            f"{root} has no metrics yet: its metrics.jsonl has no whole line; give a run that has "
            "logged steps"
        )
    texts: dict[str, dict[int, str]] = {}
    for line in _lines(root / "texts.jsonl"):
        texts.setdefault(str(line.get("name")), {})[line["step"]] = str(line.get("text", ""))
    return Record(
        name=root.name if name is None else name,
        series={metric: Series.of(points) for metric, points in values.items()},
        texts={
            key: [Text(*item) for item in sorted(by_step.items())] for key, by_step in texts.items()
        },
        facts=_json(root / "run.json"),
        config=_text(root / "config.gin"),
        model=_json(root / "model.json"),
        times=Series.of(times).finite(),
    )


def bindings(config: str) -> dict[str, str]:
    """Returns the bindings of a gin configuration, one a line, without the model_dir."""
    lines = (line for line in config.splitlines() if not line.lstrip().startswith("#"))
    text = "\n".join(lines)
    starts = [*_BINDING.finditer(text)]
    ends = [match.start() for match in starts[1:]] + [len(text)]
    values = {
        match[1]: " ".join(text[match.end() : end].replace("\\\n", " ").split())
        for match, end in zip(starts, ends, strict=True)
    }
    return {
        name: value
        for name, value in values.items()
        if name.rpartition(".")[2].lower() != "model_dir"
    }


def _lines(path: epath.Path) -> Iterator[dict[str, Any]]:
    for text in _text(path).split("\n"):
        try:
            line = json.loads(text)
        except ValueError:
            continue
        if isinstance(line, dict) and isinstance(line.get("step"), int):
            yield line


def _json(path: epath.Path) -> dict[str, Any]:
    try:
        content = json.loads(_text(path) or "{}")
    except ValueError:
        return {}
    return content if isinstance(content, dict) else {}


def _text(path: epath.Path) -> str:
    return path.read_bytes().decode("utf-8", errors="replace") if path.exists() else ""


def _flat(tree: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    if not isinstance(tree, Mapping | list):
        yield path, tree
        return
    for key, value in tree.items() if isinstance(tree, Mapping) else enumerate(tree):
        yield from _flat(value, f"{path}.{key}" if path else str(key))
