"""Results of benchmarks as text: the same JSON values that go into files, laid out for a reader."""

from __future__ import annotations

from typing import Any

from tandem.bench.ceilings import Ceilings
from tandem.bench.report import columns
from tandem.bench.throughput import relative_to_smaller

# Above this, other work has shaped the figures: one process is the benchmark's own last minute.
_BUSY = 0.5


def header_lines(result: dict[str, Any]) -> str:
    """Machine, model (if there is one), versions and command."""
    machine = result["machine"]
    lines = [
        f"{machine['cpu']}, {machine['cores']} cores ({' '.join(machine['isa'])}), "
        f"{machine['memory_bytes'] / 2**30:.1f} GiB memory, {machine['system']}, Python {machine['python']}",
    ]
    if model := result.get("model"):
        lines += [
            f"{model['file']} ({model['name']}) on {'; '.join(result['devices'])}",
            f"read bandwidth of {model['weight_bytes_per_step'] / 1e6:,.1f} MB, again and again: "
            f"{result['read_bandwidth_bytes_per_s'] / 1e9:,.1f} GB/s",
        ]
    lines += [
        f"$ {result['command']}",
        f"commit {result['commit'] or 'unknown'}, "
        + ", ".join(f"{package} {version}" for package, version in result["versions"].items()),
    ]
    if result["load_average"] > _BUSY:
        lines.append(
            f"The machine was busy when this began (load average {result['load_average']:.1f}): repeat it in peace."
        )
    return "\n".join(lines)


def throughput_table(result: dict[str, Any]) -> str:
    """One block of lines per depth, one line per batch size."""
    workload = result["workload"]
    blocks = []
    for depth in workload["depths"]:
        entries = [entry for entry in result["results"] if entry["depth"] == depth]
        rates = {entry["batch"]: entry["decode"]["tokens_per_s"]["median"] for entry in entries if "decode" in entry}
        relative = relative_to_smaller(rates)
        titles = ["batch"]
        if "prefill" in workload["kinds"]:
            titles += ["prefill tokens/s"]
        if "decode" in workload["kinds"]:
            titles += ["decode tokens/s", "of smaller", "step ms", "overhead", "sampling", "of bandwidth"]
        if "mixed" in workload["kinds"]:
            titles += ["mixed tokens/s", "of them decode"]
        lines = [titles]
        for entry in entries:
            line = [str(entry["batch"])]
            if prefill := entry.get("prefill"):
                line += [_spread(prefill["tokens_per_s"])]
            if decode := entry.get("decode"):
                share = relative.get(entry["batch"])
                line += [_spread(decode["tokens_per_s"]), "" if share is None else f"{share:.2f} x"]
                line += [f"{decode['step_s']['median'] * 1e3:.1f}"]
                line += [_percent(decode[key]) for key in ("overhead", "sampling", "bandwidth_share")]
            if mixed := entry.get("mixed"):
                line += [_spread(mixed["tokens_per_s"]), f"{mixed['decode_tokens_per_s']['median']:,.0f}"]
            lines.append(line)
        blocks.append(f"depth {depth:,}\n{columns(lines)}")
        if lanes := _lanes(entries, workload["kinds"]):
            blocks.append(lanes)
    blocks.append(
        f"Medians of {workload['rounds']} rounds (lowest-highest). Of smaller: over the best of all smaller\n"
        "batches. Overhead: share of the time between native calls, all of it Python's. Of bandwidth: bytes\n"
        "that a step must read, over what the machine was measured to read in that time.\n"
        f"At most, on average over a measurement: {_most(result, 'allocations_per_step'):g} native allocations and "
        f"{_most(result, 'bytes_copied_per_step'):,g} KV bytes\ncopied in a step."
    )
    return "\n\n".join(blocks)


def _lanes(entries: list[dict[str, Any]], kinds: list[str]) -> str:
    """What the lanes did, where there are several."""
    lines = [["batch", "", "lane", "busy", "hand-overs a step", "us each"]]
    for entry in entries:
        for kind in kinds:
            lanes = entry["lanes"][kind]
            for name, lane in lanes.items() if len(lanes) > 1 else ():
                each = lane["hand_over_s"]
                lines.append(
                    [
                        str(entry["batch"]),
                        kind,
                        name,
                        _percent(lane["busy"]),
                        f"{lane['hand_overs_per_step']['median']:.1f}",
                        f"{each['median'] * 1e6:.0f}" if each else "",
                    ]
                )
    return columns(lines) if len(lines) > 1 else ""


def _most(result: dict[str, Any], quantity: str) -> float:
    kinds = result["workload"]["kinds"]
    return max(float(entry[kind][quantity]["high"]) for entry in result["results"] for kind in kinds)


def _spread(summary: dict[str, Any]) -> str:
    return f"{_rate(summary['median'])} ({_rate(summary['low'])}-{_rate(summary['high'])})"


def _rate(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:.1f}"


def _percent(summary: dict[str, Any]) -> str:
    return f"{summary['median']:.1%}"


