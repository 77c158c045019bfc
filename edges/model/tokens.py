"""Text to tokens and back, with one stated rule for the beginning-of-sequence token."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ..errors import InputError


class Tokenizer:
    """A Hugging Face tokenizer that adds no special token but, if asked, the BOS token in front.

    Args:
        tokenizer: a ``transformers`` tokenizer.
        bos: put the BOS token first.

    Raises:
        InputError: ``bos`` is asked of a tokenizer that has none.
    """

    def __init__(self, tokenizer: Any, bos: bool) -> None:
        if bos and tokenizer.bos_token_id is None:
            raise InputError(
                "expected a tokenizer with a beginning-of-sequence token, got one without; "
                "use --no-bos (bos=False)"
            )
        self._tokenizer = tokenizer
        self.bos = bos

    def encode(self, texts: Sequence[str]) -> list[list[int]]:
        """The token ids of each text, the BOS token first where this tokenizer adds it."""
        if not texts:
            return []
        encoded = self._tokenizer(list(texts), add_special_tokens=False, verbose=False)
        start = [int(self._tokenizer.bos_token_id)] if self.bos else []
        return [start + [int(token) for token in ids] for ids in encoded["input_ids"]]

    def decode(self, token: int) -> str:
        """The text of one token."""
        return str(self._tokenizer.decode([token]))

    @property
    def unknown(self) -> int | None:
        """The token that stands for what the vocabulary cannot spell; None if it spells all."""
        token = self._tokenizer.unk_token_id
        # GPT-2 names its end-of-text token as unknown token too, and never needs one.
        if token is None or token in (self._tokenizer.bos_token_id, self._tokenizer.eos_token_id):
            return None
        return int(token)

    def continuations(
        self, prompts: Sequence[str], continuations: Sequence[str]
    ) -> list[list[int] | None]:
        """The tokens each continuation adds to its prompt; None where it changes the prompt's own.

        A continuation is never tokenized alone: what it becomes depends on what stands before it.
        """
        joined = [prompt + text for prompt, text in zip(prompts, continuations, strict=True)]
        added: list[list[int] | None] = []
        for prompt, whole in zip(self.encode(prompts), self.encode(joined), strict=True):
            added.append(whole[len(prompt) :] if whole[: len(prompt)] == prompt else None)
        return added
