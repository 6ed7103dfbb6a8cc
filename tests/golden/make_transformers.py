"""`python tests/golden/make_transformers.py`: tiny networks of the library transformers with what they answer.

One safetensors file for each case: its random weights under the library's own names (`weights.*`), two images
(`input`) and the last hidden states (`output`), with config.json in the metadata.
"""

import json
from pathlib import Path
from typing import Any

import torch
import transformers
from safetensors.torch import load_file, save_file

FOLDER = Path(__file__).parent / "transformers"
BASE = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "image_size": 12, "patch_size": 4}
BASE |= {"mlp_ratio": 2, "layer_norm_eps": 1e-6}
CASES: dict[str, tuple[str, dict[str, Any]]] = {
    "dinov2": ("Dinov2", {}),
    "dinov2_swiglu": ("Dinov2", {"use_swiglu_ffn": True}),
    "registers": ("Dinov2WithRegisters", {"num_register_tokens": 3}),
    "registers_swiglu": ("Dinov2WithRegisters", {"num_register_tokens": 4, "use_swiglu_ffn": True}),
    "vit": ("ViT", {"intermediate_size": 24}),
    "vit_no_bias": ("ViT", {"intermediate_size": 24, "qkv_bias": False, "hidden_act": "gelu_new"}),
}


def make(name: str, kind: str, options: dict[str, Any]) -> None:
    torch.manual_seed(len(name))
    config = getattr(transformers, f"{kind}Config")(**BASE, **options)
    model = getattr(transformers, f"{kind}Model")(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.2)
        images = torch.randn(2, 3, 12, 12)
        output = model(pixel_values=images).last_hidden_state
    model.save_pretrained(FOLDER / name)
    weights = load_file(FOLDER / name / "model.safetensors")
    tensors = {f"weights.{key}": tensor for key, tensor in weights.items()} | {"input": images, "output": output}
    if name in ("vit", "registers_swiglu"):  # the names of its modules, which torch.save of a state_dict writes
        tensors |= {f"modules.{key}": tensor.clone() for key, tensor in model.state_dict().items()}
    text = json.dumps(json.loads((FOLDER / name / "config.json").read_text()))
    save_file(tensors, FOLDER / f"{name}.safetensors", {"config": text, "version": transformers.__version__})
    for file in (FOLDER / name).iterdir():
        file.unlink()
    (FOLDER / name).rmdir()


if __name__ == "__main__":
    for case, (kind, options) in CASES.items():
        make(case, kind, options)
