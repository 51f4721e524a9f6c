"""JSON of many schemas from a model that knows no JSON: at temperature 1, answers that are complete validate."""

from __future__ import annotations

import json
import random
from typing import Any

import jsonschema
import pytest

from tandem.engine.sampling_params import SamplingParams
from tandem.llm import LLM
from tandem.text.grammar import Grammar

BUDGET = 256
NAMES = ("name", "age", "größe", "is_old", "tags", "where", "a b", "n1", "kind", "notes")


def schema_of(draw: random.Random, depth: int = 0) -> dict[str, Any]:
    """A schema whose texts are bounded: strings, arrays and objects have a largest size."""
    kinds = ["string", "pattern", "integer", "number", "boolean", "enum", "null"]
    kind = draw.choice([*kinds, *(["object"] * 3 + ["array", "anyOf"] if depth < 2 else [])]) if depth else "object"
    if kind == "string":
        return {"type": "string", "minLength": draw.randint(0, 3), "maxLength": draw.randint(3, 16)}
    if kind == "pattern":
        return {"type": "string", "pattern": draw.choice(["^[A-Z][a-z]{2,8}$", r"^\d{2}:\d{2}$", "^(yes|no|maybe)$"])}
    if kind == "integer":
        low = draw.randint(-1000, 1000)
        return {"type": "integer", "minimum": low, "maximum": low + draw.randint(0, 5000)}
    if kind == "number":
        return {"type": "number", "minimum": 0, "maximum": draw.randint(1, 100), "multipleOf": 0.25}
    if kind == "enum":
        return {"enum": draw.sample(["red", "green", 3, 4.5, None, True, 'ü "x"'], draw.randint(1, 4))}
    if kind == "array":
        low = draw.randint(0, 2)
        return {
            "type": "array",
            "items": schema_of(draw, depth + 1),
            "minItems": low,
            "maxItems": low + draw.randint(0, 2),
        }
    if kind == "anyOf":
        return {"anyOf": [schema_of(draw, depth + 1) for _ in range(2)]}
    if kind == "object":
        names = draw.sample(NAMES, draw.randint(1, 4))
        return {
            "type": "object",
            "properties": {name: schema_of(draw, depth + 1) for name in names},
            "required": draw.sample(names, draw.randint(0, len(names))),
            "additionalProperties": False,
        }
    return {"type": kind}


def complete(count: int, seed: int) -> float:
    """The share of `count` schemas whose answers are complete within their budget; all of those must validate."""
    draw = random.Random(seed)
    schemas = [schema_of(draw) for _ in range(count)]
    params = [
        SamplingParams(temperature=1.0, top_k=0, max_tokens=BUDGET, seed=number, grammar=Grammar.json_schema(schema))
        for number, schema in enumerate(schemas)
    ]
    ended = 0
    with LLM(max_sequences=32, context=320) as model:
        outputs = model.generate(["Once upon a time there was a king. As JSON: "] * count, params)
    for schema, output in zip(schemas, outputs, strict=True):
        assert output.error is None, (output.error, schema)
        [sample] = output.outputs
        if sample.finish_reason == "stop":
            ended += 1
            jsonschema.validate(json.loads(sample.text), schema)
        else:
            assert sample.finish_reason == "length" and len(sample.token_ids) == BUDGET
    print(f"{ended} of {count} complete")
    return ended / count


def test_a_few_schemas() -> None:
    assert complete(24, seed=1) >= 0.9


@pytest.mark.slow
def test_three_hundred_schemas() -> None:
    assert complete(300, seed=2) >= 0.9