def replay_table(result: dict[str, Any]) -> str:
    """Percentiles of what users and the machine saw."""
    trace, seen = result["trace"], result["replay"]
    lines = [["", "p50", "p90", "p99", "mean", "largest"]]
    for name, key, scale in (
        ("TTFT, ms", "ttft_s", 1e3),
        ("ITL, ms", "itl_s", 1e3),
        ("whole request, s", "request_s", 1.0),
        ("new tokens in a second", "new_tokens_in_a_second", 1.0),
        ("rows in a second", "rows_in_a_second", 1.0),
    ):
        if (spread := seen[key]) is not None:
            values = [spread[of] * scale for of in ("p50", "p90", "p99", "mean", "max")]
            lines.append([name, *(f"{value:,.0f}" if value >= 100 else f"{value:,.2f}" for value in values)])
    return (
        f"{seen['requests']:,} requests of {trace['file']}, lengths x {trace['length_factor']:.3g}, arrivals at "
        f"{trace['speed']:g} x speed: {seen['prompt_tokens']:,} prompt tokens, {seen['new_tokens']:,} new\n"
        f"{seen['seconds']:,.1f} s: {seen['new_tokens_per_s']:,.1f} new tokens/s, {seen['tokens_per_s']:,.1f} with "
        f"prompts, {seen['requests_per_s']:,.2f} requests/s; {seen['steps']:,} steps, {seen['rows']:,} rows, "
        f"{seen['preemptions']:,} preemptions, overhead {seen['overhead']:.1%}, idle {seen['idle_share']:.1%}\n\n"
        f"{columns(lines)}"
    )


def serve_table(result: dict[str, Any]) -> str:
    """Percentiles of what a server's users saw, and what the client cost."""
    seen, server, load = result["serve"], result["server"], result["load"]
    lines = [["", "p50", "p90", "p99", "mean", "largest"]]
    for name, key, scale in (
        ("TTFT, ms", "ttft_s", 1e3),
        ("ITL, ms", "itl_s", 1e3),
        ("whole request, s", "request_s", 1.0),
        ("sent late, ms", "late_s", 1e3),
    ):
        if (spread := seen[key]) is not None:
            values = [spread[of] * scale for of in ("p50", "p90", "p99", "mean", "max")]
            lines.append([name, *(f"{value:,.0f}" if value >= 100 else f"{value:,.2f}" for value in values)])
    how = (
        f"{load['concurrency']} at once" if load["concurrency"]
        else f"{load['rate']:g} a second" if load["rate"]
        else f"arrivals of {load['trace']} at {load['speed']:g} x speed"
    )  # fmt: skip
    cpu = seen["client_cpu_us_per_token"]
    failures = [
        f"failed: {count:,} x {kind} ({seen['failure_examples'][kind]})" for kind, count in seen["failures"].items()
    ]
    return "\n".join(
        [
            f"{server['model']} at {server['url']}, {server['api']}; {how}, at most {seen['most_at_once']} running",
            f"{seen['completed']:,} of {seen['requests']:,} requests in {seen['seconds']:,.1f} s: "
            f"{seen['new_tokens_per_s']:,.1f} new tokens/s, {seen['tokens_per_s']:,.1f} with prompts, "
            f"{seen['requests_per_s']:,.2f} requests/s; tokens as the {seen['tokens_counted_by']} counts them",
            f"the client took {seen['client_cpu_s']:.2f} s of CPU"
            + ("" if cpu is None else f", {cpu:,.0f} us a token"),
            *failures,
            "",
            columns(lines),
        ]
    )


def kernels_table(result: dict[str, Any]) -> str:
    """One block of lines per kernel and shape, one line per type and number of rows."""
    measured = [f"{when + ':':8}{Ceilings(**ceilings)}" for when, ceilings in result["ceilings"].items()]
    measured.append(
        f"given new memory: {result['first_touch_bytes_per_s'] / 1e9:,.1f} GB/s, the most that a load can do"
    )
    blocks = ["\n".join(measured)]
    results = result["results"]
    for kernel, shape in dict.fromkeys((entry["kernel"], entry["shape"]) for entry in results):
        lines = [["type", "rows", "us", "G multiply-adds/s", "GB/s", "of ceiling", "bound by"]]
        for entry in results:
            if (entry["kernel"], entry["shape"]) == (kernel, shape):
                lines.append(
                    [
                        entry["type"],
                        str(entry["rows"]),
                        f"{entry['seconds']['median'] * 1e6:,.1f}",
                        f"{entry['macs_per_s'] / 1e9:,.1f}" if entry["macs"] else "",
                        f"{entry['bytes_per_s'] / 1e9:,.2f}" if entry["bytes"] else "",
                        f"{entry['of_ceiling']:.1%}",
                        entry["bound_by"],
                    ]
                )
        blocks.append(f"{kernel} {shape}\n{columns(lines)}")
    blocks.append(
        f"Medians of {result['work']['rounds']} rounds. Of ceiling: the least time that the multiply-adds (at the\n"
        "unit's peak) or the bytes (at the read bandwidth) can take, whichever is longer, over the time they took;\n"
        "the higher of the two measurements of a ceiling counts."
    )
    return "\n\n".join(blocks)
