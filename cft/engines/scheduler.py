"""The scheduler: admits waiting forks, keeps their keys and values in blocks, preempts rows when memory runs short.

Forks that share a prefix read it from one stored copy. A fork that shares none copies its prefix into its own block.
Forks admitted together form one KV block. When there are too many blocks, the two of most similar length are joined.

If keys and values exceed the budget, or an allocation fails, the most recently admitted rows are preempted: they return
to the front of the waiting queue and start again. The batch is then limited to what was left. It grows again when as many
rows have ended as it holds, so that the memory of whole rows is known, and there is some to spare. Each time that growing was
too much, it waits for twice as many rows: what is decoded in vain stays a small share. Only a fork that does not fit alone
is given up.
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

MAX_BLOCKS = 6  # KV blocks: each costs some small operations a layer ...
ROWS_PER_BLOCK = 20  # ... which a small batch feels more
UNSHARED_ROWS = 64  # forks without a shared prefix are admitted in groups of so many, of similar length
PREFILL_TOKENS = 1024  # prefilled in one pass
REGROW_TO = 0.9  # the batch grows to the rows that would have filled this share of the budget, at most to twice as many
REFILL = 8  # the next forks are admitted when one row in so many is free


class ScheduledRow(Protocol):
    fork: Fork
    ids: list[int]  # prompt included; the last one is fed next
    visible: int  # tokens of the sequence that the fork sees
    shares_prefix: bool  # whether it reads a shared prefix, or has all its keys in its own block

    def restarted(self) -> Self: ...


Row = TypeVar("Row", bound=ScheduledRow)


class Scheduler(Generic[Row]):
    """prefill: keys and values of whole sequences. max_rows: forks in the batch. budget_bytes: for keys and values."""

    def __init__(
        self, prefill: Callable[[list[TokenSequence]], list[Keys]], *, max_rows: int, budget_bytes: int
    ) -> None:
        self.blocks: list[KVBlock[Row]] = []  # the youngest last
        self.waiting: deque[Row] = deque()
        self.back_offs = self.lost_tokens = 0  # times that memory ran short, and tokens decoded in vain
        self._prefill = prefill
        self._most_rows = self._max_rows = max_rows
        self._most_bytes = self._ended = 0  # held, and rows that ended, since the limit last changed
        self._patience = 1  # times the rows of the batch that have to end before it grows
        self._grown = False  # whether the limit last changed by growing
        self._budget_bytes = budget_bytes
        self._prefixes: OrderedDict[int, tuple[TokenSequence, Keys]] = OrderedDict()  # by identity, the oldest first
        self._free_before_asking = 0
        self._plan: Decode | None = None

    @property
    def rows(self) -> list[Row]:
        """The batch, in its order."""
        return [row for block in self.blocks for row in block.rows]

    def live(self) -> int:
        return sum(map(len, self.blocks))

    def room(self) -> int:
        return max(0, self._max_rows - len(self.waiting) - self.live())

    def wants_forks(self) -> bool:
        """A few rows at a time would make many small KV blocks, so it waits until some are free."""
        if not self.blocks:
            return not self.waiting
        return self.room() >= max(self._max_rows // REFILL, self._free_before_asking, 1)

    def asked(self, *, got: int) -> None:
        """`got` forks came of the last `room()`. Where that is fewer, more only come as running ones end."""
        missing = self.room() - got
        until = max(1, min(self._max_rows // REFILL, (self.live() + got) // 2))
        self._free_before_asking = missing + until if missing > 0 else 0

    def dropped(self, settled: Callable[[Key], bool]) -> list[Row]:
        """Waiting rows that no one needs any more; they wait no longer."""
        gone = [row for row in self.waiting if settled(row.fork.key)]
        if gone:
            self.waiting = deque(row for row in self.waiting if row not in gone)
        return gone

    def bytes_held(self) -> int:
        prefixes = sum(num_bytes(prefix) for _, prefix in self._prefixes.values())
        return prefixes + sum(block.bytes_held() for block in self.blocks)

    @torch.inference_mode()
    def admit(self) -> list[Row]:
        """Admit waiting forks, as far as there are free rows; returns rows whose sequence does not fit into memory alone."""
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
        """Rows admitted as one KV block: those that share prefixes, and those without a shared prefix, of similar length."""
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
        """Those at hand, and the others computed a few at a time; `keep` them for this batch and forks to come."""
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
        """While there are too many KV blocks: join the two that leave the fewest empty cells."""
        while len(self.blocks) > min(MAX_BLOCKS, 1 + self.live() // ROWS_PER_BLOCK):
            pairs = combinations(range(len(self.blocks)), 2)
            a, b = min(pairs, key=lambda pair: _empty_cells(*(self.blocks[i] for i in pair)))
            try:
                whole = joined(self.blocks[a], self.blocks[b])
            except (RuntimeError, MemoryError) as error:
                if not out_of_memory(error):
                    raise
                return  # they work apart as well
            self.blocks[a] = whole
            del self.blocks[b]

    def plan(self) -> Decode:
        """Who looks at what, for the next forward pass."""
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
        """compute(rows, plan) within memory, and the rows that were given up because they do not fit alone."""
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
        """After a step that fitted: allow more rows again, where memory ran short before."""
        self._most_bytes = max(self._most_bytes, self.bytes_held())
        if self._max_rows < self._most_rows and self._ended >= self._patience * self._max_rows:
            fitting = int(self._max_rows * REGROW_TO * self._budget_bytes / self._most_bytes)
            self._grown = fitting > self._max_rows
            self._max_rows = max(self._max_rows, min(fitting, 2 * self._max_rows, self._most_rows))
            self._most_bytes = self._ended = 0

    def _limit(self, rows: int) -> None:
        """Memory ran short with more than so many."""
        self._patience *= 2 if self._grown else 1
        self._grown = False
        self._max_rows = rows
        self._most_bytes = self._ended = 0

    def left(self, ended: int) -> None:
        """Evict empty blocks, after so many rows that ended were removed."""
        self._ended += ended
        self.blocks = [block for block in self.blocks if len(block)]
        self._join()
        self._plan = None

    def _preempt(self) -> None:
        """Preempt the newest block, or half of the only one: its rows return to the front of the queue and start again."""
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
        """Evict the prefixes that no row of the batch reads."""
        used = {id(row.fork.sequence) for row in self.rows if row.shares_prefix}
        for key in [key for key in self._prefixes if key not in used]:
            del self._prefixes[key]


def _empty_cells(a: KVBlock[Row], b: KVBlock[Row]) -> int:
    shorter, longer = sorted((a, b), key=lambda block: block.width)
    return (longer.width - shorter.width) * len(shorter)


def _empty(like: Tensor, rows: int, columns: int) -> Tensor:
    return like.new_zeros(rows, like.shape[1], columns, like.shape[3])


def _copied(prefixes: Sequence[Keys], visible: Sequence[int]) -> Keys:
    """What each row sees of its prefix, right-aligned in one KV block."""
    longest, copied = max(visible), []
    for layer, first in enumerate(prefixes[0]):
        k, v = (_empty(part, len(visible), longest) for part in (first.k, first.v))
        for row, (prefix, seen) in enumerate(zip(prefixes, visible, strict=True)):
            k[row, :, longest - seen :] = prefix[layer].k[0, :, :seen]
            v[row, :, longest - seen :] = prefix[layer].v[0, :, :seen]
        copied.append(LayerKeys(k, v))
    return copied


def out_of_memory(error: BaseException) -> bool:
    """torch has a class for a full accelerator; a full CPU raises a plain RuntimeError."""
    return isinstance(error, (torch.OutOfMemoryError, MemoryError)) or "allocate memory" in str(error)
