"""Calls in a piece of text that is complete: JSON objects, or calls written as Python."""

from __future__ import annotations

import ast
import json
from collections.abc import Mapping, Sequence

# Name and arguments, these as JSON text.
Call = tuple[str, str]
_LONGEST = 1 << 16


def calls_in(text: str, parameters: Mapping[str, Sequence[str]]) -> list[Call] | None:
    """The calls that a text consists of; None where it is anything else.

    It may be a JSON object `{"name": …, "parameters": {…}}` or a list of them, or Python: calls with literal arguments,
    a list of such calls, or calls within `print(…)`. parameters: of each tool that may be called, in order.
    """
    if len(text) > _LONGEST:
        return None
    try:
        found = json.loads(text)
    except (ValueError, RecursionError):
        return _python_calls(text, parameters)
    calls = [_json_call(each, parameters) for each in (found if isinstance(found, list) else [found])]
    known = [call for call in calls if call is not None]
    return known if known and len(known) == len(calls) else None


def _json_call(found: object, parameters: Mapping[str, Sequence[str]]) -> Call | None:
    if not isinstance(found, dict):
        return None
    name, arguments = found.get("name"), found.get("parameters", found.get("arguments", {}))
    if not isinstance(name, str) or name not in parameters or not isinstance(arguments, dict):
        return None
    return name, json.dumps(arguments, ensure_ascii=False)


def _python_calls(text: str, parameters: Mapping[str, Sequence[str]]) -> list[Call] | None:
    try:
        body = ast.parse(text.strip()).body
        expressions: list[ast.expr] = []
        for statement in body:
            if not isinstance(statement, ast.Expr):
                return None
            value = statement.value
            expressions += value.elts if isinstance(value, ast.List) else [value]
        return [_python_call(each, parameters) for each in expressions] or None
    except (SyntaxError, ValueError, TypeError, RecursionError, MemoryError):
        return None


def _python_call(node: ast.expr, parameters: Mapping[str, Sequence[str]]) -> Call:
    """Raises ValueError or TypeError for what is no call of a tool with literal arguments."""
    if not isinstance(node, ast.Call):
        raise ValueError
    name = ast.unparse(node.func)
    if name == "print" and "print" not in parameters and len(node.args) == 1:
        return _python_call(node.args[0], parameters)
    if name not in parameters or len(node.args) > len(parameters[name]):
        raise ValueError
    arguments = dict(zip(parameters[name], map(ast.literal_eval, node.args), strict=False))
    for keyword in node.keywords:
        if keyword.arg is None:
            raise ValueError
        arguments[keyword.arg] = ast.literal_eval(keyword.value)
    return name, json.dumps(arguments, ensure_ascii=False, allow_nan=False)
