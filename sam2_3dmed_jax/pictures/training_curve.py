"""Training curve: the losses and the training Dice of a run against the step."""

from __future__ import annotations

import math
import os

from sam2_3dmed_jax.pictures.overlay import PREDICTION, plt, save_figure
from sam2_3dmed_jax.runtime.user_files import number, read_table, whole_number

LOSSES = ("loss", "loss_seg", "loss_srpp", "loss_bd", "loss_object_score")  # columns of the log


def training_curve(path: str | os.PathLike[str], log: str | os.PathLike[str]) -> None:
    """Write the training curve of a run (PNG).

    Args:
        path: the picture.
        log: the run's `log.csv`.

    Raises:
        UserError: the picture cannot be written; nothing is left behind.
    """
    from matplotlib.ticker import LogLocator, MaxNLocator, NullFormatter

    fix = "give the log.csv of a training run"
    rows = list(read_table(log, fix))
    steps = [whole_number(row.get("step", ""), f"{log}: step", fix) for row in rows]
    figure, (losses, dice) = plt.subplots(1, 2, figsize=(10, 4))
    for name in LOSSES:
        values = [number(row.get(name, ""), f"{log}: {name}", fix) for row in rows]
        if not all(map(math.isnan, values)):
            # A value is the loss of one batch, whose difficulty varies: the line is the mean of the last tenth.
            (single,) = losses.plot(steps, values, alpha=0.25)
            losses.plot(steps, _running_mean(values), color=single.get_color(), label=name)
    losses.set(xlabel="step", ylabel="loss", yscale="log")
    losses.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))  # several numbers also within a power of ten
    losses.yaxis.set_major_formatter("{x:g}")
    losses.yaxis.set_minor_formatter(NullFormatter())
    if losses.lines:
        losses.legend(frameon=False, fontsize=8, ncols=3, loc="lower center", bbox_to_anchor=(0.5, 1.0))
    dice.plot(steps, [number(row.get("dice", ""), f"{log}: dice", fix) for row in rows], color=PREDICTION)
    dice.set(xlabel="step", ylabel="Dice of training clips", ylim=(0, 1))
    for axes in (losses, dice):
        axes.xaxis.set_major_locator(MaxNLocator("auto", steps=[1, 2, 5, 10], integer=True))
    figure.tight_layout()
    save_figure(figure, path)


def _running_mean(values: list[float]) -> list[float]:
    """Return, for each value, the mean of the last values up to it, a tenth of all values; NaN is left out."""
    width = max(len(values) // 10, 1)
    means = []
    for end in range(1, len(values) + 1):
        window = [value for value in values[max(end - width, 0) : end] if not math.isnan(value)]
        means.append(sum(window) / len(window) if window else math.nan)
    return means
