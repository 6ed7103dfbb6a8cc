"""Arguments of a network as `model_args` gives them in config.json or in a file's metadata: read as data, never run.

A layer is named by a text and found in the table below; no name is ever imported.
"""

import difflib
import inspect
from collections.abc import Callable, Mapping
from typing import Any

from components.errors import BackboneError

#: Argument -> how configs write a layer, in lower case without underscores -> its name in timm.layers.
LAYERS: dict[str, dict[str, str]] = {
    "mlp_layer": {"mlp": "Mlp", "glumlp": "GluMlp", "swiglu": "SwiGLU", "swiglupacked": "SwiGLUPacked"},
    "attn_layer": {"attn": "Attention", "attention": "Attention"},
    "embed_layer": {"patchembed": "PatchEmbed"},
    "act_layer": {
        "gelu": "gelu",
        "gelutanh": "gelu_tanh",
        "quickgelu": "quick_gelu",
        "silu": "silu",
        "swish": "silu",
        "relu": "relu",
    },
    "norm_layer": {
        "layernorm": "layernorm",
        "layernormfp32": "layernormfp32",
        "rmsnorm": "rmsnorm",
        "rmsnormfp32": "rmsnormfp32",
        "simplenorm": "simplenorm",
    },
}
LAYERS["embed_norm_layer"] = LAYERS["norm_layer"]

#: The classifier, which no adapter keeps; how the network's own training dropped and initialised.
WITHOUT_EFFECT = {
    *("num_classes", "weight_init", "fix_init", "head_init_scale"),
    *("drop_rate", "pos_drop_rate", "patch_drop_rate", "proj_drop_rate", "attn_drop_rate", "drop_path_rate"),
}
OURS = {"self", "device", "dtype", "block_fn"}  # not for a config to choose
MOST = 2**16  # of any number: a depth or width beyond has no end


def read_arguments(what: str, network: type, args: Mapping[str, Any]) -> dict[str, Any]:
    """`model_args` as timm's `create_model` takes them: layers as classes, without what has no effect here.

    what: the backbone, for messages. network: timm's class, whose signature says which arguments there are. Raises
    BackboneError for an argument or a layer that is not known, or a value that is not plain data.
    """
    known = inspect.signature(network).parameters.keys() - OURS
    read = {}
    for argument, value in args.items():
        if argument not in known:
            raise _refuse_name(what, network, argument, sorted(known))
        if argument == "in_chans" and value != 3:
            raise _refuse(what, "in_chans 3: pictures have three channels", f"in_chans {value!r}")
        if value is None or argument in WITHOUT_EFFECT:
            continue
        read[argument] = (
            _find_layer(what, argument, value) if argument in LAYERS else _require_data(what, argument, value)
        )
    return read


def _find_layer(what: str, argument: str, value: Any) -> Callable[..., Any]:
    from timm import layers

    table = LAYERS[argument]
    key = value.rpartition(".")[2].lower().replace("_", "") if isinstance(value, str) else ""
    if key not in table:
        raise _refuse(what, f"{argument} to be one of {', '.join(sorted(set(table.values())))}", repr(value)[:80])
    find = {"act_layer": layers.get_act_layer, "norm_layer": layers.get_norm_layer}
    find["embed_norm_layer"] = layers.get_norm_layer
    layer: Callable[..., Any] = find[argument](table[key]) if argument in find else getattr(layers, table[key])
    return layer


def _require_data(what: str, argument: str, value: Any) -> Any:
    """A text, a number, a truth value, or a few numbers."""
    parts = value if isinstance(value, list | tuple) else [value]
    whole = all(
        isinstance(part, str | int | float) and not (isinstance(part, str) and len(parts) > 1) for part in parts
    )
    if not whole or len(parts) > 64 or any(not isinstance(part, str) and not abs(part) <= MOST for part in parts):
        raise _refuse(what, f"{argument} to be a number, a text or a short list of numbers", repr(value)[:80])
    return tuple(value) if isinstance(value, list) else value


def _refuse(what: str, expected: str, found: str) -> BackboneError:
    return BackboneError(f"backbone {what}, model_args", expected=expected, found=found, hint="Correct model_args.")


def _refuse_name(what: str, network: type, argument: str, known: list[str]) -> BackboneError:
    close = difflib.get_close_matches(argument, known, 3, cutoff=0.5)
    return BackboneError(
        f"backbone {what}, model_args",
        expected=f"arguments of timm's {network.__name__}",
        found=f"{argument!r}" + (f"; close ones are {', '.join(close)}" if close else ""),
        hint="Correct the name in model_args, or remove it.",
    )
