"""Backbones: frozen vision transformers, by timm name, from a local safetensors file, or the embedded one.

    load_backbone("embedded")                                        the small one inside this package
    load_backbone("vit_base_patch16_224.augreg_in21k", img_size=384) timm's weights, through the hub or its cache
    load_backbone("weights/vit_tiny_patch16_224.mine.safetensors")   a local file

A local file says which timm architecture it holds by its name, `<architecture>[.<tag>].safetensors`, or by its
metadata: `architecture`, and where they differ from timm's record `mean`, `std` (JSON lists), `licence` and
`trained`. The hub is only ever a way to such a file, so both ways give the same network and the same sha256.
Weights are never unpickled, and never replaced by random ones.
"""

import copy
import difflib
import hashlib
import json
import math
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
from components.models.plain import require_plain_vit

if TYPE_CHECKING:
    from timm.models.vision_transformer import VisionTransformer

HUB_SECONDS = 5.0  # to wait for the answer about one file
PICKLES = (".pt", ".pth", ".bin", ".ckpt", ".pkl", ".npz", ".tar")


@dataclass(frozen=True)
class Backbone:
    """A frozen network and what must be known of it to use it and to recognise it again.

    sha256: of the weights as stored, before positions are resampled to img_size. mean, std: of the pixels,
    in [0, 1]. trained: False where features mean nothing.

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
    _casts: "WeakValueDictionary[tuple[str, torch.dtype, torch.device], nn.Parameter]" = field(
        default_factory=WeakValueDictionary, init=False, repr=False, compare=False
    )

    def tensor(self, name: str, dtype: torch.dtype, device: torch.device) -> nn.Parameter:
        """The parameter called `name`, frozen, in `dtype` on `device`: the same object at every call while in use."""
        original: nn.Parameter = self.vit.get_parameter(name)
        if (original.dtype, original.device) == (dtype, device):
            return original
        key = (name, dtype, device)
        found = self._casts.get(key)
        if found is None:
            found = nn.Parameter(original.detach().to(device, dtype), requires_grad=False)
            self._casts[key] = found
        return found

    def at(self, dtype: torch.dtype, device: torch.device) -> "VisionTransformer":
        """The whole network in `dtype` on `device`: modules of the caller's own over the shared tensors."""
        forms = {id(old): self.tensor(name, dtype, device) for name, old in self.vit.named_parameters()}
        return share_weights(self.vit, forms).to(device)  # moves the buffers, where there are any


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

    Raises BackboneError for an unknown name, a damaged file, a hub out of reach or a network that is no plain ViT.
    """
    name, _ = hub.choose_backbone(name)
    size = None if img_size is None else ImgSize.of(img_size)
    if name == hub.EMBEDDED:
        return _load_embedded(size)
    path = Path(name).expanduser()
    if path.suffix == ".safetensors":
        return _load_file(name, path, size)
    if path.suffix in PICKLES or path.name != name:
        raise BackboneError(
            f"backbone {name}",
            expected="a .safetensors file",
            found=f"a {path.suffix or 'path'}, and pickles, which run code when they are opened, are never read",
            hint="Convert it with safetensors.torch.save_file, and load that.",
        )
    config = _require_known(name)
    require_plain_vit(_create_skeleton(name), name)
    return _create_backbone(name, name, load_weights(_fetch_weights(name, config)), config, size)


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
    return replace(
        _load_file(hub.EMBEDDED, embedded.require_embedded(), img_size), licence=embedded.load_card().licence
    )


def _load_file(name: str, path: Path, img_size: ImgSize | None) -> Backbone:
    weights = load_weights(path)
    model = weights.metadata.get("architecture", path.name.removesuffix(".safetensors"))
    try:
        config = _find_config(model)
    except LookupError:
        raise BackboneError(
            f"backbone {name}",
            expected="a file called <timm architecture>[.<tag>].safetensors, or one whose metadata says `architecture`",
            found=f"{model!r}, which timm does not know; {_describe_tensors(weights.tensors)}",
            hint="Rename it, for example to vit_tiny_patch16_224.mine.safetensors.",
        ) from None
    require_plain_vit(_create_skeleton(model), name)
    return _create_backbone(name, model, weights, config, img_size)


def _create_backbone(name: str, model: str, weights: Weights, config: Any, img_size: ImgSize | None) -> Backbone:
    """Put weights into the architecture at the size asked for; every tensor must find its place."""
    import timm

    skeleton = _create_skeleton(model)
    own = _own_size(weights.tensors, skeleton) or ImgSize.of(config.input_size[-2:])
    size = _require_size(name, skeleton, img_size or own)
    # timm renames, checks and resamples a state dict handed over in this way as it does its own downloads.
    # num_classes=0 on both sides keeps its check strict.
    stored = {"state_dict": weights.tensors, "num_classes": 0, "custom_load": False}
    overlay: dict[str, Any] = {"num_classes": 0, "pretrained_cfg_overlay": stored}
    try:
        with torch.random.fork_rng(devices=[]):  # timm draws random weights first: the caller's dice stay as they were
            vit = timm.create_model(_architecture(model), pretrained=True, img_size=tuple(size), **overlay)
    except (RuntimeError, KeyError) as error:
        raise BackboneError(
            f"backbone {name}",
            expected=f"the tensors of timm's {_architecture(model)}",
            found=" ".join(str(error).split())[:300],
            hint="Correct the architecture in the file's name or metadata.",
        ) from None
    vit.pretrained_cfg.pop("state_dict", None)
    said = weights.metadata
    return Backbone(
        name,
        _freeze(vit),
        hash_tensors(weights.tensors),
        size,
        _numbers(said, "mean", config.mean, name),
        _numbers(said, "std", config.std, name),
        trained=said.get("trained", "true") != "false",
        licence=said.get("licence") or config.license or "unknown",
    )


def _freeze(vit: "VisionTransformer") -> "VisionTransformer":
    return vit.requires_grad_(False).eval()


def _architecture(model: str) -> str:
    return model.partition(".")[0]


def _create_skeleton(model: str) -> Any:
    """The architecture without memory for its weights: enough to look at, in a tenth of a second."""
    import timm

    with torch.device("meta"):
        return timm.create_model(_architecture(model), pretrained=False, num_classes=0)


def _find_config(model: str) -> Any:
    """timm's record of the weights called `model`; a tag unknown to timm gets its architecture's first record.

    Raises LookupError for an unknown architecture.
    """
    from timm.models import get_arch_pretrained_cfgs, get_pretrained_cfg

    records = get_arch_pretrained_cfgs(model)
    if not records:
        raise LookupError(model)
    return records.get(model) or get_pretrained_cfg(_architecture(model))


def _require_known(name: str) -> Any:
    """timm's record of published weights; a bare architecture means the first of its weights."""
    from timm.models import get_pretrained_cfg, is_model, list_pretrained

    published = list_pretrained()
    known = {*published, *map(_architecture, published)}
    if name in known:
        return get_pretrained_cfg(name)
    close = difflib.get_close_matches(name, sorted(known), 5)
    found = "no such weights" if is_model(name) else "no such name"
    raise BackboneError(
        f"backbone {name}",
        expected="`embedded`, a path to a .safetensors file, or the name of timm weights",
        found=found + (f"; close ones are {', '.join(close)}" if close else ""),
        hint="Correct the name; `timm.list_pretrained('vit*')` lists all.",
    )


