"""Pictures say what they show: titles, axes with units, where the window ends."""

from __future__ import annotations

import pytest
import torch

from paged_stream.evaluation import plots

SPANS = [
    {"start": 100 * k, "stop": 100 * k + 100, "nll": 300.0, "count": 100, "seconds": 1.0}
    | {"rss": 2**30}
    for k in range(10)
]
STREAM = {"model": "folder/small", "variant": "4+60", "num_sink_tokens": 4, "window_size": 60}
STREAM |= {"tokens": 1000, "scored": 1000, "perplexity": 20.0, "spans": SPANS}
DENSE = STREAM | {"variant": "dense", "num_sink_tokens": 0, "window_size": None}
DIALOGUE = {"model": "small", "variant": "dense", "hits": [0, 1, 1]}


def recall(distance, visible, gone):
    counts = {"visible": visible, "gone": gone, "recall": 0.5}
    return {"model": "small", "variant": "4+60", "distance": distance} | counts


NEAR, EDGE, FAR = recall(0, 10, 0), recall(20, 3, 7), recall(80, 0, 10)


@pytest.fixture
def drawn(monkeypatch):
    """Figures, as they would be saved."""
    figures = []
    monkeypatch.setattr(plots, "save", lambda figure, path: figures.append(figure))
    yield figures
    plots.pyplot().close("all")


def upright_lines(axes):
    return [line.get_xdata()[0] for line in axes.lines if len(set(line.get_xdata())) == 1]


@pytest.mark.parametrize(
    ("draw", "rows"),
    [
        (plots.plot_curves, [DENSE, STREAM]),
        (plots.plot_ablation, [DENSE, STREAM]),
        (plots.plot_long, STREAM),
        (plots.plot_recall, [NEAR, FAR]),
        (plots.plot_rounds, [DIALOGUE]),
    ],
)
def test_titles_name_the_model_and_axes_have_labels(draw, rows, drawn, tmp_path):
    draw(rows, tmp_path / "a.png")
    (figure,) = drawn
    title = figure.get_suptitle() or figure.axes[0].get_title()
    assert title.startswith("small: ")
    assert figure.axes[-1].get_xlabel()
    assert all(axes.get_ylabel() for axes in figure.axes)


def test_curves_mark_where_the_window_is_full(drawn, tmp_path):
    plots.plot_curves([DENSE, STREAM], tmp_path / "a.png")
    (axes,) = drawn[0].axes
    assert upright_lines(axes) == [64]
    assert axes.get_xlabel().endswith("(tokens)")
    labels = [text.get_text() for text in axes.get_legend().get_texts()]
    assert labels == ["everything (dense)", "4 sink tokens + window of 60"]


@pytest.mark.parametrize(
    ("points", "ends"),
    [([NEAR, EDGE, FAR], [1, 1]), ([NEAR, FAR], [0.5, 0.5]), ([NEAR], [])],
)
def test_recall_shows_where_the_window_ends(points, ends, drawn, tmp_path):
    plots.plot_recall(points, tmp_path / "a.png")
    (axes,) = drawn[0].axes
    dotted = [line for line in axes.lines if line.get_linestyle() == ":" and len(line.get_xdata())]
    assert [x for line in dotted for x in line.get_xdata()] == ends


def test_maps_say_which_layer_and_head_they_are(drawn, tmp_path):
    logits = torch.zeros(2, 1, 8, 8)
    plots.plot_attention(
        logits, [3, 5], [1], torch.full((6, 2), 0.1), tmp_path / "a.png", model="small"
    )
    titles = [axes.get_title() for axes in drawn[0].axes]
    assert {"layer 3, head 1", "layer 5, head 1"} <= set(titles)
    shares = drawn[0].axes[-1]
    assert (shares.get_xlabel(), shares.get_ylabel()) == ("layer", "share of attention (%)")
