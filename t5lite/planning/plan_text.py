"""Plans as text for a terminal."""

import textwrap
from collections.abc import Mapping, Sequence
from typing import Any

from t5lite.planning.topology import Slice
from t5lite.text import in_bytes, in_flops, table, titled, wrapped

_MOST_PROCESSES = 8  # whose rows are shown


def report(plan: Mapping[str, Any], on: Slice, *, price: float | None, power: float | None) -> str:
    """Returns a plan in lines of <= 100 characters; `price` per chip-hour, `power` in watts."""
    if "aborted" in plan:
        return "\n".join([plan["aborted"], *(f"  {line}" for line in plan.get("said", ()))])
    sections = {
        "the run": run_lines(plan, f"{on.name}, {plan['chips']} chips"),
        "what each process reads": _reading_lines(plan),
    }
    if not plan["fits"]:
        return titled(sections | {"it does not fit": _excess_lines(plan)})
    collectives = collective_lines(plan, several=on.num_slices > 1)
    sections |= {
        "memory of a device": memory_lines(plan),
        "collectives of a step, each device": collectives,
        "estimated by the compiler, not measured": _estimate_lines(plan, on),
        "the whole run, estimated": _whole_lines(plan, on, price=price, power=power),
    }
    return titled(sections)


def run_lines(plan: Mapping[str, Any], devices: str) -> list[str]:
    sizes = " × ".join(f"{axis} {size}" for axis, size in plan["mesh"].items())
    lengths = " + ".join(map(str, plan["lengths"]))
    facts = {
        "devices": devices + (f", as {sizes}" if sizes else ""),
        "model": f"{plan['parameters']:,} parameters"
        + (f", {plan['trained']:,} trained" if plan["trained"] < plan["parameters"] else ""),
        "step": f"{plan['batch_size']:,} rows × ({lengths}) tokens, {plan['microbatches']} "
        f"microbatch{'es' * (plan['microbatches'] > 1)}, {plan['dtype']}, "
        f"remat {plan['remat']}, {in_flops(plan['flops_per_step'])}",
    }
    if plan["fits"]:
        seconds = plan["lowering_seconds"] + plan["compile_seconds"]
        facts["compiled"] = f"in {seconds:.1f} s; it fits"
    return [line for label, text in facts.items() for line in wrapped(f"{label:10}", text)]


def _reading_lines(plan: Mapping[str, Any]) -> list[str]:
    """Returns a table of the rows and shards of the first processes."""
    processes = plan["processes"]
    rows = [("process", f"rows of {plan['batch_size']:,}", "virtual shards")]
    for process, reads in enumerate(processes[:_MOST_PROCESSES]):
        rows.append((str(process), _ranges(reads["rows"]), _ranges(reads["shards"])))
    left = len(processes) - _MOST_PROCESSES
    return [*table(rows), *([f"and {left:,} more processes"] if left > 0 else [])]


def _ranges(runs: Sequence[Sequence[int]]) -> str:
    ends = (f"{start}–{stop - 1}" if stop - start > 1 else str(start) for start, stop in runs)
    return textwrap.shorten(", ".join(ends), 40, placeholder=" …")


def memory_lines(plan: Mapping[str, Any]) -> list[str]:
    """Returns a table of each device's memory, by part."""
    memory, hbm = plan["memory"], plan["hbm"]
    names = {
        "parameters": "parameters",
        "optimizer": "optimizer state",
        "batch": "batch",
        "temporaries": "gradients, activations and other temporaries",
        "code": "the program",
        "total": "in all",
    }
    rows = [("", "bytes", *(("of HBM",) if hbm else ()))]
    for name, label in names.items():
        share = (f"{100 * memory[name] / hbm:.1f} %",) if hbm else ()
        rows.append((label, in_bytes(memory[name]), *share))
    lines = table(rows, right=1)
    if memory["host"]:
        lines.append(f"in the host's memory: {in_bytes(memory['host'])}")
    if hbm:
        lines.append(f"HBM: {in_bytes(hbm)} a device, of which the system keeps a little")
    return lines


def collective_lines(plan: Mapping[str, Any], *, several: bool) -> list[str]:
    """Returns a table of the bytes that each device sends in a step; `several` slices or one."""
    collectives = plan["program"]["collectives"]
    if not collectives:
        return ["none"]
    rows = [("", "times", "bytes sent", *(("between slices",) if several else ()))]
    for kind, traffic in sorted(collectives.items(), key=lambda pair: -pair[1]["bytes"]):
        cells = [kind, f"{traffic['count']:,}", in_bytes(traffic["bytes"])]
        rows.append((*cells, *((in_bytes(traffic["slow_bytes"]),) if several else ())))
    total = sum(traffic["bytes"] for traffic in collectives.values())
    slow = sum(traffic["slow_bytes"] for traffic in collectives.values())
    rows.append(("in all", "", in_bytes(total), *((in_bytes(slow),) if several else ())))
    return table(rows, right=1)


