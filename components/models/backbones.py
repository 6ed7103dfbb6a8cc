"""Backbones: frozen vision transformers, by timm name, from a file, a folder or a repository, or the embedded one.

    load_backbone("embedded")                                        the small one inside this package
    load_backbone("vit_base_patch16_224.augreg_in21k", img_size=384) timm's weights, through the hub or its cache
    load_backbone("hf-hub:paige-ai/Virchow2")                        a repository, through the hub or its cache
    load_backbone("weights/uni2")                                    a folder: config.json beside model.safetensors
    load_backbone("weights/vit_tiny_patch16_224.mine.safetensors")   a local file

A local file says which timm architecture it holds by its metadata (`descriptions.Description`), or by its name,
`<architecture>[.<tag>].safetensors`. The hub is only ever a way to such a file, so all ways give the same network and
the same sha256. Weights are never unpickled, and never replaced by random ones.
"""

import copy
import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any
from weakref import WeakValueDictionary

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from components.domain.canvas import ImgSize
from components.errors import BackboneError
from components.models import embedded, hub
from components.models.construction import create_skeleton, create_vit
from components.models.descriptions import UNKNOWN, Description
from components.models.downloads import download, unreachable
from components.models.published import find_licence, find_record, is_architecture, require_published
from components.models.repositories import CARD, CONFIG, PREFIX, Source, find_source, is_path

if TYPE_CHECKING:
    from timm.models.vision_transformer import VisionTransformer


@dataclass(frozen=True)
class Backbone:
    """A frozen network and what must be known of it to use it and to recognise it again.

    sha256: of the weights as stored, before positions are resampled to img_size. mean, std: of the pixels,
    in [0, 1]. trained: False where features mean nothing. licence: `unknown` unless the weights' own words, or timm's
    record of exactly these, say it. architecture: timm's name. source: where the weights came from.

    The backbone owns its weights: `tensor` and `at` return them in another dtype or on another device. All adapters
    of a process therefore share one copy per dtype and device, which is freed with the last adapter that uses it.
    """

    name: str
    vit: "VisionTransformer"
    sha256: str
    img_size: ImgSize
    mean: tuple[float, ...]
    std: tuple[float, ...]
    trained: bool
    licence: str
    architecture: str = ""
    source: str = ""
    _casts: "WeakValueDictionary[tuple[str, torch.dtype, torch.device], Tensor]" = field(
        default_factory=WeakValueDictionary, init=False, repr=False, compare=False
    )

    def tensor(self, name: str, dtype: torch.dtype, device: torch.device) -> Tensor:
        """The parameter or buffer called `name`, frozen, in `dtype` on `device`: the same object at every call while in
        use."""
        module, _, part = name.rpartition(".")
        original: Tensor = getattr(self.vit.get_submodule(module), part)
        if (original.dtype, original.device) == (dtype, device):
            return original
        key = (name, dtype, device)
        found = self._casts.get(key)
        if found is None:
            found = original.detach().to(device, dtype)
            if isinstance(original, nn.Parameter):
                found = nn.Parameter(found, requires_grad=False)
            self._casts[key] = found
        return found

    def at(self, dtype: torch.dtype, device: torch.device) -> "VisionTransformer":
        """The whole network in `dtype` on `device`: modules of the caller's own over the shared tensors.

        Rotary positions keep their precision: a place times a rounded frequency is another place.
        """
        tensors = [*self.vit.named_parameters(), *self.vit.named_buffers()]
        forms = {
            id(old): self.tensor(name, old.dtype if name.startswith("rope.") else dtype, device)
            for name, old in tensors
        }
        return share_weights(self.vit, forms)


def share_weights(vit: "VisionTransformer", forms: Mapping[int, Tensor] | None = None) -> "VisionTransformer":
    """The same network over the same tensors: its modules may be replaced without touching the other's.

    forms: id of a tensor -> the one in its place.
    """
    tensors = {id(tensor): tensor for tensor in [*vit.parameters(), *vit.buffers()]}
    return copy.deepcopy(vit, {**tensors, **(forms or {})}).requires_grad_(False)


@dataclass(frozen=True)
class Weights:
    """The tensors of a weight file without its classifier, and what the file says of itself."""

    tensors: dict[str, Tensor]
    metadata: dict[str, str]


def load_backbone(name: str, img_size: int | tuple[int, int] | None = None) -> Backbone:
    """The backbone called `name`, frozen, in eval mode, without classifier.

    img_size: side of a square or (height, width) of its images, in pixels, to which positions are resampled; None means
    its own.

    Raises BackboneError for an unknown name, a damaged file, a hub out of reach, arguments that do not fit the weights
    or a network that the tuners do not know.
    """
    name, _ = hub.choose_backbone(name)
    size = None if img_size is None else ImgSize.of(img_size)
    if name == hub.EMBEDDED:
        return _load_embedded(size)
    if name.startswith(PREFIX) or is_path(name):
        return _load_source(find_source(name), size)
    return _load_published(name, size)


def load_weights(path: Path) -> Weights:
    """Read a safetensors file, leaving out the classifier `head.*`, which no adapter keeps."""
    if not path.is_file():
        found = "no such file"
        raise BackboneError(f"backbone {path}", expected="a file", found=found, hint="Correct the path.")
    try:
        with safe_open(path, framework="pt") as file:
            names = [key for key in file.keys() if not key.startswith("head.")]  # noqa: SIM118  no mapping
            return Weights({key: file.get_tensor(key) for key in names}, dict(file.metadata() or {}))
    except (SafetensorError, OSError) as error:
        raise BackboneError(
            f"backbone {path}",
            expected="a whole safetensors file",
            found=str(error),
            hint="Copy or download it again.",
        ) from None


