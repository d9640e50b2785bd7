"""What plots show, read from matplotlib's figures."""

from __future__ import annotations

import numpy as np
import pytest

from mmgcvit.report import plots


@pytest.fixture
def drawn(monkeypatch: pytest.MonkeyPatch) -> list[plots.Plot]:
    """The plots that are drawn in the test."""
    found: list[plots.Plot] = []
    close = plots.Plot.__exit__

    def keep(self: plots.Plot, kind: object, *error: object) -> None:
        found.append(self)
        close(self, kind, *error)

    monkeypatch.setattr(plots.Plot, "__exit__", keep)
    return found


def test_few_predictions_are_pale_and_not_on_the_line(drawn: list[plots.Plot]) -> None:
    count = np.array([0, 4, 5, 50])
    plots.reliability(np.array([np.nan, 0.3, 0.6, 0.9]), np.array([np.nan, 0.0, 0.5, 0.8]), count, "right")
    axes = drawn[0].axes[0]
    _, line = axes.lines
    assert line.get_xdata().tolist() == [0.6, 0.9]
    enough, few = axes.collections
    assert enough.get_offsets().tolist() == [[0.6, 0.5], [0.9, 0.8]]
    assert few.get_offsets().tolist() == [[0.3, 0.0]]
    assert few.get_label() == "fewer than 5"
    assert np.diff(enough.get_sizes()) > 0
    assert plots.luminance(few.get_facecolor()[0][:3]) > 2 * plots.luminance(enough.get_facecolor()[0][:3])


@pytest.mark.parametrize("colour", [(1, 1, 0), (0, 1, 1), (1, 1, 1)])
def test_light_lines_are_darkened(colour: tuple[float, ...], drawn: list[plots.Plot]) -> None:
    line = plots.darkened(colour)
    assert 3 <= 1.05 / (plots.luminance(line) + 0.05) < 3.5
    np.testing.assert_allclose(np.array(line) / max(line), colour)  # the same hue
    x = np.linspace(0, 1, 3)
    plots.class_curves(x, [x], None, ["a"], [tuple(255 * value for value in colour)], ("x", "y"))
    assert drawn[0].axes[0].lines[0].get_color() == pytest.approx(line)


def test_dark_lines_keep_their_colour() -> None:
    assert plots.darkened((0.8, 0.1, 0.1)) == (0.8, 0.1, 0.1)


def test_legend_of_a_histogram_is_above_it(drawn: list[plots.Plot]) -> None:
    plots.histogram({"training": np.arange(9), "validation": np.arange(9)}, "objects", "images")
    (axes,) = drawn[0].axes
    assert axes.get_legend().get_window_extent().y0 >= axes.get_window_extent().y1
