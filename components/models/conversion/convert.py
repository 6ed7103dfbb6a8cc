"""One backbone from any source to one safetensors file that says what it is."""

from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from components.models.backbones import fetch_published, hash_tensors, load_backbone
from components.models.conversion.comparing import compare
from components.models.conversion.describing import describe, is_described
from components.models.conversion.keys import translate
from components.models.conversion.reading import SAFETENSORS, read_tensors, too_much, with_limits
from components.models.descriptions import UNKNOWN, Description
from components.models.published import find_record, require_published
from components.models.repositories import PREFIX, Source, find_source, is_path
from components.records.backbones import Addition, Converted


def convert(asked: Addition) -> Converted:
    """Read, translate, write and compare. Limits this process for good.

    Raises BackboneError for whatever is wrong with the source; `asked.target` may then hold a part of a file.
    """
    what = asked.source
    source = open_source(asked.source)
    path = source.fetch(pickles=True)
    with_limits(path.stat().st_size)
    try:
        tensors, metadata = read_tensors(path), read_metadata(path)
        translated = translate(tensors, what, as_is=is_described(asked, source, metadata))
        description, notes = describe(asked, source, metadata, translated)
        write(asked.target, translated.tensors, description)
        backbone = load_backbone(str(asked.target))
        compared = compare(backbone.vit, tensors, translated.found, source.config, description, what)
    except (MemoryError, RuntimeError) as error:
        if isinstance(error, RuntimeError) and "allocate" not in str(error):
            raise
        raise too_much(path) from None
    return Converted(sha256=backbone.sha256, compared=compared, left_out=translated.left_out, notes=tuple(notes))


def open_source(name: str) -> Source:
    """Also for a name of timm's, whose record then stands in the place of config.json."""
    if name.startswith(PREFIX) or is_path(name) or Path(name).exists():
        return find_source(name)
    require_published(name)
    record = find_record(name, name)
    config = {"architecture": name, "pretrained_cfg": {"mean": record.mean, "std": record.std}}
    file = fetch_published(name, record)
    return Source(name, file=file, repository=record.hf_hub_id, config=config, licence=record.license or UNKNOWN)


def read_metadata(path: Path) -> dict[str, str]:
    """What a safetensors file says of itself; empty for others."""
    if path.suffix != SAFETENSORS:
        return {}
    with safe_open(path, framework="pt") as file:
        return dict(file.metadata() or {})


def write(target: Path, tensors: Mapping[str, Tensor], description: Description) -> None:
    """Write the file; its metadata hold the hash of its tensors, too, as `tensors_sha256`."""
    apart: dict[str, Tensor] = {}
    places = set[int]()
    for name, tensor in sorted(tensors.items()):
        alone = tensor.untyped_storage().nbytes() == tensor.numel() * tensor.element_size()
        fit = alone and tensor.is_contiguous() and tensor.data_ptr() not in places  # safetensors wants no shared memory
        apart[name] = tensor if fit else tensor.clone(memory_format=torch.contiguous_format)
        places.add(tensor.data_ptr())
    save_file(apart, target, description.to_metadata() | {"tensors_sha256": hash_tensors(apart)})
