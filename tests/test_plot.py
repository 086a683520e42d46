"""The pictures show what they are given."""

from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np
import pytest
import torch

plt = pytest.importorskip("matplotlib.pyplot", reason="plots need matplotlib, of the extra plot")

from softdtw_kernels import s2dtw_alignment, soft_dtw_alignment  # noqa: E402  (after its requirement)
from softdtw_kernels.plot import (  # noqa: E402  (likewise)
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


def test_an_alignment_is_drawn_with_its_path() -> None:
    x, y = torch.randn(5, 3), torch.randn(4, 3)
    alignment = soft_dtw_alignment(x, y, gamma=0.1)
    ax = plot_alignment(alignment)
    assert torch.equal(torch.tensor(ax.images[0].get_array().data), alignment.expected)
    drawn = torch.tensor(ax.lines[-1].get_xydata(), dtype=torch.int64)
    assert torch.equal(drawn.flip(-1), alignment.path())
    assert not plot_alignment(alignment, path=False, ax=plt.figure().gca()).lines
    assert not plot_alignment(alignment.expected, ax=plt.figure().gca()).lines


def test_a_path_breaks_where_frames_are_passed_by() -> None:
    x = torch.tensor([0.0, 1.0, 2.0, 3.0])[:, None]
    y = torch.tensor([0.0, 1.0, 50.0, 60.0, 2.0, 3.0])[:, None]
    alignment = s2dtw_alignment(x, y, cost="sqeuclidean", smoothing=False)
    path = alignment.path()
    assert path.tolist() == [[0, 0], [1, 1], [2, 4], [3, 5]]
    drawn = torch.tensor(plot_alignment(alignment).lines[-1].get_xydata())
    assert torch.isnan(drawn).all(1).tolist() == [False, False, True, False, False]
    assert torch.equal(drawn[~torch.isnan(drawn[:, 0])].flip(-1), path.double())


@pytest.mark.parametrize("size", [3, 30, 300])
def test_a_path_leaves_most_of_its_cells_to_be_seen(size: int) -> None:
    """As wide as it is drawn, in points, beside the width of a cell; never thinner than is seen."""
    ax = plot_alignment(torch.eye(size), torch.arange(size)[:, None].expand(size, 2))
    cell = ax.get_window_extent().height / size * 72 / ax.figure.dpi
    width = sum(line.get_linewidth() for line in ax.lines)
    assert 0.5 <= width <= max(0.5, cell / 3)


def test_connections_join_the_pairs_that_are_aligned() -> None:
    x, y = torch.arange(3.0), torch.arange(4.0)
    expected = torch.eye(3, 4)
    expected[2, 3] = 0.5
    expected[0, 3] = 0.01  # too little to be drawn
    ax = plot_connections(x, y, expected)
    (lines,) = ax.collections
    assert len(ax.lines) == 4  # each sequence as a line and as points
    times = torch.stack([torch.as_tensor(s) for s in lines.get_segments()])[..., 0]
    pairs = torch.tensor([[0, 0], [1, 1], [2, 2], [2, 3]])
    torch.testing.assert_close(times, (pairs / torch.tensor([2.0, 3.0])).to(times))
    alphas = [color[3] for color in lines.get_colors()]
    assert alphas[0] == alphas[1] == alphas[2] == pytest.approx(2 * alphas[3])


def test_many_connections_are_no_darker_in_sum_than_few() -> None:
    def ink(size: int) -> float:
        x = torch.zeros(size)
        ax = plot_connections(x, x, torch.eye(size), ax=plt.figure().gca())
        return sum(color[3] for color in ax.collections[0].get_colors())

    assert ink(200) == pytest.approx(ink(50))


def test_numpy_is_drawn_as_tensors_are() -> None:
    x, y = torch.randn(5, 2), torch.randn(4, 2)
    alignment = soft_dtw_alignment(x, y, gamma=0.1)
    arrays = alignment.expected.numpy(), alignment.path().numpy()
    of_arrays = plot_alignment(*arrays, x=x.numpy(), y=y.numpy())
    of_tensors = plot_alignment(alignment, x=x, y=y, ax=plt.figure().gca())
    for a, b in zip(of_arrays.lines, of_tensors.lines, strict=True):
        assert (a.get_xydata() == b.get_xydata()).all()
    plot_connections(x.numpy(), y.numpy(), arrays[0])
    plot_barycenter(x[:, 0].numpy(), [y[:, 0].numpy()])


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_colors_are_those_of_the_finite_values(bad: float) -> None:
    cells = torch.tensor([[-2.0, 1.0, bad], [0.5, bad, 3.0]])
    (image,) = plot_alignment(cells).images
    assert image.get_clim() == (-2.0, 3.0)
    assert image.get_array().mask.tolist() == cells.isfinite().logical_not().tolist()
    plot_alignment(torch.full((2, 3), bad), label="cost").figure.canvas.draw()


def test_arrays_of_any_strides_and_byte_order_are_drawn() -> None:
    cells = np.arange(12.0).reshape(3, 4)
    for turned in (cells[::-1], cells[:, ::-1], cells.astype(">f8")):
        (image,) = plot_alignment(turned, x=turned[:, 0], ax=plt.figure().gca()).images
        assert (image.get_array() == turned).all()
    cells.flags.writeable = False
    plot_connections(cells[0], cells[:, 0], cells.T)  # without torch's warning
    plot_barycenter(cells[0, ::-1], list(cells[::-1]))


def test_barycenter_lies_over_its_members() -> None:
    members = [torch.zeros(3), torch.ones(5)]
    ax = plot_barycenter(torch.full((4,), 0.5), members)
    assert [len(line.get_xdata()) for line in ax.lines] == [3, 5, 4]
    columns = [m[:, None] for m in members]
    ax = plot_barycenter(torch.full((4, 1), 0.5), columns, ax=plt.figure().gca())
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
    with pytest.raises(TypeError, match="path=True asks for the path of an Alignment"):
        plot_alignment(torch.zeros(3, 4), path=True)
    with pytest.raises(TypeError, match="got the list of a batch"):
        plot_alignment(torch.zeros(3, 4), [torch.zeros(3, 2)])
