"""What comes of sequences: tokens, scores of prompts, embeddings and ends, as deltas for whoever asked."""

from __future__ import annotations

import numpy as np

from tandem.devices.base import Float32Array
from tandem.engine.pooling import FinalNorm, Pool
from tandem.engine.request import Delta, FinishReason, TokenLogprobs
from tandem.engine.sampling import Sampler
from tandem.engine.scheduler import Schedule, Scheduler
from tandem.engine.sequence import Sequence, State
from tandem.engine.step import Counters


class Outcomes:
    """Keeps the samples of each request until they end, and the deltas that nobody has collected yet.

    Every sample brings one delta with a finish_reason; the request's last delta has `ended` set. scheduler: the
    engine's, who says when it is another. final_norm: the model's; without it nothing is embedded.
    """

    def __init__(
        self,
        scheduler: Scheduler,
        counters: Counters,
        sampler: Sampler,
        eos_ids: tuple[int, ...],
        final_norm: FinalNorm | None,
    ) -> None:
        self.scheduler = scheduler
        self.live: dict[str, list[Sequence]] = {}
        self._deltas: list[Delta] = []
        self._counters = counters
        self._sampler = sampler
        self._eos_ids = eos_ids
        self.final_norm = final_norm

    @property
    def collected(self) -> bool:
        """Whether there is nothing to report."""
        return not self._deltas

    def collect(self) -> list[Delta]:
        """Everything that was not collected before, in order."""
        deltas, self._deltas = self._deltas, []
        return deltas

    def take(self, sequence: Sequence, token: int, logprobs: TokenLogprobs | None, error: str | None) -> None:
        """A sampled token: appended, reported, and possibly the last."""
        delta = Delta(request_id=sequence.request_id, index=sequence.index)
        if sequence.generated == 0:
            delta.cached_tokens = sequence.cached_tokens
            self._counters.cached_tokens += sequence.cached_tokens if sequence.index == 0 else 0
        if error is not None:
            delta.error = error
            self.end(sequence, delta, "error")
            return
        sequence.tokens.append(token)
        assert sequence.sampling is not None
        sequence.sampling.append(token)
        delta.tokens = [token]
        if logprobs is not None:
            delta.logprobs = [logprobs]
        if token in sequence.stop_ids:
            delta.stop_reason = None if token in self._eos_ids else token
            self.end(sequence, delta, "stop")
        elif sequence.generated >= sequence.max_tokens:
            self.end(sequence, delta, "length")
        else:
            self._deltas.append(delta)

    def score(self, schedule: Schedule, logits: Float32Array) -> None:
        """Log-probabilities of prompt tokens, from the rows of logits behind the sampled ones."""
        at = 0
        for sequence, rows in zip(schedule.sequences, schedule.scores, strict=True):
            if not rows or sequence.state is State.DONE:
                at += rows
                continue
            targets = sequence.tokens[sequence.scored : sequence.scored + rows]
            top = sequence.params.prompt_logprobs
            assert top is not None
            scored = [entry for entry in self._sampler.prompt_logprobs(logits[at:], targets, top) if entry is not None]
            at += rows
            sequence.scored += rows
            delta = Delta(request_id=sequence.request_id, index=sequence.index, prompt_logprobs=scored)
            if len(scored) == rows:
                self._deltas.append(delta)
            else:
                delta.prompt_logprobs = None
                delta.error = "the model's logits for the prompt are not finite"
                self.end(sequence, delta, "error")

    def pool(self, schedule: Schedule, hidden: Float32Array) -> None:
        """Takes the hidden rows of the sequences that embed their prompts."""
        assert self.final_norm is not None
        at = 0
        for sequence, start, rows in zip(schedule.sequences, schedule.starts, schedule.rows, strict=True):
            if sequence.pool is not None and sequence.state is not State.DONE:
                sequence.pool.add(start, hidden[at : at + rows], self.final_norm)
            at += rows

    def embed(self, sequence: Sequence, pool: Pool) -> None:
        """A prompt's embedding is complete, and so is its request."""
        delta = Delta(request_id=sequence.request_id, cached_tokens=sequence.cached_tokens)
        self._counters.cached_tokens += sequence.cached_tokens
        embedding = pool.embedding()
        if np.isfinite(embedding).all():
            delta.embedding = embedding.tobytes()
            self.end(sequence, delta, "stop")
        else:
            delta.error = "the model's hidden states for the prompt are not finite"
            self.end(sequence, delta, "error")

    def end(self, sequence: Sequence, delta: Delta, reason: FinishReason) -> None:
        """Ends a sample: pages free, last delta reported. Samples that wait for its prompt end with it."""
        self.scheduler.end(sequence)
        samples = self.live[sequence.request_id]
        samples.remove(sequence)
        delta.finish_reason = reason
        self._deltas.append(delta)
        for fork in sequence.forks:
            samples.remove(fork)
            fork.state = State.DONE
            self._deltas.append(
                Delta(request_id=fork.request_id, index=fork.index, finish_reason=reason, error=delta.error)
            )
        if not samples:
            del self.live[sequence.request_id]
            self._deltas[-1].ended = True
