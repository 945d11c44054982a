"""paceline: lossless speculative decoding for PyTorch.

The public names, and only they.
"""

from paceline.config import MIN_TEMPERATURE, EngineConfig, sampling_params
from paceline.drafters import create as create_drafter
from paceline.drafters.base import Drafter
from paceline.engine.cost_grid import Point as CostPoint
from paceline.engine.costs import Costs
from paceline.engine.engine import Engine
from paceline.engine.handle import Events, Handle
from paceline.engine.preview import ModelFacts, Preview, preview
from paceline.engine.suggested import suggested_sampling
from paceline.errors import (
    CheckpointError,
    ConfigError,
    EngineClosedError,
    NumericsError,
    PacelineError,
    RequestError,
    StepError,
)
from paceline.models.source import resolve as checkpoint_folder
from paceline.types import (
    Completion,
    EngineStats,
    Event,
    Grammar,
    RoundReport,
    SamplingParams,
    SequenceStats,
    TokenLogprob,
)

__version__ = "0.1.0"

__all__ = [
    "MIN_TEMPERATURE",
    "CheckpointError",
    "Completion",
    "ConfigError",
    "CostPoint",
    "Costs",
    "Drafter",
    "Engine",
    "EngineClosedError",
    "EngineConfig",
    "EngineStats",
    "Event",
    "Events",
    "Grammar",
    "Handle",
    "ModelFacts",
    "NumericsError",
    "PacelineError",
    "Preview",
    "RequestError",
    "RoundReport",
    "SamplingParams",
    "SequenceStats",
    "StepError",
    "TokenLogprob",
    "checkpoint_folder",
    "create_drafter",
    "preview",
    "sampling_params",
    "suggested_sampling",
]
