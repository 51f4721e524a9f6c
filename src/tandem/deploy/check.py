"""Whether a service that should be running is, answers, and is as fast as its plan lets one expect."""

from __future__ import annotations

import json
import time
import urllib.error
import urllib.request
from dataclasses import dataclass
from typing import Any

from tandem.bench.ceilings import measure_ceilings
from tandem.errors import DeployError
from tandem.memory.plan import MemoryPlan

_TOKENS = 64
_PROMPT = "Once upon a time"
_TIMEOUT = 300.0


@dataclass(frozen=True, slots=True)
class Throughput:
    """Tokens per second of one sequence's decode. expected: None where nothing says what this device can do."""

    measured: float
    expected: float | None


class Running:
    """A service at an address. Raises DeployError for everything that is not as it should be."""

    def __init__(self, host: str, port: int, key: str | None = None) -> None:
        host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)
        self.address = f"http://{f'[{host}]' if ':' in host else host}:{port}"
        self._key = key

    def health(self) -> str:
        """The name of the first model that it serves."""
        self._ask("/health")
        models = self._ask("/v1/models").get("data")
        if not models:
            raise DeployError(f"{self.address} serves no model")
        return str(models[0]["id"])

    def complete(self, model: str, tokens: int) -> tuple[int, float]:
        """Tokens that came and seconds that they took."""
        body = {"model": model, "prompt": _PROMPT, "max_tokens": tokens, "temperature": 0, "ignore_eos": True}
        start = time.perf_counter()
        answer = self._ask("/v1/completions", body)
        seconds = time.perf_counter() - start
        try:
            return int(answer["usage"]["completion_tokens"]), seconds
        except (KeyError, TypeError, ValueError):
            raise DeployError(f"{self.address} answers a completion without saying how many tokens it has") from None

    def throughput(self, model: str) -> float:
        """Of decode: what a long answer takes beyond a short one. The best of three."""
        self.complete(model, 2)
        best = 0.0
        for _ in range(3):
            short, least = self.complete(model, 1)
            long, most = self.complete(model, _TOKENS)
            if long > short and most > least:
                best = max(best, (long - short) / (most - least))
        if not best:
            raise DeployError(f"{self.address} answers with too few tokens to tell its throughput")
        return best

    def _ask(self, path: str, body: dict[str, Any] | None = None) -> dict[str, Any]:
        request = urllib.request.Request(self.address + path)
        if self._key is not None:
            request.add_header("Authorization", f"Bearer {self._key}")
        if body is not None:
            request.data = json.dumps(body).encode()
            request.add_header("Content-Type", "application/json")
        try:
            with urllib.request.urlopen(request, timeout=_TIMEOUT) as answer:
                found = json.loads(answer.read())
        except urllib.error.HTTPError as error:
            said = error.read().decode(errors="replace")[:200]
            raise DeployError(f"{self.address}{path} answers {error.code}: {said}") from None
        except (OSError, ValueError) as error:
            reason = getattr(error, "reason", error)
            raise DeployError(f"{self.address}{path} does not answer: {reason}; is the service running?") from None
        if not isinstance(found, dict):
            raise DeployError(f"{self.address}{path} answers with something else than a JSON object")
        return found


def expected_throughput(plan: MemoryPlan, threads: int) -> float | None:
    """What one sequence's decode cannot exceed: every token reads the plan's weights once, at the rate at which this
    machine reads memory, measured now. Only for plans of the CPU alone.
    """
    if [device.device for device in plan.devices] != ["cpu"]:
        return None
    return measure_ceilings(threads).read / plan.devices[0].weights
