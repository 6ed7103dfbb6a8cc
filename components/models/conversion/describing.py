"""The description of converted weights: architecture, arguments, normalisation, licence, and what had to be guessed."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from components.errors import BackboneError
from components.models.conversion.keys import Translated
from components.models.conversion.recognising import Told, recognise
from components.models.descriptions import UNKNOWN, Description
from components.models.downloads import download
from components.models.published import find_licence, find_record, is_architecture
from components.models.repositories import Source
from components.records.backbones import Addition

PREPROCESSOR = "preprocessor_config.json"
#: model_type of config.json -> whether its network is the plain one that timm has.
TRANSFORMERS = ("dinov2", "dinov2_with_registers", "vit", "vit_mae", "vit_msn")
#: Activations of transformers -> timm's names; "" for what timm's architecture has.
ACTIVATIONS = {"gelu": "", "gelu_new": "gelu_tanh", "gelu_pytorch_tanh": "gelu_tanh", "quick_gelu": "quick_gelu"}
EPS = 1e-6  # of timm's layer norms


def describe(
    asked: Addition, source: Source, metadata: Mapping[str, str], translated: Translated
) -> tuple[Description, list[str]]:
    """What the written file says of itself, and sentences on what was guessed.

    metadata: of a safetensors file. Raises BackboneError for another library's config.json, arguments that do not fit
    the tensors, and what must be named by --architecture.
    """
    what, notes = asked.source, list[str]()
    if translated.found.form == "transformers":
        said = _of_transformers(asked, source, translated, what, notes)
    elif not is_described(asked, source, metadata):
        said = _of_shapes(translated, Told(asked.architecture or _name_architecture(source)), what, notes)
    elif "architecture" in metadata:
        said = Description.of_metadata(metadata, asked.source)
    else:
        config = source.config or {}
        said = Description.of_config(config, asked.source, repository=source.repository, licence=source.licence)
    said = said.model_copy(update={"source": said.source or _name_source(source), **_find_published(source, said)})
    stated = {"licence": asked.licence, "mean": asked.mean, "std": asked.std, "feature": asked.feature}
    said = said.model_copy(update={key: value for key, value in stated.items() if value})
    if said.mean is None or said.std is None:
        notes.append(
            f"mean and std: those of timm's record of {said.architecture}, for the source names none; where its "
            "authors name others, add it again with --mean and --std."
        )
    return said, notes


def is_described(asked: Addition, source: Source, metadata: Mapping[str, str]) -> bool:
    """Whether the source itself says which network of timm it holds, and nobody says otherwise."""
    return not asked.architecture and ("architecture" in metadata or "architecture" in (source.config or {}))


def _name_source(source: Source) -> str:
    """Where it came from, without folders of this machine."""
    if source.repository:
        return f"hf-hub:{source.repository}" + (f"@{source.commit}" if source.commit else "")
    return Path(source.name).name


def _find_published(source: Source, said: Description) -> dict[str, Any]:
    """Licence, mean and std by the card, or by timm's record where the file is called as the very weights it is of."""
    model = source.file.stem if source.file else ""
    published = find_licence(model, said.architecture)
    licences = (said.licence, source.licence, published)
    found: dict[str, Any] = {"licence": next((each for each in licences if each not in ("", UNKNOWN)), UNKNOWN)}
    if published:
        record = find_record(source.name, model)
        found |= {"mean": said.mean or tuple(record.mean), "std": said.std or tuple(record.std)}
    return found


def _name_architecture(source: Source) -> str:
    """The architecture that a file is called by, as `vit_small_patch14_dinov2.mine.pth`; '' where timm has none."""
    name = (source.file or Path(source.name)).name.partition(".")[0]
    return name if is_architecture(name) else ""


def _of_shapes(translated: Translated, told: Told, what: str, notes: list[str]) -> Description:
    shapes = {name: tuple(tensor.shape) for name, tensor in translated.tensors.items()}
    network = recognise(shapes, told, what)
    notes += network.guessed
    return Description(architecture=network.architecture, model_args=network.model_args)


def _of_transformers(
    asked: Addition, source: Source, translated: Translated, what: str, notes: list[str]
) -> Description:
    """By config.json and preprocessor_config.json of transformers, where they are there."""
    config = source.config
    if config is None:
        notes.append("No config.json is beside the file: heads and activation are those of published networks.")
        return _of_shapes(translated, Told(asked.architecture), what, notes)
    kind, activation = config.get("model_type"), config.get("hidden_act", "gelu")
    if kind not in TRANSFORMERS or activation not in ACTIVATIONS or config.get("apply_layernorm", True) is not True:
        raise BackboneError(
            f"backbone {what}",
            expected=f"a model_type of {', '.join(TRANSFORMERS)}, with GELU and a final norm",
            found=f"model_type {kind}, hidden_act {activation}, apply_layernorm {config.get('apply_layernorm', True)}",
            hint="Look for the same weights in timm's form: `timm.list_pretrained('vit*')`.",
        )
    eps = config.get("layer_norm_eps", EPS)
    if eps != EPS:
        notes.append(f"Its layer norms add {eps:g} to variances, timm's {EPS:g}: features differ by about 1e-5.")
    act = "" if config.get("use_swiglu_ffn") else ACTIVATIONS[activation]
    said = _of_shapes(translated, Told(asked.architecture, config.get("num_attention_heads"), act), what, notes)
    pixels = _read_preprocessor(source, notes)
    mean, std = pixels.get("image_mean"), pixels.get("image_std")
    return said.model_copy(update={"mean": tuple(mean) if mean else None, "std": tuple(std) if std else None})


def _read_preprocessor(source: Source, notes: list[str]) -> dict[str, Any]:
    """preprocessor_config.json of the repository or folder; empty where there is none, or no hub to ask for it."""
    folder = source.folder or (source.file.parent if source.file else None)
    try:
        path = folder / PREPROCESSOR if folder else _download(source)
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    except BackboneError as error:  # the rest of the repository is in the hub's cache
        notes.append(f"{PREPROCESSOR}, which may name mean and std, is not there: {error.found}.")
        return {}
    except ValueError as error:
        hint = "Copy or download it again."
        raise BackboneError(
            f"backbone {source.name}", expected=f"{PREPROCESSOR} to be JSON", found=str(error), hint=hint
        ) from None
    return content if isinstance(content, dict) else {}


def _download(source: Source) -> Path:
    return download(source.name, source.repository, PREPROCESSOR, source.commit)
