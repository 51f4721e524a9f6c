"""`tandem plan-memory`: the engine's own plan, or a refusal that says what would fit."""

from __future__ import annotations

import json
import re

from commands import error_of, tandem

from tandem.engine.build import EngineConfig, plan_engine
from tandem.llm import BUNDLED_MODEL
from tandem.weights.open import open_checkpoint


def test_it_is_the_engines_plan() -> None:
    shown = json.loads(tandem("plan-memory", "--json", "--context", 600, "--sequences", 5, "--memory", "8GiB").stdout)
    config = EngineConfig(context=600, max_sequences=5, full_sequences=5, memory="8GiB")
    planned = plan_engine(open_checkpoint(BUNDLED_MODEL), config)
    planned.close()
    assert shown == planned.plan.to_json()
    assert shown["kv_sequences"] == 5
    assert shown["total"] == shown["staging"] + shown["sampler"] + sum(device["total"] for device in shown["devices"])


def test_for_a_reader() -> None:
    shown = tandem("plan-memory", BUNDLED_MODEL, "--sequences", 3)
    assert shown.exit_code == 0
    for text in ("up to 3 sequences", "weights", "KV", "workspace", "staging", "sampler", "window 256"):
        assert text in shown.stdout


def test_what_a_refusal_offers_fits() -> None:
    arguments = ["plan-memory", "--sequences", 64, "--memory", "160MiB", "--context"]
    offer = re.search(r"what would fit is a context of ([\d,]+) or (\d+) sequence", error_of(tandem(*arguments, 2048)))
    assert offer is not None
    context, sequences = (int(number.replace(",", "")) for number in offer.groups())
    assert tandem(*arguments, context).exit_code == 0
    assert tandem(*arguments, context + 1).exit_code == 2
    fewer = ["plan-memory", "--context", 2048, "--memory", "160MiB", "--sequences"]
    assert tandem(*fewer, sequences).exit_code == 0
    assert tandem(*fewer, sequences + 1).exit_code == 2


def test_the_model_is_an_argument_or_an_option() -> None:
    plan = tandem("plan-memory", BUNDLED_MODEL).stdout
    assert (
        plan
        == tandem("plan-memory", "-m", BUNDLED_MODEL).stdout
        == tandem("plan-memory", "--model", BUNDLED_MODEL).stdout
    )
    both = tandem("plan-memory", BUNDLED_MODEL, "-m", BUNDLED_MODEL)
    assert "give the model once" in error_of(both)
