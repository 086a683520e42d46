"""The loss of VT-TWINS, and the losses the paper compares it with in kind.

Requirements: torch, softdtw_kernels.

S[k, l] = S2DTW(text k, video l) for all pairs of the global batch, and
    loss = mean_k [ logsumexp_l(-S[k, l] / T) + S[k, k] / T ]        (direction "t2v")
where the positive is part of the denominator. One matrix product gives all costs; the embeddings
are never expanded to B x B sequences (pairwise=True).

| operator  | smoothing | dummy cost | is                          |
|-----------|-----------|------------|-----------------------------|
| s2dtw     | yes       | yes        | VT-TWINS                    |
| weak      | no        | yes        | weak alignment only         |
| smoothed  | yes       | no         | local smoothing only        |
| soft_dtw  | no        | no         | plain soft-DTW              |
| mil_nce   | -         | -          | no alignment: bags of pairs |

Sources: Ko et al., CVPR 2022; Miech et al., CVPR 2020 (MIL-NCE).
"""

from __future__ import annotations

from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from softdtw_kernels import Backend, Cost, s2dtw

OPERATORS = ("s2dtw", "weak", "smoothed", "soft_dtw", "mil_nce")
DIRECTIONS = ("t2v", "v2t", "symmetric")
COSTS = ("shifted_cosine", "cosine")


