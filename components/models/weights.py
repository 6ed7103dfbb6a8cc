"""The weights of an adapter: written from a network, and read back into one."""

import hashlib
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

from components.errors import AdapterError
from components.files import flush, whole_folder
from components.models.adapter import (
    META_FILE,
    RETRAIN,
    WEIGHTS_FILE,
    AdapterMeta,
    load_meta,
    name_some,
    require_alone,
    require_digest,
)
from components.models.backbones import Backbone, load_backbone
from components.models.network import Network, create_network

PICKLED = (b"\x80", b"PK\x03\x04")  # how a pickle and torch.save's archive of pickles begin


def save_adapter(folder: Path, network: Network, meta: AdapterMeta) -> str:
    """Write the adapter, replacing one that is there; returns the sha256 of adapter.safetensors."""
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in network.trainable_parameters().items()}
    # One metadata key only: safetensors writes several in an order that changes from run to run.
    weights = save(dict(sorted(tensors.items())), metadata={"format": "pt"})
    digest = hashlib.sha256(weights).hexdigest()
    record = meta.model_copy(update={"adapter_sha256": digest}).model_dump(mode="json")
    text = json.dumps(record, indent=1, sort_keys=True, ensure_ascii=False) + "\n"
    try:
        _write_folder(folder, {WEIGHTS_FILE: weights, META_FILE: text.encode()})
    except OSError as error:
        hint = "Free some space or correct the permissions, and train again; checkpoints are kept."
        expected, found = "a writable folder with free space", error.strerror or str(error)
        raise AdapterError(f"adapter {folder}", expected=expected, found=found, hint=hint) from None
    return digest


def load_adapter(folder: Path, backbone: Backbone | None = None) -> tuple[Network, AdapterMeta]:
    """The network in eval mode, and its record. Without `backbone` the one named in the record is loaded.

    Raises AdapterError where the adapter is damaged, has further files beside it or belongs to another backbone,
    BackboneError where that cannot be loaded.
    """
    opened = _open(folder, backbone)
    meta = opened.meta
    network = create_network(opened.backbone, meta.tuner, len(meta.classes), meta.seed, meta.task)
    parameters = network.trainable_parameters()
    opened.require_fit(dict(parameters))
    with torch.no_grad():
        for name, parameter in parameters.items():
            parameter.copy_(opened.tensors[name])
    return network.eval(), meta


def load_tensors(
    folder: Path, backbone: Backbone, describe: Callable[[AdapterMeta], Mapping[str, Tensor]]
) -> tuple[dict[str, Tensor], AdapterMeta]:
    """The tensors of an adapter alone, and its record; raises AdapterError as `load_adapter` does.

    describe: tensors, without memory will do, of the names, shapes and dtypes that its network trains.
    """
    opened = _open(folder, backbone)
    opened.require_fit(describe(opened.meta))
    return opened.tensors, opened.meta


@dataclass(frozen=True)
class _Opened:
    """An adapter's files as they were read, and the backbone it stands on."""

    folder: Path
    meta: AdapterMeta
    backbone: Backbone
    tensors: dict[str, Tensor]
    digest: str

    def require_fit(self, parameters: Mapping[str, Tensor]) -> None:
        """Raise AdapterError unless the tensors are those that its network trains, and unchanged since."""
        _require_fit(self.folder, self.tensors, parameters)
        require_digest(self.folder, self.meta, self.digest)  # last, for the others say more


def _open(folder: Path, backbone: Backbone | None) -> _Opened:
    meta = load_meta(folder)
    require_alone(folder)
    tensors, digest = _load_tensors(folder)
    backbone = backbone or load_backbone(meta.backbone.name, meta.backbone.img_size)
    _require_backbone(folder, meta, backbone)
    return _Opened(folder, meta, backbone, tensors, digest)


def _load_tensors(folder: Path) -> tuple[dict[str, Tensor], str]:
    """The tensors of adapter.safetensors, and the sha256 of its bytes."""
    what = f"adapter {folder}, {WEIGHTS_FILE}"
    try:
        data = (folder / WEIGHTS_FILE).read_bytes()
    except OSError as error:
        raise AdapterError(what, expected="a file", found=error.strerror or "none", hint=RETRAIN) from None
    try:
        return load(data), hashlib.sha256(data).hexdigest()
    except SafetensorError as error:
        if data.startswith(PICKLED):  # asked last, for the length of a whole file's header may begin with these bytes
            found = "a pickle, which may run code when it is opened"
            hint = "Do not trust where it came from."
            raise AdapterError(what, expected="safetensors", found=found, hint=hint) from None
        raise AdapterError(what, expected="a whole safetensors file", found=str(error), hint=RETRAIN) from None


def _require_backbone(folder: Path, meta: AdapterMeta, backbone: Backbone) -> None:
    wanted = meta.backbone
    if backbone.sha256 != wanted.sha256:
        raise AdapterError(
            f"adapter {folder}",
            expected=f"the backbone it was trained on, {wanted.name} with sha256 {wanted.sha256[:12]}",
            found=f"{backbone.name} with sha256 {backbone.sha256[:12]}",
            hint="Give it that backbone, or train it again on this one.",
        )
    found = (backbone.img_size, tuple(backbone.mean), tuple(backbone.std))
    if found != (wanted.img_size, wanted.mean, wanted.std):
        raise AdapterError(
            f"adapter {folder}",
            expected=f"img_size {wanted.img_size.plain}, mean {wanted.mean}, std {wanted.std}, as in training",
            found=f"img_size {found[0].plain}, mean {found[1]}, std {found[2]}",
            hint=f"Load the backbone with img_size={wanted.img_size.plain}, or train the adapter again.",
        )


def _require_fit(folder: Path, tensors: Mapping[str, Tensor], parameters: Mapping[str, Tensor]) -> None:
    """Raise AdapterError unless names, shapes and dtypes are exactly the network's."""
    what = f"adapter {folder}, {WEIGHTS_FILE}"
    if missing := sorted(parameters.keys() - tensors.keys()):
        raise AdapterError(what, expected=f"the tensors {name_some(missing)}", found="none such", hint=RETRAIN)
    if extra := sorted(tensors.keys() - parameters.keys()):
        expected = "only the tensors its tuner trains"
        raise AdapterError(what, expected=expected, found=f"also {name_some(extra)}", hint=RETRAIN)
    for name, parameter in parameters.items():
        wanted, found = _form(parameter), _form(tensors[name])
        if wanted != found:
            raise AdapterError(what, expected=f"{name} to be {wanted}", found=found, hint=RETRAIN)


def _form(tensor: Tensor) -> str:
    return f"{str(tensor.dtype).removeprefix('torch.')} {tuple(tensor.shape)}"


def _write_folder(folder: Path, files: Mapping[str, bytes]) -> None:
    """Make the folder appear whole, and on the disk."""
    with whole_folder(folder) as fresh:
        for name, data in files.items():
            _write_flushed(fresh / name, data)
        flush(fresh)
    flush(folder.parent)


def _write_flushed(path: Path, data: bytes) -> None:
    path.write_bytes(data)
    flush(path)
