"""`tandem inspect`: what a model's files hold, and the memory that it will need."""

from __future__ import annotations

import json
from collections.abc import Iterable
from typing import Annotated, Any

import typer

from tandem.cli.options import EngineOptions, Model, ModelArgument, chosen_model
from tandem.errors import MemoryPlanError


def inspect(
    *,
    model: ModelArgument = None,
    model_option: Model = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
    tensors: Annotated[bool, typer.Option("--tensors", help="List every tensor.")] = False,
    sequences: Annotated[int, typer.Option(min=1, help="Plan memory for so many sequences at once.")] = 1,
    engine: EngineOptions,
) -> None:
    """Show what a model's files hold and the memory that it will need; reads headers only."""
    from tandem.cli.facts import describe_model, describe_tensors
    from tandem.engine.build import check_limits, plan_engine
    from tandem.llm import BUNDLED_MODEL
    from tandem.models.open import model_spec
    from tandem.models.tokenizer import open_tokenizer
    from tandem.weights.open import open_checkpoint

    config = engine.config(sequences)
    checkpoint = open_checkpoint(chosen_model(model, model_option) or BUNDLED_MODEL)
    spec = model_spec(checkpoint)
    check_limits(spec, config)
    facts = describe_model(checkpoint, spec, open_tokenizer(checkpoint))
    if tensors:
        facts["tensors"] = describe_tensors(checkpoint)
    try:
        planned = plan_engine(checkpoint, config)
    except MemoryPlanError as error:
        # What the file holds is worth reading on a machine that cannot run it.
        facts["memory"], facts["memory_error"] = None, str(error)
        table = str(error)
    else:
        planned.close()
        facts["memory"], facts["memory_error"] = planned.plan.to_json(), None
        table = f"{planned.plan.table()}\n{_kv_per_position(facts['memory'])}"
    if as_json:
        print(json.dumps(facts, ensure_ascii=False))
    else:
        _print_facts(facts)
        print(f"\nMemory\n{table}")


def _print_facts(facts: dict[str, Any]) -> None:
    from tandem.memory.system import counted, format_bytes

    tokenizer, norm, ffn = facts["tokenizer"], facts["norm"], facts["ffn"]
    size = f"{counted(len(facts['files']), 'file')}, {format_bytes(facts['file_bytes'])}"
    ends = ", ".join(map(str, tokenizer["eos_ids"])) or "none"
    rows = [
        ("Model", facts["name"]),
        ("File", f"{facts['path']} ({facts['format']}, {size})"),
        ("Architecture", f"{facts['architecture']}, {facts['parameters'] / 1e6:,.1f} M parameters"),
        ("Layers", f"{facts['layers']}, hidden {facts['hidden']:,}, FFN {ffn['size']:,} ({ffn['activation']})"),
        *(("Attention", _attention(kind)) for kind in facts["attention"]),
        ("Norm", f"RMS, eps {norm['eps']:g}, {'before and after' if norm['post_norms'] else 'before'} each block"),
        ("Context", f"{facts['context']:,} positions"),
        ("Tokenizer", f"{tokenizer['kind']}, {tokenizer['tokens']:,} tokens, BOS {tokenizer['bos_id']}, end {ends}"),
        ("Chat template", ", ".join(tokenizer["chat_templates"]) or "none"),
        ("Sampling", ", ".join(f"{k} {v}" for k, v in facts["sampling_defaults"].items()) or "no defaults"),
    ]
    for name, entry in facts["tensor_types"].items():
        rows.append((name, f"{counted(entry['tensors'], 'tensor')}, {format_bytes(entry['bytes'])}"))
    for reason, count in facts["skipped"].items():
        rows.append(("Skipped", f"{counted(count, 'tensor')}: {reason}"))
    _print_columns(rows)
    if "tensors" in facts:
        print("\nTensors")
        _print_columns(
            (t["name"], t["type"], " x ".join(map(str, t["shape"])), format_bytes(t["bytes"])) for t in facts["tensors"]
        )


def _print_columns(rows: Iterable[tuple[str, ...]]) -> None:
    rows = list(rows)
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    for row in rows:
        print("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())


def _attention(kind: dict[str, Any]) -> str:
    from tandem.memory.system import counted

    reach = "full" if kind["window"] is None else f"window {kind['window']:,}"
    heads = f"{kind['heads']} heads and {kind['kv_heads']} KV heads of {kind['head_dim']}"
    parts = [f"{counted(kind['layers'], 'layer')}, {reach}: {heads}"]
    rope = kind["rope"]
    if rope is None:
        parts.append("no rope")
    else:
        factor = f" / {rope['linear_factor']:g}" if rope["linear_factor"] != 1 else ""
        factor += ", frequency factors" if rope["frequency_factors"] else ""
        parts.append(f"rope {rope['base']:,.0f}{factor}")
    parts += [text for key, text in (("qk_norm", "QK-norm"), ("qkv_bias", "QKV biases")) if kind[key]]
    if kind["softcap"] is not None:
        parts.append(f"soft cap {kind['softcap']:g}")
    return ", ".join(parts)


def _kv_per_position(memory: dict[str, Any]) -> str:
    from tandem.memory.system import format_bytes

    per_position = [(group["window"], group["page_bytes"] // group["page_size"]) for group in memory["kv_groups"]]
    text = f"KV per position: {format_bytes(sum(size for _, size in per_position))}"
    if any(window is not None for window, _ in per_position):
        lasting = sum(size for window, size in per_position if window is None)
        text += f", of which {format_bytes(lasting)} stay when the position has left the windows"
    return text
