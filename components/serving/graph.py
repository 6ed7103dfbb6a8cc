"""An adapter and its backbone as one ONNX graph: uint8 pixels in, probabilities out, everything in float32.

    pixels   (B, height, width, 3) uint8, on the canvas as training prepared them; B is free
    output   what `Head.decode_graph` says: calibrated probabilities (B, C), or, not calibrated yet, probabilities of
             the canvas (B, C, h, w) or boxes on it (B, K, 6)

Normalisation and temperature are inside. What a tuner inserted is folded into the backbone's weights wherever that is
possible, so the graph costs what the backbone costs; prompts remain, as further keys and values.
"""

import logging
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from components.errors import AdapterError, BackboneError
from components.models.adapter import AdapterMeta
from components.models.backbones import Backbone
from components.models.encoders import FullEncoder, PromptedEncoder, TunedEncoder, set_attention
from components.models.network import Network
from components.models.weights import load_adapter
from components.tasks.base import DenseTask

if TYPE_CHECKING:
    from onnx import ModelProto

OPSET = 18  # Triton's and OpenVINO's releases of several years read it
MOST_BYTES = 2_000_000_000  # of one ONNX file: a protocol buffer holds no more
EXAMPLES = 3  # images of the traced batch: a size that no other axis has


class Graph(nn.Module):
    """A network from uint8 pixels (B, height, width, 3) to what its head's `decode_graph` puts out.

    Adapters that can be merged are merged here: the network is changed.
    """

    def __init__(self, network: Network, meta: AdapterMeta) -> None:
        super().__init__()
        self.merged = _merge(network)
        self.network = network.eval().requires_grad_(False)
        set_attention(network.encoder.vit, True)
        self.temperature = 1.0 if isinstance(meta.task, DenseTask) else meta.temperature
        # The tracer gives constants it folds short names, such as `mean`, and ends where one is taken.
        for name in ("mean", "std"):
            self.register_buffer(f"pixel_{name}", torch.tensor(getattr(meta.backbone, name)).view(1, -1, 1, 1))
        self.pixel_mean: Tensor
        self.pixel_std: Tensor

    def forward(self, pixels: Tensor) -> Tensor:
        images = (pixels.permute(0, 3, 1, 2).float() / 255 - self.pixel_mean) / self.pixel_std
        return self.network.head.decode_graph(self.network(images), self.temperature)


def load_graph(adapter: Path, backbone: Backbone | None = None) -> Graph:
    """The adapter as a graph that torch computes, in float32 on the processor. Raises AdapterError, BackboneError."""
    network, meta = load_adapter(adapter, backbone)
    return Graph(network.cpu().float(), meta)


def _merge(network: Network) -> bool:
    """Give the network a plain encoder where its tuner allows; returns whether something was folded in.

    A layer without a bias cannot take up the shifts of SSF, and AdaptFormer's ReLU fits no matrix: these stay beside.
    """
    encoder = network.encoder
    if isinstance(encoder, FullEncoder):
        network.encoder = PromptedEncoder(encoder.vit, None)
    if not isinstance(encoder, TunedEncoder):
        return False
    try:
        network.encoder = PromptedEncoder(encoder.merge(), None)
    except (TypeError, BackboneError):
        return False
    return True


def write_graph(graph: Graph, meta: AdapterMeta, target: Path, facts: dict[str, str]) -> None:
    """Write the ONNX file. facts: what its own metadata say of it. Raises AdapterError where one file is too small."""
    size = sum(tensor.numel() * tensor.element_size() for tensor in graph.state_dict().values())
    if size > MOST_BYTES:
        raise AdapterError(
            f"export of {meta.label} on {meta.backbone.name}",
            expected=f"weights of at most {MOST_BYTES / 1e9:g} GB, which one ONNX file can hold",
            found=f"{size / 1e9:.1f} GB",
            hint="Serve it with `tessera serve`.",
        )
    import onnx

    model = _trace(graph, meta)
    _strip(model)
    for key, value in facts.items():
        model.metadata_props.add(key=key, value=value)
    onnx.checker.check_model(model)
    onnx.save_model(model, str(target))


def _trace(graph: Graph, meta: AdapterMeta) -> "ModelProto":
    height, width = meta.backbone.img_size
    example = torch.zeros(EXAMPLES, height, width, 3, dtype=torch.uint8)
    for name in ("onnxscript", "onnx_ir", "torch.onnx"):
        logging.getLogger(name).setLevel(logging.ERROR)  # they comment on each step
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")
        program: Any = torch.onnx.export(
            graph,
            (example,),
            dynamo=True,
            opset_version=OPSET,
            input_names=["pixels"],
            output_names=["answers"],
            dynamic_shapes={"pixels": {0: torch.export.Dim("batch")}},
            external_data=False,
            verbose=False,
        )
    return program.model_proto


def _strip(model: "ModelProto") -> None:
    """Remove what the tracer notes of this machine: the paths and source lines that each node comes from."""
    del model.metadata_props[:]
    graphs = [model.graph, *model.functions]
    for part in graphs:
        for entry in (part, *part.node, *getattr(part, "initializer", ()), *getattr(part, "value_info", ())):
            entry.doc_string = ""
            if hasattr(entry, "metadata_props"):
                del entry.metadata_props[:]
    for entry in (*model.graph.input, *model.graph.output):
        del entry.metadata_props[:]
