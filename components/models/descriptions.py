"""What a weight file says of the network it holds: in its own metadata, or in timm's `config.json` beside it."""

import json
from collections.abc import Mapping
from typing import Any, Literal

from pydantic import Field, ValidationError

from components.domain.strict import Strict
from components.errors import BackboneError
from components.models.model_cards import find_card

UNKNOWN = "unknown"
TEXTS = {"architecture", "licence", "source", "feature"}  # in metadata as they are; all else is JSON


class Description(Strict):
    """architecture: timm's name, without a tag. model_args: what differs from that architecture's own, as timm's
    `create_model` takes it (`init_values`, `reg_tokens`, `img_size`, ...). mean, std: of pixels in [0, 1]; None for
    timm's record of the architecture. source: where the weights came from. trained: False where features mean nothing.
    feature: what a pooled feature is: the network's own, or its class token joined with the mean of its patches, which
    is twice as wide.
    """

    architecture: str = Field(min_length=1)
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
        return {key: value if key in TEXTS else json.dumps(value) for key, value in sorted(said.items())}

    @staticmethod
    def of_metadata(metadata: Mapping[str, str], what: str = "weights") -> "Description":
        """Inverse of `to_metadata`; keys that are not ours are left out.

        what: the file, for the message. Raises BackboneError naming the key that cannot be read.
        """
        said: dict[str, Any] = {key: value for key, value in metadata.items() if key in Description.model_fields}
        for key in said.keys() - TEXTS:
            try:
                said[key] = json.loads(said[key])
            except ValueError:
                raise _refuse(what, f"metadata {key!r} to be JSON{_EXAMPLES.get(key, '')}", said[key]) from None
        return _validate(what, "metadata", said)

    @staticmethod
    def of_config(
        config: Mapping[str, Any], what: str, *, repository: str = "", licence: str = UNKNOWN
    ) -> "Description":
        """What timm's `config.json` says, completed by what the repository's card says in Python (`model_cards`).

        what: the folder or hub name, for the message. repository: `owner/name` on the hub, where it is known. licence:
        that of the model card (`read_licence`), which outranks `pretrained_cfg.license`: timm's own export writes
        there what it knows of the architecture. Raises BackboneError for a config of another library.
        """
        if not isinstance(config.get("architecture"), str):
            raise _refuse_config(what, config)
        older = "pretrained_cfg" not in config  # of earlier timm: everything at one level
        cfg = config if older else config["pretrained_cfg"]
        args = config.get("model_args") or {}
        if not isinstance(cfg, Mapping) or not isinstance(args, Mapping):
            raise _refuse(what, "`pretrained_cfg` and `model_args` of config.json to be objects", "something else")
        card = find_card(repository)
        args = {**card.model_args, **args}
        size = cfg.get("input_size")
        if "img_size" not in args and isinstance(size, list) and len(size) == 3:
            args["img_size"] = size[1:]
        said = {
            "architecture": config["architecture"].partition(".")[0],
            "model_args": args,
            "mean": cfg.get("mean"),
            "std": cfg.get("std"),
            "licence": licence if licence != UNKNOWN else cfg.get("license") or UNKNOWN,
            "source": f"hf-hub:{repository}" if repository else "",
            "feature": config.get("feature") or ("token+mean" if card.joined else "own"),
        }
        return _validate(what, "config.json", said)


_EXAMPLES = {
    "mean": ", a JSON list of numbers, for example [0.5, 0.5, 0.5]",
    "std": ", a JSON list of numbers, for example [0.5, 0.5, 0.5]",
    "model_args": ', for example {"init_values": 1e-05}',
    "trained": ", true or false",
}


def read_licence(card: str) -> str:
    """`license:` in the front matter of a model card; `license_name:` where it says `other`; `unknown` where neither.

    card: the text of README.md.
    """
    import yaml

    if not card.startswith("---"):
        return UNKNOWN
    try:
        front = yaml.safe_load(card[3:].partition("\n---")[0])
    except yaml.YAMLError:
        return UNKNOWN
    if not isinstance(front, dict):
        return UNKNOWN
    licence = front.get("license")
    named = front.get("license_name")
    if licence == "other" and isinstance(named, str) and named.strip():
        return named.strip()
    names = licence if isinstance(licence, list) else [licence]
    return ", ".join(name.strip() for name in names if isinstance(name, str) and name.strip()) or UNKNOWN


def _validate(what: str, where: str, said: Mapping[str, Any]) -> Description:
    try:
        return Description.model_validate(said)
    except ValidationError as error:
        first = error.errors()[0]
        key = str(first["loc"][0])
        raise _refuse(what, f"{where} {key!r} to be legal{_EXAMPLES.get(key, '')}", f"{said.get(key)!r}") from None


def _refuse(what: str, expected: str, found: str) -> BackboneError:
    return BackboneError(f"backbone {what}", expected=expected, found=found[:200], hint="Correct it.")


def _refuse_config(what: str, config: Mapping[str, Any]) -> BackboneError:
    expected = "timm's config.json, which says `architecture`, `model_args` and `pretrained_cfg`"
    if kind := config.get("model_type"):
        return BackboneError(
            f"backbone {what}",
            expected=expected,
            found=f"that of Hugging Face's library transformers, model_type {kind}",
            hint=f"Run `tessera backbone add {what}`, which converts such weights once.",
        )
    return BackboneError(
        f"backbone {what}",
        expected=expected,
        found="no `architecture` in it",
        hint='Add it, for example {"architecture": "vit_large_patch16_224", "model_args": {"init_values": 1e-05}}.',
    )