def _estimate_lines(plan: Mapping[str, Any], on: Slice) -> list[str]:
    estimates, program = plan["estimate"], plan["program"]
    lines = []
    if estimates.get("step") is None:
        lines += wrapped("", f"the clock of a {on.kind} is not known: no estimate of time")
    else:
        low, high = estimates["step_overlapped"], estimates["step"]
        facts = {
            "compute": f"{1000 * estimates['compute']:.1f} ms, all operations one after another",
            "collectives": f"{1000 * estimates['communication']:.1f} ms, over one axis of links",
            "step": f"{1000 * high:.1f} ms one after the other, {1000 * low:.1f} ms overlapped",
            "utilisation": f"{100 * estimates['utilisation']:.1f} % of the chips' bfloat16 FLOP/s, "
            f"{100 * estimates['utilisation_overlapped']:.1f} % overlapped",
            "throughput": f"{estimates['tokens_per_second_per_chip']:,.0f} tokens/s/chip, "
            f"{estimates['tokens_per_second_per_chip_overlapped']:,.0f} overlapped",
        }
        lines += [line for label, text in facts.items() for line in wrapped(f"{label:13}", text)]
    left_out = ["input", "checkpoints and evaluation"]
    if program["kernels"]:
        left_out.insert(
            0, f"{program['kernels']:,} calls of Pallas kernels, which it has no say on"
        )
    if any(traffic["slow_bytes"] for traffic in program["collectives"].values()):
        left_out.insert(0, "the network between slices")
    if program["unknown_loops"]:
        left_out.insert(0, f"all but one turn of {program['unknown_loops']} loops")
    return [*lines, *wrapped("left out     ", "; ".join(left_out))]


def whole_run(
    plan: Mapping[str, Any], on: Slice, *, price: float | None, power: float | None
) -> dict[str, Any] | None:
    step = (plan.get("estimate") or {}).get("step")
    if not step or not plan["steps"]:
        return None
    hours = plan["steps"] * step / 3600
    chip_hours = hours * on.num_chips
    whole = {"steps": plan["steps"], "hours": hours, "chip_hours": chip_hours}
    if price is not None:
        whole["cost"] = chip_hours * price
    if power is not None:
        whole["kilowatt_hours"] = chip_hours * power / 1000
    return whole


def _whole_lines(
    plan: Mapping[str, Any], on: Slice, *, price: float | None, power: float | None
) -> list[str]:
    whole = whole_run(plan, on, price=price, power=power)
    if whole is None:
        return ["not known: the run's length in steps, or the time of one, is not"]
    tokens = whole["steps"] * plan["tokens_per_step"]
    facts = {
        "time": f"{whole['steps']:,} steps, {tokens:.3g} tokens with padding: "
        f"{_figure(whole['hours'])} hours, nothing overlapped, nothing lost",
        "chip-hours": _figure(whole["chip_hours"]),
        "money": f"{_figure(whole['cost'])} at {price:g} a chip-hour"
        if "cost" in whole
        else "with --price=PRICE of a chip-hour",
        "energy": f"{_figure(whole['kilowatt_hours'])} kWh at {power:g} W a chip"
        if "kilowatt_hours" in whole
        else "with --power=WATTS of a chip, its share of hosts and cooling included",
    }
    return [line for label, text in facts.items() for line in wrapped(f"{label:12}", text)]


def _figure(value: float) -> str:
    """Formats three digits, or the whole number if it has more."""
    return f"{value:,.0f}" if value >= 99.5 else f"{value:.3g}"


def excess(plan: Mapping[str, Any]) -> str:
    """Returns the bytes that a run needs beyond a device's."""
    if not plan["needed"]:
        return "the compiler does not say by how much"
    needed, available = plan["needed"], plan["available"]
    return f"{in_bytes(needed)} of {in_bytes(available)}: {in_bytes(needed - available)} too much"


def _excess_lines(plan: Mapping[str, Any]) -> list[str]:
    lines = [excess(plan), *wrapped("the compiler: ", plan["compiler"], max_lines=3)]
    if plan["advice"]:
        lines += ["", "what would need less:"]
        lines += [line for text in plan["advice"] for line in wrapped("- ", text)]
    return lines
