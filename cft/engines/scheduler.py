"""The scheduler: admits waiting forks, keeps their KV cache in blocks, and preempts rows when memory runs short.

Forks that share a prefix read it from one stored copy. A fork without a shared prefix copies its prefix into its own block.
Forks admitted together form one KV block. When there are too many blocks, the two of most similar length are merged.

If the KV cache exceeds its budget, or an allocation fails, the most recently admitted rows are preempted: they return to the
front of the waiting queue and restart. The batch limit then drops to the number of remaining rows. The limit grows again once
a full batch of rows has finished (so that the memory of complete rows is known) and memory is to spare. Each time the limit
grew too far, the scheduler waits for twice as many finished rows, so that only a small fraction of the decoded tokens is
discarded. Only a fork that does not fit into memory by itself is dropped.
"""

from __future__ import annotations

from collections import OrderedDict, deque
from collections.abc import Callable, Sequence
from itertools import combinations
from typing import Generic, Protocol, Self, TypeVar

import torch
from torch import Tensor

from cft.engines.attention import Decode, Keys, KVBlock, LayerKeys, Shared, joined, num_bytes
from cft.types import Fork, Key, TokenSequence

MAX_BLOCKS = 6  # each KV block costs a few small operations per layer ...
ROWS_PER_BLOCK = 20  # ... which weigh more in a small batch
UNSHARED_ROWS = 64  # group size, in rows of similar length, for admitting forks without a shared prefix
PREFILL_TOKENS = 1024  # tokens per prefill pass
REGROW_TO = 0.9  # fraction of the budget that the regrown batch would have filled; the batch at most doubles
REFILL = 8  # the next forks are admitted when 1/8 of the rows are free


class ScheduledRow(Protocol):
    fork: Fork
    ids: list[int]  # prompt included; the last one is the next input token
    visible: int  # tokens of the sequence that the fork attends to
    shares_prefix: bool  # True: reads a shared prefix; False: all its keys are in its own block

    def restarted(self) -> Self: ...


Row = TypeVar("Row", bound=ScheduledRow)


