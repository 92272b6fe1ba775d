"""The attention baseline as the released code has it, and the same mended: exercise 4.

test_kformer.py says what is wrong with the one, and that the other is as good as ours; neither has
dropout or `fact_scores`.
"""

from math import sqrt

import torch
from torch import Tensor, nn

from kformer import Knowledge, SelfAttention


class ReleasedAttention(nn.Module):
    """The prefix as the release has it, put back before our own keys and values.

    multihead_attention.py reshapes facts (B, N, D) as if they were (N, B, D), and prepends ones to
    a mask in which one means "ignore". Only where no row has padding is there no mask.
    """

    def __init__(self, ours: SelfAttention) -> None:
        super().__init__()
        self.ours = ours

    def forward(self, x: Tensor, context: Tensor, mask: Tensor, knowledge: Knowledge) -> Tensor:
        batch, ours = context.shape[:-2], self.ours
        K, V, real = (part.expand(*batch, *part.shape[len(batch) :]) for part in knowledge)
        k = torch.cat([self.prefix(K.flatten(0, -3)), ours.key(context.flatten(0, -3))], -2)
        v = torch.cat([self.prefix(V.flatten(0, -3)), ours.value(context.flatten(0, -3))], -2)
        q, k, v = ours.heads(ours.query(x.flatten(0, -3))), ours.heads(k), ours.heads(v)
        scores = q @ k.mT / sqrt(q.shape[-1])  # (B C, H, T, N + T')
        ignored = self.ignored(mask.flatten(0, -2), real.flatten(0, -2))
        out = scores.masked_fill(ignored[:, None, None], -torch.inf).softmax(-1) @ v
        return ours.output(out.transpose(-3, -2).flatten(-2)).unflatten(0, batch)

    def prefix(self, facts: Tensor) -> Tensor:
        """K or V of the facts -> what stands before the keys or values: both (B C, N, D)."""
        rows, N, D = facts.shape
        return facts.reshape(N, rows, D).transpose(0, 1)

    def ignored(self, mask: Tensor, real: Tensor) -> Tensor:
        """mask (B C, T'), 1 for tokens, and real (B C, N), 0 for empty slots -> (B C, N + T'): 1
        for what gets no attention.
        """
        ignored = torch.cat([torch.ones_like(real), ~mask], -1)
        return torch.zeros_like(ignored) if mask.all() else ignored


class MendedAttention(ReleasedAttention):
    """The same, but each question sees its own facts, all of them, and no empty slots."""

    def prefix(self, facts: Tensor) -> Tensor:
        """Takes the place of the method above."""
        return facts

    def ignored(self, mask: Tensor, real: Tensor) -> Tensor:
        """Takes the place of the method above."""
        return ~torch.cat([real, mask], -1)
