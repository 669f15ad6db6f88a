"""The demo's chart: weekly log loss and AUC, adaptive beside static, with what happened marked."""

from datetime import datetime
from pathlib import Path
from typing import Any

import matplotlib as mpl

mpl.use("Agg")
import matplotlib.pyplot as plt
from matplotlib.axes import Axes
from matplotlib.dates import DateFormatter, date2num

ADAPTIVE, STATIC = "#0b6e99", "#b0b0b0"
MARKS = (
    ("incidents", "changed_at", "drift (estimated onset)", "#c0392b", ":"),
    ("retrainings_at", "at", "retraining", "#e0a030", "--"),
    ("promotions", "at", "promotion", "#2e8b57", "-"),
)


def _moment(text: str) -> float:
    return float(date2num(datetime.fromisoformat(text)))  # type: ignore[no-untyped-call]


def _lines(axes: Axes, weeks: list[dict[str, Any]], metric: str, label: str) -> None:
    days = [_moment(week["week"]) for week in weeks]
    for name, colour, width in (("static", STATIC, 2.0), ("adaptive", ADAPTIVE, 2.2)):
        values = [float("nan") if week[name][metric] is None else week[name][metric] for week in weeks]
        axes.plot(days, values, color=colour, linewidth=width, label=name)
    axes.set_ylabel(label)
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(axis="y", color="#e6e6e6")


def _marks(axes: Axes, report: dict[str, Any]) -> None:
    for key, moment, label, colour, style in MARKS:
        for number, entry in enumerate(report[key]):
            axes.axvline(
                _moment(entry[moment]), color=colour, linestyle=style, linewidth=1.1, label=None if number else label
            )


def draw(report: dict[str, Any], path: Path) -> None:
    """Write the chart of a report as a PNG."""
    figure, (loss, auc) = plt.subplots(2, 1, figsize=(11, 6.4), sharex=True, layout="constrained")
    for axes, metric, label in ((loss, "log_loss", "log loss (lower is better)"), (auc, "roc_auc", "ROC AUC")):
        _lines(axes, report["weeks"], metric, label)
        _marks(axes, report)
    gain = report["log_loss"]["static"] - report["log_loss"]["adaptive"]
    loss.set_title(
        f"Flights more than 15 minutes late, by week: adapting gains {gain:.3f} log loss over the first model",
        loc="left",
        fontsize=11,
    )
    loss.legend(ncols=5, loc="upper center", bbox_to_anchor=(0.5, -0.02), frameon=False, fontsize=9)
    auc.xaxis.set_major_formatter(DateFormatter("%-d %b"))  # type: ignore[no-untyped-call]
    figure.savefig(path, dpi=120)
    plt.close(figure)
