"""A sequence: one sample of a request while the engine works on it."""

from __future__ import annotations

from array import array
from enum import Enum, auto
from typing import TYPE_CHECKING

from tandem.engine.pooling import Pool
from tandem.engine.request import Request
from tandem.engine.sampling import SamplingState
from tandem.memory.kv_cache import PageTables

if TYPE_CHECKING:
    from llguidance import LLMatcher

# Steps of head start that one level of priority is worth.
HEAD_START = 1000


class State(Enum):
    WAITING = auto()  # in the queue, new or preempted; owns no pages
    PARKED = auto()  # waits until another sequence has computed a prefix that both have
    RUNNING = auto()  # owns a slot and pages
    JOINED = auto()  # another sample of its request computes the prompt for it
    DONE = auto()  # ended; owns nothing


class Sequence:
    """tokens: prompt and answer, int32. computed: leading positions whose KV is in its pages.
    flying: positions behind those that steps in flight compute; ahead: tokens that such steps sample, not yet known.
    stale: flying, if those were computed from a wrong token; nothing more is computed until they are back.

    order: sorts the queue and picks victims; first (arrival step + priority * HEAD_START), then arrival, then sample.
    forks: the request's other samples, until this one's prompt is computed and they share its pages.
    scored: prompt tokens whose logprobs have been delivered (the first has none); prompt_len when none are asked for.
    max_tokens: the request's, and what the context leaves. sampling: made when the first token is sampled.
    matcher: of the request's grammar, at its start. pool: where the prompt is embedded and not continued.
    """

    __slots__ = (
        "ahead",
        "announced",
        "cached_tokens",
        "computed",
        "flying",
        "forks",
        "index",
        "keys",
        "matcher",
        "max_tokens",
        "order",
        "params",
        "pool",
        "prompt_len",
        "request_id",
        "root",
        "sampling",
        "scored",
        "seed",
        "slot",
        "stale",
        "state",
        "stop_ids",
        "tables",
        "tokens",
    )

    def __init__(
        self,
        request: Request,
        index: int,
        *,
        order: tuple[int, int, int],
        tables: PageTables,
        stop_ids: frozenset[int],
        max_tokens: int,
        seed: int,
        matcher: LLMatcher | None = None,
    ) -> None:
        self.request_id = request.id
        self.params = request.params
        self.index = index
        self.pool = None if request.pooling is None else Pool(request.pooling)
        self.tokens = array("i", request.prompt)
        self.prompt_len = len(self.tokens)
        self.order = order
        self.tables = tables
        self.stop_ids = stop_ids
        self.max_tokens = max_tokens
        self.seed = seed
        self.matcher = matcher
        self.root = request.cache_salt.encode()
        self.state = State.WAITING if index == 0 else State.JOINED
        self.computed = 0
        self.flying = 0
        self.ahead = 0
        self.stale = 0
        self.cached_tokens = 0
        self.scored = 1 if request.params.prompt_logprobs is not None and index == 0 else self.prompt_len
        self.slot = -1
        self.keys: list[bytes] = []
        self.announced: set[bytes] = set()
        self.forks: list[Sequence] = []
        self.sampling: SamplingState | None = None

    @property
    def start(self) -> int:
        """The first position of which no step is in flight."""
        return self.computed + self.flying

    @property
    def pending(self) -> int:
        """Rows still to compute before the next token can be sampled; 1 while decoding."""
        return len(self.tokens) + self.ahead - self.computed - self.flying

    @property
    def generated(self) -> int:
        return len(self.tokens) - self.prompt_len
