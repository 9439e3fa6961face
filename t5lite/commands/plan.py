"""`t5lite plan`: a run's step, compiled ahead of time for a TPU slice.

Each compilation runs in its own process, to be cancelled by a search or survive compiler aborts.
"""

import argparse
import json
import shlex
import sys
from typing import TYPE_CHECKING, Any

from t5lite.data.paths import require_writable, write_whole
from t5lite.errors import InputError

if TYPE_CHECKING:
    from t5lite.configuration import Configuration


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.epilog = (
        "example: t5lite plan --gin_file=configs/t5_1_1_base_c4.gin --topology=v5e:4x4. Needs "
        "libtpu, but neither a TPU nor data; a compilation takes one to five minutes"
    )
    parser.add_argument(
        "--topology", required=True, metavar="KIND:SHAPE", help="a slice in chips, such as v5e:4x4"
    )
    parser.add_argument(
        "--num_slices",
        type=int,
        default=1,
        metavar="N",
        help="number of slices, joined by the data-centre network (1)",
    )
    parser.add_argument(
        "--price", type=float, metavar="PRICE", help="price of a chip-hour, in any currency"
    )
    parser.add_argument(
        "--power",
        type=float,
        metavar="WATTS",
        help="power of a chip with its share of host and cooling",
    )
    parser.add_argument(
        "--output",
        default="plan.json",
        metavar="FILE",
        help="the plan, as JSON (plan.json)",
    )
    parser.add_argument(
        "--search",
        action="store_true",
        help="try meshes (data, FSDP, tensor), remat and microbatches, and rank what fits",
    )
    parser.add_argument(
        "--budget",
        type=float,
        metavar="MINUTES",
        help="time limit of a search (30); a running compilation is cancelled",
    )
    parser.add_argument("--worker", help=argparse.SUPPRESS)  # the process that compiles


def run(arguments: argparse.Namespace, configuration: "Configuration") -> int:
    """Prints a plan, or a search's ranking; or, as a worker, compiles. Returns 0 if a plan fits."""
    import importlib.metadata

    from t5lite.commands.configured import experiment_of
    from t5lite.experiment import train
    from t5lite.experiment.description import versions
    from t5lite.experiment.plans import compile_for, search, varied
    from t5lite.planning import Slice
    from t5lite.planning.plan_text import report, whole_run
    from t5lite.planning.sandbox import Sandbox, channel

    on = Slice.parse(arguments.topology, num_slices=arguments.num_slices)
    changes = None if arguments.worker is None else json.loads(arguments.worker)
    if changes is not None:
        tell = channel()
    else:
        on.require_compiler()
        for name in ("price", "power", "budget"):
            if (value := getattr(arguments, name)) is not None and not value > 0:
                raise InputError(f"--{name}={value}: must be above 0", field=name)
        require_writable(arguments.output)
    experiment = experiment_of(configuration)
    if changes:
        experiment = varied(experiment, changes)
    with configuration.locating(train):
        experiment.bound  # noqa: B018  checks spec and objective
    if changes is not None:
        compile_for(experiment, on, tell=tell)
        return 0
    command = [
        "plan",
        *(f"--gin_file={file}" for file in arguments.gin_file),
        *(f"--gin_search_paths={paths}" for paths in arguments.gin_search_paths),
        *(f"--gin.{binding}" for binding in arguments.bindings),
        f"--topology={arguments.topology}",
    ]
    command += [f"--num_slices={on.num_slices}"] * (on.num_slices > 1)
    plan: dict[str, Any] = {
        "command": shlex.join(["t5lite", *command]),
        "versions": versions() | {"libtpu": importlib.metadata.version("libtpu")},
    }
    compile_ = Sandbox([sys.executable, "-m", "t5lite.main", *command])
    if arguments.search:
        plan |= search(experiment, on, compile_, minutes=arguments.budget or 30.0)
    else:
        result = compile_({}, title=f"{experiment.spec.family}'s step for {on.name}")
        plan |= {"plans": [result]}
        print(report(result, on, price=arguments.price, power=arguments.power))
    for result in plan["plans"]:
        result |= {"run": whole_run(result, on, price=arguments.price, power=arguments.power)}
    write_whole(arguments.output, (json.dumps(plan, indent=1) + "\n").encode())
    print(f"\nwritten: {arguments.output}")
    return 0 if any(result.get("fits") for result in plan["plans"]) else 1
