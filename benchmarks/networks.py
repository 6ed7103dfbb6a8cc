"""Which of timm's published vision transformers the tuners know, and of how many kinds their blocks are.

    python benchmarks/networks.py [--json FILE]

Counted are the published weights whose architecture is in one of timm's modules of vision transformers with tokens of
one size (`MODULES`). Every architecture is created without memory for its weights and asked of `why_not_plain`. A kind
is what a forward must tell apart in a block; tests/test_networks.py tries an example of each with every tuner.
"""

import argparse
import json
from collections import Counter
from pathlib import Path
from typing import Any

import timm
import torch
from timm.models import list_pretrained
from timm.models._registry import _model_to_module
from torch import nn

from components.models.plain import why_not_plain

MODULES = (
    "vision_transformer",
    "eva",
    "deit",
    "beit",
    "naflexvit",
    "vision_transformer_hybrid",
    "vision_transformer_relpos",
    "vision_transformer_sam",
)


def describe_kind(vit: Any) -> str:
    """What a forward must tell apart in the blocks of a network that the tuners know."""
    block, attn = vit.blocks[0], vit.blocks[0].attn
    first = attn.q_proj if getattr(attn, "q_proj", None) is not None else attn.qkv
    bias = "with biases" if first.bias is not None else "without biases"
    keys = getattr(attn, "k_proj", None)
    values_too = getattr(attn, "q_bias", None) is not None or (keys is not None and keys.bias is None)
    shared = any(getattr(each.attn, "num_kv_groups", 1) > 1 for each in vit.blocks)
    scales = [
        getattr(block, gamma, None) is not None or _is_there(getattr(block, ls, None))
        for ls, gamma in (("ls1", "gamma_1"), ("ls2", "gamma_2"))
    ]
    rope = getattr(vit, "rope", None)
    parts = [
        type(attn).__name__,
        "q, k, v in " + ("three matrices" if first is not attn.qkv else "one matrix"),
        "with biases of q and v" if values_too else bias,
        "q and k normalised" if _is_there(attn.q_norm) else "",
        "shared keys" if shared else "",
        "inner norm" if _is_there(attn.norm) else "",
        "gate" if attn.gate is not None else "",
        type(block.mlp).__name__ + (" with norm" if _is_there(getattr(block.mlp, "norm", None)) else ""),
        {(True, True): "layer scales", (True, False): "layer scale of attention"}.get((scales[0], scales[1]), ""),
        type(block.norm1).__name__,
        "" if rope is None else type(rope).__name__.removeprefix("RotaryEmbedding") + " RoPE",
    ]
    return ", ".join(filter(None, parts))


def _is_there(module: nn.Module | None) -> bool:
    return module is not None and not isinstance(module, nn.Identity)


def count_networks() -> dict[str, Any]:
    """The figures of networks.json: published weights by class, by reason, by kind."""
    weights = Counter(name.partition(".")[0] for name in list_pretrained())
    known, refused, kinds = Counter[str](), Counter[str](), dict[str, dict[str, Any]]()
    for architecture, count in sorted(weights.items()):
        if _model_to_module[architecture] not in MODULES:
            continue
        with torch.device("meta"):
            vit = timm.create_model(architecture, num_classes=0)
        if reason := why_not_plain(vit):
            refused[reason] += count
            continue
        known[type(vit).__name__] += count
        kind = kinds.setdefault(describe_kind(vit), {"example": architecture, "weights": 0})
        kind["weights"] += count
    return {
        "timm": timm.__version__,
        "weights": known.total() + refused.total(),
        "known": dict(sorted(known.items())),
        "refused": dict(refused.most_common()),
        "kinds": dict(sorted(kinds.items(), key=lambda row: -row[1]["weights"])),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, metavar="FILE")
    arguments = parser.parse_args()
    found = count_networks()
    print(f"{sum(found['known'].values())} of {found['weights']} weights: {found['known']}")
    for reason, count in found["refused"].items():
        print(f"{count:4} {reason}")
    for kind, row in found["kinds"].items():
        print(f"{row['weights']:4} {row['example']:36} {kind}")
    if arguments.json:
        arguments.json.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
