"""From logits to tokens. One row's logits go through these operations, in this order:

1. `logit_bias` is added.
2. `repetition_penalty` r, for each token of prompt or output: x / r where x > 0, else x * r.
3. For each token of the output, produced c times: x - frequency_penalty * c, then x - presence_penalty.
4. While fewer than `min_tokens` tokens are generated, the stop tokens are masked.
5. Tokens that a grammar's mask does not allow are masked.
6. `temperature` 0: the token of the highest logit. Otherwise logits are divided by the temperature.
7. `top_k` keeps the k highest.
8. `top_p` keeps, of those, the shortest prefix by falling probability that holds at least p of their mass.
9. `min_p` keeps tokens of at least min_p times the likeliest one's probability.
10. Gumbel-max: the survivor with the highest sum of logit and noise.

Ties, in all of them, go to the lower token id. A token's noise depends on seed, sample index, position and
token id and on nothing else, so a row's token is the same in every batch; native/kernels/philox.h has the layout.
The arithmetic is the same on every instruction set, bit for bit; native/src/sampler.h states it.

Log-probabilities are those of the raw logits, before step 1, as in vLLM.
"""

from __future__ import annotations

import secrets
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from tandem import _native
from tandem.devices.candidates import TAKES_SLOT, CandidateBuffers
from tandem.engine.request import TokenLogprobs
from tandem.engine.sampling_params import SamplingParams

if TYPE_CHECKING:
    from llguidance import LLMatcher

Float32Array = npt.NDArray[np.float32]
Int32Array = npt.NDArray[np.int32]
UInt32Array = npt.NDArray[np.uint32]

_FAILURES = {
    1: "The model's logits are not finite: its weights are damaged, or the device computed wrongly.",
    2: "No token can be chosen: every token of the vocabulary is masked.",
}
_NEEDS_ROW = 3
# Tokens for which a sequence's steps are waited for, after one whose token the device could not know.
_CAUTION = 16
_NO_MASKS: list[UInt32Array | None] = []


def draw_seed() -> int:
    """A seed from the operating system, below 2**53 so that every reader of JSON can repeat it."""
    return secrets.randbits(53)


class SamplingState:
    """What sampling knows of one generated sequence. All samples of a request share `seed`, which is drawn
    where the request gave none, and differ in `sample_index`. matcher: of the request's grammar, this sequence's own;
    unread: a token that it has not been shown yet. caution: tokens still to come that a device shall not guess; whole:
    the next one is chosen from the whole row.
    """

    __slots__ = (
        "_penalized",
        "caution",
        "generated",
        "matcher",
        "native",
        "params",
        "prompt_length",
        "sample_index",
        "seed",
        "unread",
        "whole",
    )

    def __init__(
        self,
        params: SamplingParams,
        prompt: Sequence[int] | Int32Array,
        *,
        vocab: int,
        eos_token_ids: Collection[int] = (),
        seed: int | None = None,
        sample_index: int = 0,
        max_tokens: int = 0,
        matcher: LLMatcher | None = None,
    ) -> None:
        """prompt: token ids. seed: used where `params` has none. max_tokens: the most that this sequence may
        generate, which sizes the memory of the penalties.
        """
        self.params = params
        chosen = params.seed if params.seed not in (None, -1) else seed
        self.seed = draw_seed() if chosen is None else chosen
        self.sample_index = sample_index
        self.prompt_length = len(prompt)
        self.generated = 0
        self.matcher = matcher
        self.unread: int | None = None
        self.caution = 0
        self.whole = False
        self._penalized = (
            params.repetition_penalty != 1.0 or params.presence_penalty != 0.0 or params.frequency_penalty != 0.0
        )
        counted = np.asarray(prompt if self._penalized else (), dtype=np.int32)
        self.native = _native.SamplerSequence(
            vocab=vocab,
            seed=self.seed % 2**64,
            sample_index=sample_index,
            temperature=params.temperature,
            top_k=params.top_k,
            top_p=params.top_p,
            min_p=params.min_p,
            repetition_penalty=params.repetition_penalty,
            presence_penalty=params.presence_penalty,
            frequency_penalty=params.frequency_penalty,
            min_position=self.prompt_length + params.min_tokens,
            logprobs=-1 if params.logprobs is None else params.logprobs,
            logit_bias=list((params.logit_bias or {}).items()),
            stop_tokens=sorted(params.stop_ids(eos_token_ids)) if params.min_tokens else [],
            prompt=counted,
            capacity=len(counted) + max_tokens,
        )

    @property
    def needs_token(self) -> bool:
        """Whether nothing can be asked for its next token before its last one is known."""
        return self._penalized or self.matcher is not None

    @property
    def position(self) -> int:
        """Of the next token: how many tokens precede it."""
        return self.prompt_length + self.generated

    def distrust(self, *, whole: bool = False) -> None:
        """A device guessed wrongly, or with `whole` could not choose: so it shall not for some tokens."""
        self.caution = _CAUTION
        self.whole = whole

    def append(self, token: int) -> None:
        """Records a generated token."""
        self.generated += 1
        self.caution -= self.caution > 0
        self.whole = False
        self.unread = token
        if self._penalized:
            self.native.append(token)


