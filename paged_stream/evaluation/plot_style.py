"""How pictures look: colours, sizes of text, scales whose ticks are plain numbers.

matplotlib is an extra, imported when the first picture is drawn.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

# Told apart by people with any kind of colour vision, and on paper.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
_STYLE: dict[str, Any] = {
    "axes.axisbelow": True,
    "axes.grid": True,
    "axes.spines.right": False,
    "axes.spines.top": False,
    "axes.titlesize": "medium",
    "figure.dpi": 110,
    "figure.titlesize": "large",
    "grid.alpha": 0.3,
    "legend.fontsize": "small",
    "legend.framealpha": 0.9,
    "xtick.labelsize": "small",
    "ytick.labelsize": "small",
}


def pyplot() -> Any:
    """Return matplotlib.pyplot, set up to draw to files, in one style for all.

    Raises:
        ImportError: says what to install.
    """
    try:
        import matplotlib
    except ImportError:
        raise ImportError(
            "plots need matplotlib; install it with `pip install 'paged-stream[eval]'`"
        ) from None
    matplotlib.use("Agg")
    import matplotlib.pyplot
    from matplotlib.rcsetup import cycler

    colours: Any = {"axes.prop_cycle": cycler("color", COLOURS)}
    matplotlib.rcParams.update(_STYLE | colours)
    return matplotlib.pyplot


def save(figure: Any, path: Path) -> None:
    """Write the picture and free its memory.

    Raises:
        ValueError: the file's ending names no format.
    """
    try:
        figure.savefig(path)
    finally:
        pyplot().close(figure)


def model_name(name: str) -> str:
    """A model's name, or the last part of its path."""
    return Path(name).name


def log_scale(axes: Any) -> None:
    """A logarithmic y axis whose ticks are plain numbers."""
    from matplotlib.ticker import LogLocator, NullFormatter, StrMethodFormatter

    axes.set_yscale("log")
    axes.yaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 3.0, 5.0)))
    axes.yaxis.set_major_formatter(StrMethodFormatter("{x:,g}"))
    axes.yaxis.set_minor_formatter(NullFormatter())


def thousands(axis: Any) -> None:
    axis.set_major_formatter("{x:,.0f}")
