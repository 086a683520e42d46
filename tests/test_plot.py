"""The pictures show what they are given."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

plt = pytest.importorskip("matplotlib.pyplot", reason="plots need matplotlib, of the extra plot")

from softdtw_kernels import soft_dtw_alignment  # noqa: E402  (after its requirement)
from softdtw_kernels.plot import (  # noqa: E402
    plot_alignment,
    plot_barycenter,
    plot_connections,
)

pytestmark = pytest.mark.quick


@pytest.fixture(autouse=True)
def figure() -> Iterator[None]:
    plt.figure()
    yield
    plt.close("all")


def test_heat_map_holds_the_matrix_and_the_path() -> None:
    x, y = torch.randn(5, 3, requires_grad=True), torch.randn(4, 3)
    alignment = soft_dtw_alignment(x, y, gamma=0.1)
    path = alignment.path()
    ax = plot_alignment(alignment.expected, path, x=x, y=y, title="title", label="visits")
    (image,) = ax.images
    assert torch.equal(torch.tensor(image.get_array().data), alignment.expected.detach())
    drawn = torch.tensor(ax.lines[-1].get_xydata(), dtype=torch.int64)
    assert torch.equal(drawn.flip(-1), path)  # columns run along the horizontal axis
    assert ax.get_ylim()[0] < ax.get_ylim()[1], "the first frame of x belongs at the bottom"


def test_connections_join_the_pairs_that_are_aligned() -> None:
    ax = plot_connections(torch.arange(3.0), torch.arange(4.0), torch.eye(3, 4))
    assert len(ax.lines) == 3 + 4  # the pairs; each sequence as a line and as points


def test_barycenter_lies_over_its_members() -> None:
    members = [torch.zeros(3), torch.ones(5)]
    ax = plot_barycenter(torch.full((4,), 0.5), members)
    assert [len(line.get_xdata()) for line in ax.lines] == [3, 5, 4]


def test_bfloat16_is_drawn_too() -> None:
    x, y, matrix = (torch.ones(*shape).bfloat16() for shape in ((3, 2), (4, 2), (3, 4)))
    plot_alignment(matrix, x=x, y=y)
    plot_connections(x, y, matrix)
    plot_barycenter(x[:, 0], [y[:, 0]])


def test_wrong_shapes_are_named() -> None:
    with pytest.raises(ValueError, match=r"\(N, M\), got shape \(2, 3, 4\)"):
        plot_alignment(torch.zeros(2, 3, 4))
    with pytest.raises(ValueError, match=r"\(N, M\), got shape \(2, 3, 4\)"):
        plot_connections(torch.zeros(3), torch.zeros(4), torch.zeros(2, 3, 4))
    with pytest.raises(ValueError, match=r"expected x of shape \(3,\) .* got \(4,\)"):
        plot_alignment(torch.zeros(3, 4), x=torch.zeros(4))
    with pytest.raises(ValueError, match=r"expected y of shape \(4,\) .* got \(3, 2\)"):
        plot_connections(torch.zeros(3), torch.zeros(3, 2), torch.zeros(3, 4))
    with pytest.raises(ValueError, match=r"shape \(N,\), got \(2, 2\)"):
        plot_barycenter(torch.zeros(2, 2), [])
