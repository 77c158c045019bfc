"""Text to tokens and back, with one stated rule for the beginning-of-sequence token; chat templates."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ..errors import InputError


class Tokenizer:
    """A Hugging Face tokenizer that adds no special token but, if asked, the BOS token in front.

    A text that begins with the BOS token as text (``<s>The``) is not given a second.

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
        rows = [[int(token) for token in ids] for ids in encoded["input_ids"]]
        if not self.bos:
            return rows
        start = [int(self._tokenizer.bos_token_id)]
        return [ids if ids[:1] == start else start + ids for ids in rows]

    def begins_with_bos(self, texts: Sequence[str]) -> list[bool]:
        """Of each text, whether it begins with the BOS token as text."""
        start = [self._tokenizer.bos_token_id]
        plain = Tokenizer(self._tokenizer, bos=False)
        return [ids[:1] == start for ids in plain.encode(texts)]

    def chat(self, prompts: Sequence[str]) -> list[str]:
        """Each prompt as the user's message in the tokenizer's chat template, up to the place where
        the answer begins.

        Raises:
            InputError: the tokenizer has no chat template, or one that cannot be filled.
        """
        if not getattr(self._tokenizer, "chat_template", None):
            raise InputError(
                "expected a tokenizer with a chat template, got one without; leave --chat "
                "(chat=True) out, or take an instruct model"
            )
        try:
            return [
                str(
                    self._tokenizer.apply_chat_template(
                        [{"role": "user", "content": prompt}],
                        tokenize=False,
                        add_generation_prompt=True,
                    )
                )
                for prompt in prompts
            ]
        except Exception as error:  # a template is a program, and fails in its own ways
            raise InputError(
                f"the tokenizer's chat template cannot be filled: {error!r:.200}; leave --chat "
                "(chat=True) out"
            ) from error

    @property
    def bos_text(self) -> str:
        """The BOS token as text; empty if there is none."""
        return str(self._tokenizer.bos_token or "")

    @property
    def size(self) -> int:
        """How many tokens there are, added ones included."""
        return len(self._tokenizer)

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
        # Each prompt once, however many answers it has.
        distinct = list(dict.fromkeys(prompts))
        tokens = dict(zip(distinct, self.encode(distinct), strict=True))
        added: list[list[int] | None] = []
        for text, whole in zip(prompts, self.encode(joined), strict=True):
            prompt = tokens[text]
            added.append(whole[len(prompt) :] if whole[: len(prompt)] == prompt else None)
        return added
