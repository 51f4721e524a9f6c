"""From a configuration to a plan: budgets, containers, and what is said when something does not fit."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from paths import SHARED
from tandem.engine import build
from tandem.engine.build import EngineConfig, PlannedEngine, plan_engine
from tandem.errors import MemoryPlanError
from tandem.memory.system import available_bytes
from tandem.weights.open import open_checkpoint

MODEL = SHARED / "models" / "tandem-stories-22m"
MIB = 2**20


def plan(**config: object) -> PlannedEngine:
    planned = plan_engine(open_checkpoint(MODEL), EngineConfig(threads=1, **config))  # type: ignore[arg-type]
    planned.close()
    return planned


def container(root: Path, limit: int) -> Path:
    """A machine with 64 GiB free, in a control group that has `limit` bytes and uses none."""
    files = {
        "proc/meminfo": f"MemAvailable: {64 * 2**20} kB\n",
        "proc/self/cgroup": "0::/\n",
        "sys/fs/cgroup/memory.max": f"{limit}\n",
        "sys/fs/cgroup/memory.current": "0\n",
    }
    for name, text in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return root


@pytest.fixture
def limited(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(build, "available_bytes", lambda: available_bytes(tmp_path))
    return tmp_path


@pytest.mark.parametrize("memory", ["auto", None])
@pytest.mark.parametrize("mib", [340, 380])
def test_the_limit_of_a_container_is_the_budget(limited: Path, memory: str | None, mib: int) -> None:
    container(limited, mib * MIB)
    found = plan(memory=memory).plan
    assert found.total <= (mib - 256) * MIB, "256 MiB are left to the rest"
    if memory == "auto":
        page = max(group.group.page_bytes for group in found.groups)
        assert found.total > (mib - 256) * MIB - 2 * page, "auto takes all that is free"


def test_auto_takes_no_more_than_the_sequences_can_use(limited: Path) -> None:
    container(limited, 2**40)
    found = plan(memory="auto", max_sequences=4).plan
    assert found.kv_positions == 4 * 2048


def test_a_context_that_nobody_named_shrinks_until_it_fits(limited: Path) -> None:
    container(limited, 2**40)
    config = {"max_sequences": 8, "full_sequences": 8, "rows": 32}
    whole = plan(**config).plan
    container(limited, whole.total + 256 * MIB - 2 * MIB)
    found = plan(**config).plan
    assert 0 < found.limits.context < whole.limits.context == 2048
    with pytest.raises(MemoryPlanError):
        plan(**config, context=found.limits.context + 1)


def test_a_refusal_names_what_would_fit_and_it_does() -> None:
    config = {"memory": "48MiB", "max_sequences": 8, "rows": 32}
    with pytest.raises(MemoryPlanError) as refusal:
        plan(**config, full_sequences=8, context=2048)
    found = re.search(r"a context of ([\d,]+) or (\d+) sequences? of this context", str(refusal.value))
    assert found, str(refusal.value)
    context, sequences = int(found[1].replace(",", "")), int(found[2])
    assert 0 < context < 2048 and 0 < sequences < 8
    assert plan(**config, full_sequences=8, context=context).plan.kv_sequences >= 8
    fewer = {**config, "max_sequences": sequences}
    assert plan(**fewer, full_sequences=sequences, context=2048).plan.kv_sequences >= sequences


def test_memory_that_is_gone_by_the_time_of_loading_is_said(limited: Path) -> None:
    container(limited, 400 * MIB)
    planned = plan_engine(open_checkpoint(MODEL), EngineConfig(threads=1, memory="auto"))
    container(limited, 20 * MIB)
    with pytest.raises(MemoryPlanError, match=r"the plan takes .* and this machine has 20.0 MiB free"):
        planned.load([])
    planned.close()