@dataclass(slots=True)
class Sampled:
    """One call's results. They are valid until the next call: `tokens` is a view of the sampler's memory.

    tokens: int32 [n], -1 for a row that failed. logprobs: by row, for rows that asked. errors: by row, one
    sentence for each that failed. lacking: rows without a token, as that needs their logits.
    """

    tokens: Int32Array
    logprobs: dict[int, TokenLogprobs]
    errors: dict[int, str]
    lacking: frozenset[int] = frozenset()


class Sampler:
    """Samples up to `max_rows` rows of `vocab` logits in one native call; its memory is planned here.

    One call at a time. isa: which of the equal implementations runs: scalar, avx2, vnni256, avxvnni, avx512 or '',
    the fastest.
    threads: over which the rows are spread, the caller's included; what they compute does not depend on it.
    """

    def __init__(self, vocab: int, max_rows: int, isa: str = "", threads: int = 1) -> None:
        self._native = _native.Sampler(vocab, max_rows, threads, isa)
        self._vocab = vocab
        self._tokens = self._native.tokens[:, 0]
        self._status = self._native.status[:, 0]
        self._ranks = self._native.ranks[:, 0]
        self._logprob_tokens = self._native.logprob_tokens
        self._logprobs = self._native.logprobs
        self._positions = np.zeros(max_rows, dtype=np.int32)
        self._mask_rows = np.zeros(max_rows, dtype=np.int32)

    def sample(
        self,
        logits: Float32Array,
        states: Sequence[SamplingState],
        positions: Sequence[int] | Int32Array | None = None,
        masks: Sequence[UInt32Array | None] | None = None,
    ) -> Sampled:
        """Samples row i of `logits`, float32 [at least n, vocab] and left as they are, for states[i].

        positions: of the sampled tokens; None takes the states' next ones. masks: per row None or
        ceil(vocab / 32) words, where bit t % 32 of word t // 32 allows token t.
        """
        n = len(states)
        at = self._positions[:n]
        at[:] = [state.prompt_length + state.generated for state in states] if positions is None else positions
        self._native.sample(logits, [state.native for state in states], at, _NO_MASKS if masks is None else list(masks))
        return self._sampled(states)

    def ask(
        self,
        buffers: CandidateBuffers,
        states: Sequence[SamplingState],
        samples: int,
        masks: Sequence[UInt32Array | None] | None = None,
        positions: Sequence[int] | None = None,
    ) -> None:
        """Asks a device for what sampling states[i] from row i will need, and for rows up to `samples` whole.

        masks and positions: as for `sample`. A row for which there is no room is asked for whole.
        """
        n = len(states)
        at, mask_rows = self._positions[:n], self._mask_rows[:n]
        at[:] = [state.prompt_length + state.generated for state in states] if positions is None else positions
        mask_rows[:] = -1
        if masks is not None:
            given = [row for row, mask in enumerate(masks) if mask is not None]
            for to, row in enumerate(given[: len(buffers.masks)]):
                mask = masks[row]
                assert mask is not None
                buffers.masks[to] = mask[: buffers.masks.shape[1]].view(np.int32)
                mask_rows[row] = to
        self._native.ask([state.native for state in states], at, mask_rows, buffers.asks, buffers.adjustments)
        if masks is not None:
            buffers.asks[given[len(buffers.masks) :], 0] = 0
        buffers.asks[n:samples, 0] = 0
        for row, state in enumerate(states):
            if state.caution:
                buffers.asks[row, 1] &= ~TAKES_SLOT
                buffers.asks[row, 0] *= not state.whole

    def sample_candidates(
        self,
        buffers: CandidateBuffers,
        states: Sequence[SamplingState],
        fetch: Callable[[list[int]], Float32Array] | None,
        masks: Sequence[UInt32Array | None] | None = None,
    ) -> Sampled:
        """The same tokens and log-probabilities from a device's answers to `ask`, states and masks being as then.

        fetch: given the rows that the candidates do not suffice for, in order, returns logits that hold those; None
        where they are gone, which leaves such rows without a token.
        """
        n = len(states)
        at = self._positions[:n]
        at[:] = [state.prompt_length + state.generated for state in states]
        natives: list[_native.SamplerSequence] = [state.native for state in states]
        self._native.sample_candidates(buffers.answers, natives, at)
        lacking = (self._status[:n] == _NEEDS_ROW).nonzero()[0].tolist()
        if lacking and fetch is None:
            self._status[lacking] = 0
            return replace(self._sampled(states), lacking=frozenset(lacking))
        if lacking:
            assert fetch is not None
            wanted: list[_native.SamplerSequence | None] = [None] * n
            for row in lacking:
                wanted[row] = natives[row]
            self._native.sample(fetch(lacking), wanted, at, _NO_MASKS if masks is None else list(masks))
        return self._sampled(states)

    def prompt_logprobs(
        self, logits: Float32Array, targets: Sequence[int] | Int32Array, top: int
    ) -> list[TokenLogprobs | None]:
        """Log-probabilities of targets[i] under row i of `logits`, with those of the `top` likeliest tokens.

        top: 20 at most. None for a row whose logits are not finite.
        """
        n = len(targets)
        self._native.score(logits, np.asarray(targets, dtype=np.int32), top)
        failed = self._errors(n)
        return [None if row in failed else self._token_logprobs(row, top) for row in range(n)]

    def _sampled(self, states: Sequence[SamplingState]) -> Sampled:
        n = len(states)
        logprobs = {
            row: self._token_logprobs(row, state.params.logprobs)
            for row, state in enumerate(states)
            if state.params.logprobs is not None and self._tokens[row] >= 0
        }
        return Sampled(self._tokens[:n], logprobs, self._errors(n))

    def _errors(self, n: int) -> dict[int, str]:
        status = self._status[:n]
        if np.count_nonzero(status) == 0:
            return {}
        return {int(row): _FAILURES[int(status[row])] for row in status.nonzero()[0]}

    def _token_logprobs(self, row: int, top: int) -> TokenLogprobs:
        end = 1 + min(top, self._vocab)
        tokens: list[int] = self._logprob_tokens[row, :end].tolist()
        logprobs: list[float] = self._logprobs[row, :end].tolist()
        return TokenLogprobs(
            token=tokens[0],
            logprob=logprobs[0],
            rank=int(self._ranks[row]),
            top_ids=tokens[1:],
            top_logprobs=logprobs[1:],
        )
