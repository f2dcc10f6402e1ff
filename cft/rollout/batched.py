"""The batched engine: forks left-padded to one length, decoded together over one key-value cache.

    pad pad p p p r r a | . . .      each row = prompt, kept response, first token; the cursor is the same for all rows,
    p p p p r r r r r a | . . .      rows that ended leave the batch, and the next batch is pulled when it is empty

Batched and single attention differ by about 6e-5 in a logit (float32). A row whose choice was nearer than `tie_margin`
to another is therefore dropped from the batch and decoded again by the reference engine, so that ids are always equal.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator

import numpy as np
import torch
from torch import Tensor
from transformers import DynamicCache, PreTrainedModel

from cft.rollout.choice import TIE_MARGIN_PROBABILITY, greedy, sampled, uniforms
from cft.rollout.reference import ReferenceEngine, already_finished, finite, fork_prefix, response_of
from cft.types import Budget, Completion, Fork, ForkSource, Key, TopTokens, Trunk

COMPACT_BELOW = 0.75  # share of live rows under which ended ones are removed from the cache (a copy of the cache)


class BatchedEngine:
    """model, eos_ids: as for ReferenceEngine. max_batch: forks decoded together. tie_margin: in logits, 0 = never settle."""

    def __init__(
        self, model: PreTrainedModel, eos_ids: Collection[int], *, max_batch: int = 128, tie_margin: float = 1e-3
    ) -> None:
        if max_batch < 1:
            raise ValueError(f"engine.max_batch: expected at least 1, found {max_batch}")
        self.model = model
        self.eos_ids = frozenset(eos_ids)
        self.max_batch = max_batch
        self.tie_margin = tie_margin
        self.reference = ReferenceEngine(model, eos_ids)

    def score(self, trunk: Trunk, *, k: int) -> TopTokens:
        return self.reference.score(trunk, k=k)

    def run(self, source: ForkSource, *, budget: Budget) -> Iterator[tuple[Key, Completion]]:
        while forks := source.take(self.max_batch):
            live: list[Fork] = []
            for fork in forks:
                finish = already_finished(fork, eos_ids=self.eos_ids, budget=budget)
                if finish is None:
                    live.append(fork)
                else:
                    yield fork.key, Completion(response_of(fork_prefix(fork), fork), finish, 0)
            if live:
                yield from self._decode(live, budget=budget)

    @torch.inference_mode()
    def _decode(self, forks: list[Fork], *, budget: Budget) -> list[tuple[Key, Completion]]:
        device = self.model.device
        ids = [fork_prefix(fork) for fork in forks]
        kept = [len(row) for row in ids]
        random = [uniforms(fork.sampling, budget.max_new_tokens) for fork in forks]
        width = max(kept)
        feed_BT = torch.tensor([[0] * (width - len(row)) + row for row in ids], device=device)
        mask_BT = torch.tensor([[0] * (width - n) + [1] * n for n in kept], device=device)
        rows = list(range(len(forks)))  # rows[b] = the fork in batch slot b; -1 once it has ended
        cache = DynamicCache(config=self.model.config)
        done: list[tuple[Key, Completion]] = []
        while True:
            logits_BV = self._next_logits(feed_BT, mask_BT, cache)
            tokens, near = self._choose(logits_BV, rows, forks, ids, random)
            for slot, row in enumerate(rows):
                if row < 0:
                    continue
                fork = forks[row]
                if near[slot]:
                    settled = self.reference.complete(fork, budget=budget)
                    done.append((fork.key, Completion(settled.ids, settled.finish, settled.num_decoded, True)))
                    rows[slot] = -1
                    continue
                ids[row].append(tokens[slot])
                stopped = tokens[slot] in self.eos_ids
                if stopped or len(ids[row]) - fork.trunk.prompt_len >= budget.max_new_tokens:
                    completion = Completion(
                        response_of(ids[row], fork), "stop" if stopped else "length", len(ids[row]) - kept[row]
                    )
                    done.append((fork.key, completion))
                    rows[slot] = -1
            alive = [slot for slot, row in enumerate(rows) if row >= 0]
            if not alive:
                return done
            if len(alive) <= COMPACT_BELOW * len(rows):
                index = torch.tensor(alive, device=device)
                cache.batch_select_indices(index)
                mask_BT = mask_BT[index]
                tokens = [tokens[slot] for slot in alive]
                rows = [rows[slot] for slot in alive]
            feed_BT = torch.tensor(tokens, device=device)[:, None]
            mask_BT = torch.cat([mask_BT, mask_BT.new_ones(len(rows), 1)], dim=1)

    def _next_logits(self, feed_BT: Tensor, mask_BT: Tensor, cache: DynamicCache) -> Tensor:
        position_BT = (mask_BT.cumsum(-1) - 1).clamp(min=0)[:, -feed_BT.shape[1] :]
        output = self.model(
            feed_BT,
            attention_mask=mask_BT,
            position_ids=position_BT,
            past_key_values=cache,
            use_cache=True,
            logits_to_keep=1,
        )
        return finite(output.logits[:, -1].float())

    def _choose(
        self, logits_BV: Tensor, rows: list[int], forks: list[Fork], ids: list[list[int]], random: list[np.ndarray]
    ) -> tuple[list[int], list[bool]]:
        """Next token of each slot, and whether the reference engine must settle the row instead."""
        token_B, margin_B = greedy(logits_BV)
        tokens, near = token_B.tolist(), (margin_B < self.tie_margin).tolist()
        if self.tie_margin == 0:
            near = [False] * len(rows)
        for slot, row in enumerate(rows):
            if row < 0 or forks[row].sampling.temperature == 0:
                continue
            fork = forks[row]
            position = len(ids[row]) - fork.trunk.prompt_len
            tokens[slot], distance = sampled(
                logits_BV[slot], sampling=fork.sampling, uniform=float(random[row][position])
            )
            near[slot] = self.tie_margin > 0 and distance < TIE_MARGIN_PROBABILITY
        return tokens, near
