"""The loss against its formula, pair by pair; the augmentation against all permutations."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st

from examples.vttwins import tda
from examples.vttwins.loss import COSTS, DIRECTIONS, OPERATORS, SequenceLoss
from softdtw_kernels import s2dtw_from_cost

ALIGNMENTS = [name for name in OPERATORS if name != "mil_nce"]


def embeddings(b: int, n: int, m: int, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    v = torch.randn(b, n, 5, generator=generator, dtype=torch.float64)
    t = torch.randn(b, m, 5, generator=generator, dtype=torch.float64)
    return v.requires_grad_(), t.requires_grad_()


def pair_values(loss: SequenceLoss, video: torch.Tensor, text: torch.Tensor) -> torch.Tensor:
    """S[k, l] one pair at a time, from explicit costs."""
    rows = []
    for t in text:
        row = []
        for v in video:
            cost = -F.cosine_similarity(t[:, None], v[None], dim=-1)
            cost = cost + 1 if loss.cost == "cosine" else cost
            row.append(
                s2dtw_from_cost(
                    cost,
                    gamma=loss.gamma,
                    smoothing=loss.operator in ("s2dtw", "smoothed"),
                    dummy_cost=0.5 if loss.operator in ("s2dtw", "weak") else None,
                    backend="reference",
                )
            )
        rows.append(torch.stack(row))
    return torch.stack(rows)


@pytest.mark.parametrize("direction", DIRECTIONS)
@pytest.mark.parametrize("cost", COSTS)
@pytest.mark.parametrize("operator", ALIGNMENTS)
def test_loss_and_gradient_are_those_of_the_formula(
    operator: str, cost: str, direction: str
) -> None:
    loss = SequenceLoss(operator, cost=cost, direction=direction, temperature=0.7)
    video, text = embeddings(3, 4, 3)
    s = pair_values(loss, video, text) / 0.7
    own = s.diagonal()
    t2v = ((-s).logsumexp(1) + own).mean()
    v2t = ((-s).logsumexp(0) + own).mean()
    expected = {"t2v": t2v, "v2t": v2t, "symmetric": (t2v + v2t) / 2}[direction]
    value = loss(video, text)
    torch.testing.assert_close(value, expected)
    wanted = torch.autograd.grad(expected, (video, text))
    for got, want in zip(torch.autograd.grad(value, (video, text)), wanted, strict=True):
        torch.testing.assert_close(got, want)


@pytest.mark.parametrize("operator", ALIGNMENTS)
def test_without_contrast_only_matching_pairs_count(operator: str) -> None:
    loss = SequenceLoss(operator, contrastive=False)
    video, text = embeddings(3, 2, 4)
    torch.testing.assert_close(loss(video, text), pair_values(loss, video, text).diagonal().mean())


@pytest.mark.parametrize("contrastive", [True, False])
@pytest.mark.parametrize("direction", DIRECTIONS)
@pytest.mark.parametrize("operator", OPERATORS)
def test_rows_of_the_ranks_average_to_the_whole_batch(
    operator: str, direction: str, contrastive: bool
) -> None:
    loss = SequenceLoss(operator, direction=direction, contrastive=contrastive)
    video, text = embeddings(4, 3, 5)
    parts = [loss(video, text, rows=slice(k, k + 2)) for k in (0, 2)]
    torch.testing.assert_close(sum(parts) / 2, loss(video, text))


def share_of_the_bags(
    video: torch.Tensor, text: torch.Tensor, bags: list[list[int]], direction: str
) -> torch.Tensor:
    """MIL-NCE at temperature .5 by its definition; bags[i] are places in the other sequence."""
    v, t = F.normalize(video, dim=-1), F.normalize(text, dim=-1)
    anchors, others = (t, v) if direction == "t2v" else (v, t)
    terms = []
    for k, i in itertools.product(range(len(anchors)), range(anchors.shape[1])):
        weight = torch.exp(others @ anchors[k, i] / 0.5)  # (items, places)
        bag = weight[k, bags[i]].sum()
        rest = weight.sum() - weight[k].sum()
        terms.append(-torch.log(bag / (bag + rest)))
    return torch.stack(terms).mean()


@pytest.mark.parametrize("direction", ["t2v", "v2t"])
def test_mil_nce_is_the_share_of_the_bag(direction: str) -> None:
    loss = SequenceLoss("mil_nce", direction=direction, temperature=0.5, bag=1)
    video, text = embeddings(3, 4, 4)
    bags = [[0, 1], [0, 1, 2], [1, 2, 3], [2, 3]]
    torch.testing.assert_close(loss(video, text), share_of_the_bags(video, text, bags, direction))


@pytest.mark.parametrize(
    ("n", "m", "bag", "of_captions", "of_clips"),
    [
        # Clips of captions 0 and 4: captions 2, 6 and 7 are more than one from both.
        (2, 8, 1, [[0], [0], [0, 1], [1], [1], [1], [1], [1]], [[0, 1], [3, 4, 5]]),
        # Clips of captions 0, 0, 0, 1, 1, 2, 2.
        (7, 3, 0, [[0, 1, 2], [3, 4], [5, 6]], [[0], [0], [0], [1], [1], [2], [2]]),
        (1, 3, 0, [[0], [0], [0]], [[0]]),
        (3, 1, 1, [[0, 1, 2]], [[0], [0], [0]]),
    ],
)
def test_bags_of_mil_nce_follow_the_captions_that_clips_are_taken_from(
    n: int, m: int, bag: int, of_captions: list[list[int]], of_clips: list[list[int]]
) -> None:
    video, text = embeddings(3, n, m)
    for direction, bags in (("t2v", of_captions), ("v2t", of_clips)):
        loss = SequenceLoss("mil_nce", direction=direction, temperature=0.5, bag=bag)
        torch.testing.assert_close(
            loss(video, text), share_of_the_bags(video, text, bags, direction)
        )


@given(n=st.integers(1, 9), m=st.integers(1, 9), bag=st.integers(0, 2))
def test_mil_nce_is_finite_for_all_numbers_of_clips_and_captions(n: int, m: int, bag: int) -> None:
    video, text = embeddings(2, n, m)
    for contrastive in (True, False):
        loss = SequenceLoss("mil_nce", direction="symmetric", contrastive=contrastive, bag=bag)
        assert loss(video, text).isfinite()


@pytest.mark.parametrize("operator", OPERATORS)
def test_autocast_leaves_the_loss_in_float32(operator: str) -> None:
    loss = SequenceLoss(operator, direction="symmetric")
    video, text = (x.detach().float() for x in embeddings(3, 4, 4))
    expected = loss(video, text)
    with torch.autocast("cpu", torch.bfloat16):
        value = loss(video, text)
    assert value.dtype == torch.float32 and torch.equal(value, expected)


def test_unknown_choices_and_wrong_shapes_are_named() -> None:
    for options in ({"operator": "dtw"}, {"cost": "l2"}, {"direction": "both"}):
        with pytest.raises(ValueError, match=f"{next(iter(options))} must be one of"):
            SequenceLoss(**options)
    with pytest.raises(ValueError, match="temperature"):
        SequenceLoss(temperature=0)
    video, text = embeddings(3, 2, 2)
    with pytest.raises(ValueError, match=r"video \(B, n, D\)"):
        SequenceLoss()(video[:2], text)


@given(n=st.integers(0, 6), reach=st.integers(0, 4))
def test_near_permutations_are_all_of_them_once(n: int, reach: int) -> None:
    expected = [
        list(p)
        for p in itertools.permutations(range(n))
        if all(abs(p[i] - i) <= reach for i in range(n))
    ]
    found = tda.near_permutations(n, reach)
    assert found.shape == (len(expected), n) and found.tolist() == expected


def test_sequences_of_eight_have_400_near_permutations() -> None:
    assert len(tda.near_permutations(8)) == 400


def test_probabilities_follow_the_change_of_self_similarity() -> None:
    x = torch.randn(2, 5, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    probability = tda.permutation_log_probabilities(x, tau=0.5).exp()
    orders = tda.near_permutations(5)
    for k in range(2):
        similarity = x[k] @ x[k].T
        weights = []
        for order in orders:
            moved = x[k][order]
            weights.append(math.exp(-torch.linalg.norm(similarity - moved @ moved.T) / 0.5))
        expected = torch.tensor(weights, dtype=torch.float64)
        torch.testing.assert_close(probability[k], expected / expected.sum())


def test_equal_elements_trade_places_freely_and_distinct_ones_stay() -> None:
    same = torch.ones(1, 4, 3)
    log_probability = tda.permutation_log_probabilities(same)
    torch.testing.assert_close(log_probability, torch.full_like(log_probability, -math.log(14)))
    distinct = torch.eye(4)[None] * torch.arange(1, 5)[None, :, None]
    drawn = tda.draw_permutations(distinct, torch.tensor([0.999]))
    assert drawn.tolist() == [[0, 1, 2, 3]]


def test_draws_have_the_probabilities_and_gradients_follow_the_order() -> None:
    x = torch.rand(1, 3, 2, generator=torch.Generator().manual_seed(3), requires_grad=True)
    grid = (torch.arange(10_000) + 0.5) / 10_000
    drawn = tda.draw_permutations(x.expand(10_000, 3, 2), grid, tau=0.3)
    probability = tda.permutation_log_probabilities(x, tau=0.3).exp()[0]
    for order, p in zip(tda.near_permutations(3), probability, strict=True):
        share = (drawn == order).all(1).double().mean()
        assert abs(share - p) <= 1.001e-4  # a uniform grid hits each interval to within a cell
    order = torch.tensor([[2, 0, 1]])
    (gradient,) = torch.autograd.grad(
        (tda.permute(x, order) * torch.arange(6).view(1, 3, 2)).sum(), x
    )
    assert gradient[0].tolist() == [[2, 3], [4, 5], [0, 1]]
