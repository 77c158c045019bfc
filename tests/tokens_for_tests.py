"""A word-level tokenizer of single letters, as small as a tokenizer can be."""

from __future__ import annotations

import transformers
from tokenizers import Tokenizer as Core
from tokenizers.decoders import ByteLevel as ByteLevelDecoder
from tokenizers.models import BPE, WordLevel
from tokenizers.pre_tokenizers import ByteLevel, Whitespace
from tokenizers.trainers import BpeTrainer

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


TEXT = """When Mary and John went to the store, John gave a book to Mary. When Mary and John went to the
store, Mary gave a book to John. a girl was sad because she said he had a book
from the year 12 to the year 17 80 01 1280
"""


def spelling(bos: bool = True) -> Tokenizer:
    """One of bytes, as language models have: a space belongs to the word that follows it.

    The words of ``TEXT`` are one token each, with a space in front and mostly without.
    """
    core = Core(BPE())
    core.pre_tokenizer = ByteLevel(add_prefix_space=False)  # pyright: ignore[reportAttributeAccessIssue]
    core.decoder = ByteLevelDecoder()  # pyright: ignore[reportAttributeAccessIssue]
    alphabet = ByteLevel.alphabet()
    trainer = BpeTrainer(
        vocab_size=600, initial_alphabet=alphabet, special_tokens=["<s>"], show_progress=False
    )
    words = TEXT.split()
    core.train_from_iterator([*words, *(f" {word}" for word in words)] * 5, trainer)
    return Tokenizer(
        transformers.PreTrainedTokenizerFast(tokenizer_object=core, bos_token="<s>"), bos
    )
