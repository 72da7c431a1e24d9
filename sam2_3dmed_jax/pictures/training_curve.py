"""Training curve: the losses and the training Dice of a run against the step."""

from __future__ import annotations

import csv
import math
import os

from sam2_3dmed_jax.pictures.overlay import PREDICTION, plt, save_figure

LOSSES = ("loss", "loss_seg", "loss_srpp", "loss_bd", "loss_object_score")  # columns of the log


def training_curve(path: str | os.PathLike[str], log: str | os.PathLike[str]) -> None:
    """Write the training curve of a run (PNG).

    Args:
        path: the picture.
        log: the run's `log.csv`.

    Raises:
        UserError: the picture cannot be written; nothing is left behind.
    """
    with open(log, newline="") as file:
        rows = list(csv.DictReader(file))
    steps = [int(row["step"]) for row in rows]
    figure, (losses, dice) = plt.subplots(1, 2, figsize=(10, 4))
    for name in LOSSES:
        values = [float(row[name]) if row.get(name) else math.nan for row in rows]
        if not all(map(math.isnan, values)):
            losses.plot(steps, values, label=name)
    losses.set(xlabel="step", ylabel="loss", yscale="log")
    losses.legend(frameon=False, fontsize=8, ncols=3, loc="lower center", bbox_to_anchor=(0.5, 1.0))
    dice.plot(steps, [float(row["dice"]) for row in rows], color=PREDICTION)
    dice.set(xlabel="step", ylabel="Dice of training clips", ylim=(0, 1))
    figure.tight_layout()
    save_figure(figure, path)
