"""What the makers of a model suggest to sample with, as they published it beside the weights."""

from __future__ import annotations

from pathlib import Path

from paceline.config import sampling_params
from paceline.errors import RequestError
from paceline.models.fields import Fields
from paceline.models.source import find
from paceline.types import SamplingParams

FILE = "generation_config.json"
NAMES = ("temperature", "top_k", "top_p", "min_p", "repetition_penalty")


def suggested_sampling(target: str | Path) -> SamplingParams:
    """The sampling of `target`'s generation_config.json, for requests that do not say.

    target: as an engine takes it. What the file leaves out is off, and the temperature then 1: the
    model's own distribution. Whether the file says `do_sample` makes no difference. Raises
    CheckpointError for a file that cannot be read and for a value that cannot be.
    """
    folder = find(target).folder
    if not (folder / FILE).is_file():
        return SamplingParams(temperature=1.0)
    said = Fields.read(folder / FILE)
    values = {name: said.plain(name) for name in NAMES}
    values = {name: value for name, value in values.items() if value is not None}
    if values.get("top_k") == -1:  # vLLM's word for off
        values["top_k"] = 0
    try:
        return sampling_params(**({"temperature": 1.0} | values))
    except RequestError as error:
        raise said.error(str(error), "correct the file") from None
