"""How many rows to run at once: what memory allows, halved whenever it turns out to be too much."""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterator
from typing import Any, Protocol, TypeVar, runtime_checkable

import torch

from ..errors import InputError, WiremapError

_CPU_BYTES = 1 << 30
"""What one batch may take on a CPU. Larger batches are no faster there."""


Part = TypeVar("Part", bound="Sliceable")


Result = TypeVar("Result")


@runtime_checkable
class Sliceable(Protocol):
    """Rows that can be counted and cut."""

    def __len__(self) -> int: ...
    def __getitem__(self, rows: slice, /) -> Any: ...


class RowTooLargeError(WiremapError):
    """Memory does not hold a single row. Counts as out of memory, so an outer batch may shrink."""


class BatchSize:
    """Rows per batch.

    Args:
        rows: the size to begin with.
    """

    def __init__(self, rows: int) -> None:
        self.rows = max(rows, 1)

    @classmethod
    def fitting(
        cls, bytes_per_row: int, device: torch.device, memory_limit: int | None = None
    ) -> BatchSize:
        """As many rows as take what is available; see ``available_bytes``."""
        return cls(available_bytes(device, memory_limit) // max(bytes_per_row, 1))

    def map(self, rows: Part, function: Callable[[Part], Result]) -> Iterator[tuple[Part, Result]]:
        """``function`` of each batch of ``rows``, in order. Out of memory: halves and goes on.

        Raises:
            RowTooLargeError: one row alone does not fit into memory.
        """
        start = 0
        while start < len(rows):
            part = rows[start : start + self.rows]
            # In a tuple, so that None is no result: too much, and to be tried again with fewer rows.
            result = self._try(part, function)
            if result is not None:
                yield part, result[0]
                start += len(part)

    def map_times(
        self,
        items: Part,
        times: int,
        function: Callable[[Part], Result],
        most: int | None = None,
    ) -> Iterator[tuple[Part, Result]]:
        """``map`` over items that are ``times`` rows each, at most ``most`` of them at once.

        If fewer fit than this size says, it is made smaller, so that the next begins with what fits.
        """
        allowed = self.rows // times  # 0 where not one item fits: BatchSize tries one all the same
        at_once = BatchSize(allowed if most is None else min(allowed, most))
        tried = at_once.rows
        yield from at_once.map(items, function)
        if at_once.rows < tried:
            self.rows = at_once.rows * times

    def _try(self, part: Part, function: Callable[[Part], Result]) -> tuple[Result] | None:
        try:
            return (function(part),)
        except (RuntimeError, MemoryError, RowTooLargeError) as error:
            if not is_out_of_memory(error):
                raise
            if len(part) == 1:
                raise RowTooLargeError(
                    f"a single row does not fit into memory: {_reason(error)}; use "
                    "shorter prompts, a smaller dtype (--dtype, dtype=) or a larger device "
                    "(--device, device=)"
                ) from error
        # Out of the except block, so that the failed attempt's tensors are no longer held.
        self.rows = (len(part) + 1) // 2
        gc.collect()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
        return None


def available_bytes(device: torch.device, memory_limit: int | None = None) -> int:
    """What one batch may take: the limit, else 1 GiB on a CPU, or 40 % of what is free on a GPU.

    Raises:
        InputError: a limit that is not positive.
    """
    if memory_limit is not None:
        if memory_limit <= 0:
            raise InputError(f"expected a memory limit above 0 bytes, got {memory_limit}")
        return memory_limit
    if device.type == "cuda":
        return int(0.4 * torch.cuda.mem_get_info(device)[0])
    return _CPU_BYTES


def _reason(error: BaseException) -> str:
    return (str(error) or type(error).__name__).splitlines()[0]


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an allocation failed, on whatever device."""
    if isinstance(error, (MemoryError, torch.OutOfMemoryError, RowTooLargeError)):
        return True
    # Allocators other than CUDA's raise a plain RuntimeError, known by its words alone.
    message = str(error)
    return "can't allocate memory" in message or "out of memory" in message
