"""The text stage before the engine: prompts and conversations become the token ids that a request carries."""

from __future__ import annotations

import operator
from collections.abc import Mapping, Sequence
from typing import Any

from tandem.errors import RequestError
from tandem.text.chat import render_chat
from tandem.text.tokenizer import Tokenizer

# What a prompt may be: text, or token ids.
Prompt = str | Sequence[int]
Message = Mapping[str, Any]


class PromptEncoder:
    """Encodes for one model. Safe to use from several threads."""

    def __init__(self, tokenizer: Tokenizer, context: int) -> None:
        """context: positions of one sequence, of which a prompt must leave one for the answer."""
        self.tokenizer = tokenizer
        self._context = context

    def encode(self, prompt: Prompt) -> tuple[str | None, list[int]]:
        """A prompt's text, if it has one, and its token ids. Raises RequestError for what is no prompt."""
        if isinstance(prompt, str):
            return prompt, self._tokens(prompt) if prompt else []
        try:
            if isinstance(prompt, bytes | bytearray):
                raise TypeError
            return None, [operator.index(token) for token in prompt]
        except TypeError:
            raise RequestError(f"a prompt must be a text or a list of token ids, not {prompt!r:.80}") from None

    def render(
        self,
        messages: Sequence[Message],
        *,
        tools: Sequence[Mapping[str, Any]] | None = None,
        add_generation_prompt: bool = True,
        **template_kwargs: Any,
    ) -> tuple[str, list[int]]:
        """A conversation as text and token ids. Raises RequestError where the model has no chat template."""
        text = render_chat(
            self.tokenizer.chat_templates or None,
            messages,
            tools=tools,
            add_generation_prompt=add_generation_prompt,
            special_tokens=self.tokenizer.special_tokens,
            **template_kwargs,
        )
        return text, self._tokens(text, add_special=False)

    def _tokens(self, text: str, *, add_special: bool = True) -> list[int]:
        """Token ids of a prompt. One that cannot fit is refused before tokenizing it takes a minute."""
        if (least := self.tokenizer.least_tokens(text)) >= self._context:
            raise RequestError(
                f"the prompt has {least:,} tokens or more, and the context of {self._context:,} must also hold the "
                "answer; shorten the prompt or load the model with a larger context"
            )
        return self.tokenizer.encode(text, add_special=add_special)
