"""A word-level tokenizer of single letters, as small as a tokenizer can be."""

from __future__ import annotations

import transformers
from tokenizers import Tokenizer as Core
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace

from wiremap.edges import Tokenizer


def letters_core() -> transformers.PreTrainedTokenizerFast:
    """``<s> <unk> </s> a b c ... h``, numbered from 0; words are parted by spaces."""
    vocabulary = {word: index for index, word in enumerate(["<s>", "<unk>", "</s>", *"abcdefgh"])}
    core = Core(WordLevel(vocabulary, unk_token="<unk>"))
    core.pre_tokenizer = Whitespace()  # pyright: ignore[reportAttributeAccessIssue]
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=core, unk_token="<unk>", bos_token="<s>", eos_token="</s>"
    )


CHAT = "{% for m in messages %}<s> g {{ m.content }}</s>{% endfor %}{{ ' h' if add_generation_prompt }}"


def chatting(bos: bool = True, template: str = CHAT) -> Tokenizer:
    """One with a chat template, which begins with BOS: ``<s> g PROMPT </s> h``."""
    core = letters_core()
    core.chat_template = template
    return Tokenizer(core, bos)


def letters(bos: bool = True) -> Tokenizer:
    """The tokenizer as wiremap uses it."""
    return Tokenizer(letters_core(), bos)
