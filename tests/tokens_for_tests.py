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


def letters(bos: bool = True) -> Tokenizer:
    """The tokenizer as wiremap uses it."""
    return Tokenizer(letters_core(), bos)
