"""What a weight file says of the network it holds: in its own metadata, or in timm's `config.json` beside it."""

import json
from collections.abc import Mapping
from typing import Any, Literal

from pydantic import Field

from components.domain.strict import Strict

UNKNOWN = "unknown"


class Description(Strict):
    """architecture: timm's name, without a tag. model_args: what differs from that architecture's own, as timm's
    `create_model` takes it (`init_values`, `reg_tokens`, `img_size`, ...). mean, std: of pixels in [0, 1]; None for
    timm's record of the architecture. source: where the weights came from. trained: False where features mean nothing.
    feature: what a pooled feature is: the network's own, or its class token joined with the mean of its patches, which
    is twice as wide.
    """

    architecture: str
    model_args: dict[str, Any] = Field(default_factory=dict)
    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None
    licence: str = UNKNOWN
    source: str = ""
    trained: bool = True
    feature: Literal["own", "token+mean"] = "own"

    def to_metadata(self) -> dict[str, str]:
        """For a safetensors file, whose metadata are texts: what is no text is written as JSON."""
        said = self.model_dump(mode="json", exclude_none=True)
        return {key: value if isinstance(value, str) else json.dumps(value) for key, value in sorted(said.items())}

    @staticmethod
    def of_metadata(metadata: Mapping[str, str]) -> "Description":
        """Raises pydantic's ValidationError, and json's JSONDecodeError. Keys that are not ours are left out."""
        fields = Description.model_fields
        texts = {"architecture", "licence", "source", "feature"}
        said = {key: value for key, value in metadata.items() if key in fields}
        return Description.model_validate({k: v if k in texts else json.loads(v) for k, v in said.items()})
