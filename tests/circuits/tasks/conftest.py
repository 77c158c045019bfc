"""Tokenizers of the kinds that language models have."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from wiremap.edges import Tokenizer


@pytest.fixture(scope="session")
def smollm2_tokenizer() -> Tokenizer:
    """SmolLM2's, of the directory that WIREMAP_SMOLLM2 names."""
    import transformers

    from wiremap.edges import Tokenizer

    directory = os.environ.get("WIREMAP_SMOLLM2")
    if not directory:
        pytest.skip("WIREMAP_SMOLLM2 does not name a directory with SmolLM2")
    return Tokenizer(transformers.AutoTokenizer.from_pretrained(directory), bos=True)