def hash_tensors(tensors: dict[str, Tensor]) -> str:
    """sha256 over name, dtype, shape and bytes of every tensor in the order of names: the same on any machine."""
    digest = hashlib.sha256()
    for name in sorted(tensors):
        tensor = tensors[name].detach().cpu().contiguous()
        digest.update(f"{name} {str(tensor.dtype).removeprefix('torch.')} {list(tensor.shape)}\n".encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def _load_embedded(img_size: ImgSize | None) -> Backbone:
    """The file that ships with this package, if it is still the one on its card."""
    source = Source(hub.EMBEDDED, file=embedded.require_embedded())
    return replace(_load_source(source, img_size), licence=embedded.load_card().licence)


def _load_source(source: Source, img_size: ImgSize | None) -> Backbone:
    """What config.json says is checked before anything large is fetched; the file's own word outranks it."""
    described = None
    if source.config is not None:
        described = Description.of_config(
            source.config, source.name, repository=source.repository, licence=source.licence
        )
        find_record(source.name, described.architecture)
        create_skeleton(source.name, described)
    path = source.fetch()
    weights = load_weights(path)
    if described is None or "architecture" in weights.metadata:
        described = _describe_file(source, path, weights)
    return _create_backbone(source.name, described, weights, img_size, _say_where(source, path))


def _describe_file(source: Source, path: Path, weights: Weights) -> Description:
    """What a file says of itself by its metadata and, where these are silent, by its name.

    timm's record lends its licence only to the very weights that it is of: those whose tag the file's name carries.
    """
    model = path.name.removesuffix(".safetensors")
    described = Description.of_metadata({"architecture": model, **weights.metadata}, source.name)
    if not is_architecture(described.architecture):
        raise _refuse_file(source, described.architecture, weights)
    if described.licence == UNKNOWN and (licence := find_licence(model, described.architecture)):
        described = described.model_copy(update={"licence": licence})
    return described


def _create_backbone(
    name: str, described: Description, weights: Weights, img_size: ImgSize | None, where: str
) -> Backbone:
    record = find_record(name, described.architecture)
    vit, size = create_vit(name, described, weights.tensors, record, img_size, where)
    return Backbone(
        name,
        vit,
        hash_tensors(weights.tensors),
        size,
        described.mean or tuple(record.mean),
        described.std or tuple(record.std),
        trained=described.trained,
        licence=described.licence,
        architecture=described.architecture.partition(".")[0],
        source=described.source,
    )


def _load_published(name: str, img_size: ImgSize | None) -> Backbone:
    """Weights that timm publishes; a bare architecture means the first of them."""
    from timm.models import get_pretrained_cfg

    require_published(name)
    record: Any = get_pretrained_cfg(name)
    described = Description(architecture=name, licence=record.license or UNKNOWN, source=f"{PREFIX}{record.hf_hub_id}")
    create_skeleton(name, described)
    weights = load_weights(fetch_published(name, record))
    return _create_backbone(name, described, weights, img_size, "the file's metadata")


def fetch_published(name: str, record: Any) -> Path:
    """The weight file from the hub's cache on this disk, or from the hub."""
    hint = (
        "Connect to the network, or fetch model.safetensors elsewhere and give `backbone` the path of the file, "
        f"called {name}.safetensors."
    )
    if not record.hf_hub_id:
        raise unreachable(name, "weights that timm knows in a pickled form only", hint)
    # timm's record may name the pickled twin of a file that is there in both forms
    file = str(Path(record.hf_hub_filename or "model").with_suffix(".safetensors"))
    try:
        return download(name, record.hf_hub_id, file, None, hint)
    except FileNotFoundError:
        raise unreachable(name, f"no {file} in {record.hf_hub_id}", hint) from None


def _say_where(source: Source, path: Path) -> str:
    if source.config is None:
        return f"the metadata of {path.name}"
    return f"{source.folder}/{CONFIG}" if source.folder else f"{CONFIG} of a copy of the repository's folder"


def _refuse_file(source: Source, model: str, weights: Weights) -> BackboneError:
    if source.folder or source.repository:
        return BackboneError(
            f"backbone {source.name}",
            expected=f"{CONFIG} beside the weights, or weights whose metadata say `architecture`",
            found=f"neither; {_describe_tensors(weights.tensors)}",
            hint=f"Copy {CONFIG} and {CARD} of the repository, too.",
        )
    return BackboneError(
        f"backbone {source.name}",
        expected="a file called <timm architecture>[.<tag>].safetensors, or one whose metadata says `architecture`",
        found=f"{model!r}, which timm does not know; {_describe_tensors(weights.tensors)}",
        hint="Rename it, for example to vit_tiny_patch16_224.mine.safetensors.",
    )


def _describe_tensors(tensors: dict[str, Tensor]) -> str:
    """What the shapes tell of an unknown ViT, for the error message."""
    patches = tensors.get("patch_embed.proj.weight")
    depth = len({name.split(".")[1] for name in tensors if name.startswith("blocks.")})
    if patches is None or patches.ndim != 4:
        return "its tensors are not those of a timm ViT"
    return f"its tensors are of patch {patches.shape[-1]}, embed_dim {patches.shape[0]}, depth {depth}"