class SequenceLoss(nn.Module):
    """Loss of a batch of clip sequences and caption sequences.

    Args:
        operator: one of ``OPERATORS``.
        cost: "shifted_cosine" (-cos, in [-1, 1]) or "cosine" (1 - cos); MIL-NCE uses cos itself.
        contrastive: compare with the other pairs of the batch, or only pull matching pairs together
            (which collapses; the paper's ablation).
        gamma, dummy_cost, origin_count: as in ``softdtw_kernels.s2dtw``.
        direction: "t2v" (a text against all videos, as released), "v2t" or "symmetric" (mean).
        temperature: T above.
        bag: MIL-NCE only: the captions of a clip's bag lie at most this far from its own in order.
        backend: as in ``softdtw_kernels.s2dtw``.
    """

    def __init__(
        self,
        operator: str = "s2dtw",
        *,
        cost: str = "shifted_cosine",
        contrastive: bool = True,
        gamma: float = 0.1,
        dummy_cost: float = 0.5,
        origin_count: int = 1,
        direction: str = "t2v",
        temperature: float = 1.0,
        bag: int = 1,
        backend: Backend | None = None,
    ) -> None:
        super().__init__()
        for name, value, allowed in (
            ("operator", operator, OPERATORS),
            ("cost", cost, COSTS),
            ("direction", direction, DIRECTIONS),
        ):
            if value not in allowed:
                raise ValueError(f"{name} must be one of {allowed}, got {value!r}")
        if temperature <= 0:
            raise ValueError(f"temperature must be positive, got {temperature}")
        self.operator, self.cost, self.direction = operator, cast(Cost, cost), direction
        self.contrastive, self.temperature, self.bag = contrastive, temperature, bag
        self.gamma, self.origin_count, self.backend = gamma, origin_count, backend
        self.smoothing = operator in ("s2dtw", "smoothed")
        self.dummy_cost = dummy_cost if operator in ("s2dtw", "weak") else None

    def extra_repr(self) -> str:
        return (
            f"operator={self.operator!r}, cost={self.cost!r}, gamma={self.gamma}, "
            f"dummy_cost={self.dummy_cost}, contrastive={self.contrastive}, "
            f"direction={self.direction!r}, temperature={self.temperature}"
        )

    def values(self, text: Tensor, video: Tensor, pairwise: bool = True) -> Tensor:
        """Values of texts (A, m, D) and videos (B, n, D): (A, B), or (A,) item by item."""
        return s2dtw(
            text,
            video,
            gamma=self.gamma,
            cost=self.cost,
            smoothing=self.smoothing,
            dummy_cost=self.dummy_cost,
            origin_count=self.origin_count,
            pairwise=pairwise,
            backend=self.backend,
        )

    def forward(self, video: Tensor, text: Tensor, rows: slice = slice(None)) -> Tensor:
        """Mean loss over the anchors ``rows`` of the global batch.

        Args:
            video: (B, n, D) clips, item l belonging to text l; need not be normalized.
            text: (B, m, D) captions.
            rows: the anchors this rank answers for; the other items are negatives only.

        Autocast has no say here: bfloat16 similarities would blur what is compared.
        """
        if video.ndim != 3 or text.ndim != 3 or video.shape[0] != text.shape[0]:
            raise ValueError(
                "expected video (B, n, D) and text (B, m, D), got "
                f"{tuple(video.shape)} and {tuple(text.shape)}"
            )
        with torch.autocast(video.device.type, enabled=False):
            return self._loss(video, text, rows)

    def _loss(self, video: Tensor, text: Tensor, rows: slice) -> Tensor:
        first = range(video.shape[0])[rows].start
        if self.operator == "mil_nce":
            return self._mil_nce(video, text, rows, first)
        if not self.contrastive:
            return self.values(text[rows], video[rows], pairwise=False).mean()
        losses = []
        if self.direction in ("t2v", "symmetric"):
            losses.append(self._nce(self.values(text[rows], video), first))
        if self.direction in ("v2t", "symmetric"):
            losses.append(self._nce(self.values(text, video[rows]).mT, first))
        return torch.stack(losses).mean()

    def _nce(self, values: Tensor, first: int) -> Tensor:
        """Cross-entropy of anchors (b, B); the positive of row k is column first + k."""
        target = torch.arange(first, first + values.shape[0], device=values.device)
        return F.cross_entropy(-values / self.temperature, target)

    def _mil_nce(self, video: Tensor, text: Tensor, rows: slice, first: int) -> Tensor:
        """MIL-NCE: -log of the share of the bag among the clip's pairs with all captions.

        The anchors are single clips (v2t), captions (t2v) or both. A bag holds the pairs of the
        same video at most ``bag`` captions apart, or else the nearest; the other pairs of that
        video are left out, since they are neither matches nor known mismatches.
        """
        video, text = F.normalize(video, dim=-1), F.normalize(text, dim=-1)
        n, m = video.shape[1], text.shape[1]
        losses = []
        for anchors, others, wanted in ((text, video, "t2v"), (video, text, "v2t")):
            if self.direction not in (wanted, "symmetric"):
                continue
            a = anchors[rows]
            scores = torch.einsum("aid,bjd->aibj", a, others) / self.temperature
            mine = torch.arange(a.shape[0], device=a.device)
            # In captions; clip k is taken in the span of caption floor(k m / n), see data.py.
            captions = torch.arange(m, device=a.device)
            clips = torch.arange(n, device=a.device) * m // n
            places = (captions, clips) if wanted == "t2v" else (clips, captions)
            apart = (places[0][:, None] - places[1][None, :]).abs()
            # A caption far from all clips has the nearest in its bag, as no bag may be empty.
            outside = apart > apart.amin(1, keepdim=True).clamp(min=self.bag)
            same = scores[mine, :, mine + first]  # (b, i, j): pairs of the anchor's own video
            bag = same.masked_fill(outside, -torch.inf).logsumexp(-1)
            if self.contrastive:
                own = torch.zeros(
                    scores.shape[0], scores.shape[2], dtype=torch.bool, device=a.device
                )
                own[mine, mine + first] = True
                dropped = own[:, None, :, None] & outside[None, :, None, :]
                total = scores.masked_fill(dropped, -torch.inf).flatten(2).logsumexp(-1)
                losses.append((total - bag).mean())
            else:
                losses.append(-bag.mean())
        return torch.stack(losses).mean()
