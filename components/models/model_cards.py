"""What the model cards of known repositories pass to timm in Python, because their config.json does not say it.

A layer's class cannot be written in config.json, so the cards of networks with SwiGLU name it in code; the card of
Virchow2 also says in code what its feature is. What config.json does say is taken from there.
"""

from typing import Any, NamedTuple

SWIGLU: dict[str, Any] = {"mlp_layer": "SwiGLUPacked", "act_layer": "SiLU"}


class ModelCard(NamedTuple):
    """model_args: as `create_model` takes them, layers by name. joined: whether the feature is the class token joined
    with the mean of the patch tokens."""

    model_args: dict[str, Any]
    joined: bool = False


#: Repository in lower case, as the hub does not distinguish -> its card.
MODEL_CARDS: dict[str, ModelCard] = {
    "mahmoodlab/uni": ModelCard({"init_values": 1e-5, "dynamic_img_size": True}),
    "mahmoodlab/uni2-h": ModelCard(
        {
            **SWIGLU,
            "img_size": 224,
            "patch_size": 14,
            "depth": 24,
            "num_heads": 24,
            "init_values": 1e-5,
            "embed_dim": 1536,
            "mlp_ratio": 2.66667 * 2,
            "no_embed_class": True,
            "reg_tokens": 8,
            "dynamic_img_size": True,
        }
    ),
    "paige-ai/virchow": ModelCard(SWIGLU, joined=True),
    "paige-ai/virchow2": ModelCard(SWIGLU, joined=True),
    "bioptimus/h-optimus-0": ModelCard({"init_values": 1e-5, "dynamic_img_size": False}),
    "bioptimus/h-optimus-1": ModelCard({"init_values": 1e-5, "dynamic_img_size": False}),
    "bioptimus/h0-mini": ModelCard(SWIGLU),
}


def find_card(repository: str) -> ModelCard:
    """The card of a repository `owner/name`; one that says nothing where it is not known."""
    return MODEL_CARDS.get(repository.lower(), ModelCard({}))
