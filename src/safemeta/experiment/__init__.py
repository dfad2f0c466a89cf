"""Training, adaptation and evaluation, and the folders that they leave behind."""

from safemeta.experiment.adapt import adapt
from safemeta.experiment.certify import certify
from safemeta.experiment.evaluate import evaluate
from safemeta.experiment.plots import plot
from safemeta.experiment.report import report
from safemeta.experiment.run import Run, load
from safemeta.experiment.sweep import sweep
from safemeta.experiment.train import train
from safemeta.experiment.video import video

__all__ = ["Run", "adapt", "certify", "evaluate", "load", "plot", "report", "sweep", "train", "video"]
