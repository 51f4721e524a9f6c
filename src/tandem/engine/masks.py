"""Masks of the tokens that grammars allow, for all rows of a step at once.

A token that was sampled is shown to its matcher when the next mask is asked for. So both, moving the matchers on and
computing masks, are calls that spread the rows over threads and hold no GIL; where the host applies the masks, they run
while the devices compute the step.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from tandem.engine.sampling import SamplingState, UInt32Array

if TYPE_CHECKING:
    from llguidance import LLExecutor, LLMatcher


class GrammarMasks:
    """Memory for the masks of one step, and the threads that fill it, once a grammar asks for them.

    errors: by row, one sentence for each whose grammar could not be followed in the last step.
    """

    def __init__(self, vocab: int, rows: int, threads: int) -> None:
        self._words = np.zeros((rows, -(-vocab // 32)), dtype=np.uint32)
        self._rows = list(self._words)
        self._threads = threads
        self._executor: LLExecutor | None = None
        self.errors: dict[int, str] = {}

    @property
    def bytes(self) -> int:
        """What is held from the beginning."""
        return self._words.nbytes

    def fill(self, states: Sequence[SamplingState]) -> list[UInt32Array | None] | None:
        """By row the mask of a state that follows a grammar, or None; None where no state does.

        A mask has a bit for each token: bit t % 32 of word t // 32. They are valid until the next call.
        """
        self.errors.clear()
        if all(state.matcher is None for state in states):
            return None
        if self._executor is None:
            from llguidance import LLExecutor

            self._executor = LLExecutor(self._threads)
        executor = self._executor
        masks: list[UInt32Array | None] = [None] * len(states)
        at: list[int] = []
        matchers: list[tuple[LLMatcher, int]] = []
        unread: list[tuple[LLMatcher, int]] = []
        for row, state in enumerate(states):
            if state.matcher is not None:
                masks[row] = self._rows[len(at)]
                matchers.append((state.matcher, len(at)))
                at.append(row)
                if state.unread is not None:
                    unread.append((state.matcher, state.unread))
                    state.unread = None
        if unread:
            executor.consume_token_par(unread)
        words = self._words
        executor.unsafe_compute_mask_ptr(matchers, words.ctypes.data, words.strides[0], len(words))
        for row, (matcher, _) in zip(at, matchers, strict=True):
            if matcher.is_error():
                reason = " ".join(matcher.get_error().split())
                self.errors[row] = f"the grammar is too complex to be followed further: {reason:.200}"
        return masks