class Scheduler(Generic[Row]):
    """Scheduler of one run.

    Args:
        prefill: Computes the keys and values of whole sequences.
        max_rows: Maximum number of forks in the batch.
        budget_bytes: Memory budget of the KV cache.
    """

    def __init__(
        self, prefill: Callable[[list[TokenSequence]], list[Keys]], *, max_rows: int, budget_bytes: int
    ) -> None:
        self.blocks: list[KVBlock[Row]] = []  # most recently admitted last
        self.waiting: deque[Row] = deque()
        self.back_offs = self.lost_tokens = 0  # number of preemptions; tokens decoded and then discarded
        self._prefill = prefill
        self._most_rows = self._max_rows = max_rows  # configured limit, current limit
        self._peak_bytes = self._ended = 0  # peak memory and finished rows since the limit last changed
        self._batches_before_growth = 1  # full batches that must finish before the limit grows
        self._grown = False  # whether the last change of the limit was growth
        self._budget_bytes = budget_bytes
        self._prefixes: OrderedDict[int, tuple[TokenSequence, Keys]] = OrderedDict()  # by identity, oldest first
        self._free_before_asking = 0  # free rows required before the source is asked again
        self._plan: Decode | None = None

    @property
    def rows(self) -> list[Row]:
        """Rows of the batch, in batch order."""
        return [row for block in self.blocks for row in block.rows]

    def live(self) -> int:
        return sum(map(len, self.blocks))

    def room(self) -> int:
        return max(0, self._max_rows - len(self.waiting) - self.live())

    def wants_forks(self) -> bool:
        """Whether enough rows are free to ask for more forks; admitting a few at a time would make many small KV blocks."""
        if not self.blocks:
            return not self.waiting
        return self.room() >= max(self._max_rows // REFILL, self._free_before_asking, 1)

    def asked(self, *, got: int) -> None:
        """Record that the source gave `got` of the last `room()` forks. If fewer, more come only as running forks end."""
        missing = self.room() - got
        until = max(1, min(self._max_rows // REFILL, (self.live() + got) // 2))
        self._free_before_asking = missing + until if missing > 0 else 0

    def dropped(self, settled: Callable[[Key], bool]) -> list[Row]:
        """Remove and return the waiting rows whose outcome no longer matters."""
        gone = [row for row in self.waiting if settled(row.fork.key)]
        if gone:
            self.waiting = deque(row for row in self.waiting if row not in gone)
        return gone

    def bytes_held(self) -> int:
        prefixes = sum(num_bytes(prefix) for _, prefix in self._prefixes.values())
        return prefixes + sum(block.bytes_held() for block in self.blocks)

    @torch.inference_mode()
    def admit(self) -> list[Row]:
        """Admit waiting forks into the free rows; return rows whose sequence does not fit into memory by itself."""
        given_up: list[Row] = []
        free = self._max_rows - self.live()
        if not self.waiting or (self.blocks and free < min(len(self.waiting), max(1, self._max_rows // REFILL))):
            return given_up
        self._plan = None
        for group in self._groups([self.waiting.popleft() for _ in range(min(free, len(self.waiting)))]):
            try:
                self.blocks.append(self._admitted(group))
            except (RuntimeError, MemoryError) as error:
                if not out_of_memory(error):
                    raise
                self._evict_prefixes()
                if not self.blocks and len(group) == 1:
                    given_up += group
                else:
                    self._wait(group)
                    self._limit(self.live() or len(group) // 2)
        self._join()
        return given_up

    def _groups(self, rows: list[Row]) -> list[list[Row]]:
        """Split rows into KV blocks: one of all rows that share prefixes, and blocks of the others by similar length."""
        count: dict[int, int] = {}
        for row in rows:
            count[id(row.fork.sequence)] = count.get(id(row.fork.sequence), 0) + 1
        for row in rows:
            key = id(row.fork.sequence)
            row.shares_prefix = row.visible > 0 and (count[key] > 1 or key in self._prefixes)
        sharing = [row for row in rows if row.shares_prefix]
        unshared = sorted((row for row in rows if not row.shares_prefix), key=lambda row: row.visible)
        groups = [unshared[start : start + UNSHARED_ROWS] for start in range(0, len(unshared), UNSHARED_ROWS)]
        return [sharing, *groups] if sharing else groups

    def _admitted(self, rows: list[Row]) -> KVBlock[Row]:
        prefixes = self._prefixes_of(
            {id(row.fork.sequence): row.fork.sequence for row in rows}, keep=rows[0].shares_prefix
        )
        if rows[0].shares_prefix:
            any_prefix = next(iter(prefixes.values()))
            empty = [LayerKeys(*(_empty(part, len(rows), 0) for part in (layer.k, layer.v))) for layer in any_prefix]
            return KVBlock(rows, empty, [0] * len(rows))
        visible = [row.visible for row in rows]
        return KVBlock(rows, _copied([prefixes[id(row.fork.sequence)] for row in rows], visible), visible)

    def _prefixes_of(self, sequences: dict[int, TokenSequence], *, keep: bool) -> dict[int, Keys]:
        """KV cache of the given sequences: the stored ones, and the others prefilled in small chunks.

        keep: store them for this batch and later forks.
        """
        found = {key: self._prefixes[key][1] for key in sequences if key in self._prefixes}
        missing = sorted((key for key in sequences if key not in found), key=lambda key: len(sequences[key].ids))
        while missing:
            longest = len(sequences[missing[-1]].ids)
            chunk = missing[-max(1, PREFILL_TOKENS // longest) :]
            del missing[-len(chunk) :]
            found |= zip(chunk, self._prefill([sequences[key] for key in chunk]), strict=True)
        for key in sequences if keep else ():
            self._prefixes[key] = (sequences[key], found[key])
            self._prefixes.move_to_end(key)
        return found

    def _join(self) -> None:
        """While there are too many KV blocks, merge the two that add the least padding."""
        while len(self.blocks) > min(MAX_BLOCKS, 1 + self.live() // ROWS_PER_BLOCK):
            pairs = combinations(range(len(self.blocks)), 2)
            a, b = min(pairs, key=lambda pair: _padding(*(self.blocks[i] for i in pair)))
            try:
                whole = joined(self.blocks[a], self.blocks[b])
            except (RuntimeError, MemoryError) as error:
                if not out_of_memory(error):
                    raise
                return  # separate blocks work as well
            self.blocks[a] = whole
            del self.blocks[b]

    def plan(self) -> Decode:
        """The attention plan of the next decode step: the blocks, and the rows that read each shared prefix."""
        if self._plan is None:
            by_sequence: dict[int, list[int]] = {}
            rows = self.rows
            for index, row in enumerate(rows):
                if row.shares_prefix:
                    by_sequence.setdefault(id(row.fork.sequence), []).append(index)
            shared = [
                Shared.of(self._prefixes[key][1], index=index, visible=[rows[i].visible for i in index])
                for key, index in by_sequence.items()
            ]
            self._plan = Decode(self.blocks, shared)
        return self._plan

    def fitting(self, compute: Callable[[list[Row], Decode], Tensor]) -> tuple[Tensor | None, list[Row]]:
        """Run `compute(rows, plan)`, preempting rows until it fits into memory.

        Returns:
            Its result (None if no row is left), and the dropped rows, which do not fit into memory by themselves.
        """
        given_up: list[Row] = []
        while self.blocks:
            try:
                for block in self.blocks:
                    block.make_room()
                if self.bytes_held() > self._budget_bytes:
                    self._evict_prefixes()
                    if self.bytes_held() > self._budget_bytes and self.live() > 1:
                        self._preempt()
                        continue
                logits = compute(self.rows, self.plan())
                self._grow()
                return logits, given_up
            except (RuntimeError, MemoryError) as error:
                if not out_of_memory(error):
                    raise
                self._evict_prefixes()
                if self.live() > 1:
                    self._preempt()
                else:
                    given_up += self.blocks.pop().rows
                    self._plan = None
        return None, given_up

    def _grow(self) -> None:
        """After a step that fitted into memory: raise a limit that an earlier preemption lowered."""
        self._peak_bytes = max(self._peak_bytes, self.bytes_held())
        if self._max_rows < self._most_rows and self._ended >= self._batches_before_growth * self._max_rows:
            fitting = int(self._max_rows * REGROW_TO * self._budget_bytes / self._peak_bytes)
            self._grown = fitting > self._max_rows
            self._max_rows = max(self._max_rows, min(fitting, 2 * self._max_rows, self._most_rows))
            self._peak_bytes = self._ended = 0

    def _limit(self, rows: int) -> None:
        """Lower the batch limit to `rows` because memory ran short with more."""
        self._batches_before_growth *= 2 if self._grown else 1
        self._grown = False
        self._max_rows = rows
        self._peak_bytes = self._ended = 0

    def left(self, ended: int) -> None:
        """Drop empty blocks after `ended` finished rows were removed."""
        self._ended += ended
        self.blocks = [block for block in self.blocks if len(block)]
        self._join()
        self._plan = None

    def _preempt(self) -> None:
        """Preempt the newest block, or half of the only one: its rows return to the front of the queue and restart."""
        self.back_offs += 1
        if len(self.blocks) > 1:
            self._wait(self.blocks.pop().rows)
        else:
            only = self.blocks[0]
            half = len(only) // 2
            self._wait(only.rows[half:])
            while len(only) > half:
                only.remove(len(only) - 1)
            only.shrink()
        self._limit(self.live())

    def _wait(self, rows: list[Row]) -> None:
        self.lost_tokens += sum(len(row.ids) - 1 - row.visible for row in rows)
        self.waiting.extendleft(reversed([row.restarted() for row in rows]))
        self._plan = None

    def _evict_prefixes(self) -> None:
        """Evict prefixes that no row of the batch reads."""
        used = {id(row.fork.sequence) for row in self.rows if row.shares_prefix}
        for key in [key for key in self._prefixes if key not in used]:
            del self._prefixes[key]


def _padding(a: KVBlock[Row], b: KVBlock[Row]) -> int:
    shorter, longer = sorted((a, b), key=lambda block: block.width)
    return (longer.width - shorter.width) * len(shorter)


def _empty(like: Tensor, rows: int, columns: int) -> Tensor:
    return like.new_zeros(rows, like.shape[1], columns, like.shape[3])


def _copied(prefixes: Sequence[Keys], visible: Sequence[int]) -> Keys:
    """Copy the visible part of each row's prefix into one KV block, right-aligned."""
    longest, copied = max(visible), []
    for layer, first in enumerate(prefixes[0]):
        k, v = (_empty(part, len(visible), longest) for part in (first.k, first.v))
        for row, (prefix, seen) in enumerate(zip(prefixes, visible, strict=True)):
            k[row, :, longest - seen :] = prefix[layer].k[0, :, :seen]
            v[row, :, longest - seen :] = prefix[layer].v[0, :, :seen]
        copied.append(LayerKeys(k, v))
    return copied


def out_of_memory(error: BaseException) -> bool:
    """Whether an error means that memory ran out: torch has an exception class for accelerators, not for the CPU."""
    return isinstance(error, (torch.OutOfMemoryError, MemoryError)) or "allocate memory" in str(error)