def _fetch_weights(name: str, config: Any) -> Path:
    """The weight file from the hub's cache on this disk, or from the hub."""
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import HTTPError, LocalEntryNotFoundError  # type: ignore[attr-defined]  # its client's

    if not config.hf_hub_id:
        raise _unreachable(name, "weights that timm knows in a pickled form only")
    # timm's record may name the pickled twin of a file that is there in both forms
    file = str(Path(config.hf_hub_filename or "model").with_suffix(".safetensors"))
    try:
        return Path(hf_hub_download(config.hf_hub_id, file, local_files_only=True))
    except LocalEntryNotFoundError:
        if reason := hub.why_unreachable():
            raise _unreachable(name, f"no such file in the cache, and {reason}") from None
    try:
        return Path(hf_hub_download(config.hf_hub_id, file, etag_timeout=HUB_SECONDS))
    except (HTTPError, OSError) as error:
        raise _unreachable(name, str(error).strip().splitlines()[0]) from None


def _unreachable(name: str, found: str) -> BackboneError:
    return BackboneError(
        f"backbone {name}",
        expected="its weights in the hub's cache or on the hub",
        found=found,
        hint="Connect to the network, or fetch model.safetensors elsewhere and give `backbone` the path of the file, "
        f"called {name}.safetensors.",
    )


def _own_size(tensors: dict[str, Tensor], vit: Any) -> ImgSize | None:
    """The size that the stored positions are made for, where they form a square grid: a file does not say its sides."""
    if vit.pos_embed is None or "pos_embed" not in tensors or tensors["pos_embed"].ndim != 3:
        return None
    patches = tensors["pos_embed"].shape[1] - (0 if vit.no_embed_class else vit.num_prefix_tokens)
    side = math.isqrt(max(patches, 0))
    height, width = vit.patch_embed.patch_size
    return ImgSize(int(side * height), int(side * width)) if side * side == patches and side else None


def _require_size(name: str, vit: Any, img_size: ImgSize) -> ImgSize:
    patch = ImgSize.of(vit.patch_embed.patch_size)
    if any(side < unit or side % unit for side, unit in zip(img_size, patch, strict=True)):
        lower = ImgSize(*(max(side // unit, 1) * unit for side, unit in zip(img_size, patch, strict=True)))
        upper = ImgSize(lower.height + patch.height, lower.width + patch.width)
        raise BackboneError(
            f"backbone {name}",
            expected=f"an img_size that is a multiple of its patch size, {patch}",
            found=f"img_size: {img_size.plain}",
            hint=f"Choose {lower.plain} or {upper.plain}.",
        )
    return img_size


def _numbers(metadata: dict[str, str], key: str, default: tuple[float, ...], name: str) -> tuple[float, ...]:
    if key not in metadata:
        return tuple(default)
    try:
        return tuple(float(value) for value in json.loads(metadata[key]))
    except (ValueError, TypeError):
        raise BackboneError(
            f"backbone {name}",
            expected=f"metadata {key!r} to be a JSON list of numbers, for example [0.5, 0.5, 0.5]",
            found=metadata[key],
            hint="Write the file again.",
        ) from None


def _describe_tensors(tensors: dict[str, Tensor]) -> str:
    """What the shapes tell of an unknown ViT, for the error message."""
    patches = tensors.get("patch_embed.proj.weight")
    depth = len({name.split(".")[1] for name in tensors if name.startswith("blocks.")})
    if patches is None or patches.ndim != 4:
        return "its tensors are not those of a timm ViT"
    return f"its tensors are of patch {patches.shape[-1]}, embed_dim {patches.shape[0]}, depth {depth}"
