"""Names that the calls among the cases use."""

import numpy as np
import torch

__all__ = ["np", "torch"]
