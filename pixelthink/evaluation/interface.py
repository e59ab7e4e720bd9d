"""What the command line and the callbacks rely on in a module."""

from __future__ import annotations

import lightning as L
from torch import nn

from pixelthink.answering.answerer import Answerer
from pixelthink.evaluation.evaluator import Evaluator


class SegmentationModule(L.LightningModule):
    """A LightningModule around a policy; an interface without behaviour.

    Attributes:
        answerer: Samples, answers and segments with the policy.
        evaluator: Measures the answers.
        policy: The model; None until `configure_model` has loaded it.
    """

    answerer: Answerer
    evaluator: Evaluator
    policy: nn.Module | None
