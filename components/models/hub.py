"""The model hub: whether it answers, and which backbone is used where a domain names none. Imports no torch.

Asked once per process. A plan names the backbone that was chosen, so training processes do not ask.
"""

import threading
import urllib.error
import urllib.request
from functools import cache

SECONDS = 1.5  # for the whole question, names looked up included

UNNAMED = "auto"
EMBEDDED = "embedded"
#: ViT-B/16 supervised on ImageNet-21k, Apache-2.0: the backbone of the VPT and VAPT papers.
DEFAULT = "vit_base_patch16_224.augreg_in21k"


def choose_backbone(named: str) -> tuple[str, str]:
    """The backbone meant by a domain, and, where it names none, the line that tells a person which and why."""
    if named != UNNAMED:
        return named, ""
    if _is_cached(DEFAULT):
        return DEFAULT, f"No backbone is named: {DEFAULT}, which is on this disk."
    if reason := why_unreachable():
        return EMBEDDED, f"No backbone is named and the hub is out of reach ({reason}): the embedded one."
    return DEFAULT, f"No backbone is named: {DEFAULT} from the hub."


def why_unreachable() -> str:
    """'' if the hub answers, else the reason. Takes less than two seconds, once per process."""
    from huggingface_hub import constants

    if constants.HF_HUB_OFFLINE:
        return "HF_HUB_OFFLINE is set"
    return ask_in_time(constants.ENDPOINT)


@cache
def ask_in_time(address: str) -> str:
    """The same for one address.

    A thread bounds the time: a look-up of a name obeys no timeout, and the hub's own client retries an absent network
    for half a minute.
    """
    reasons: list[str] = []
    asking = threading.Thread(target=lambda: reasons.append(_ask(address)), daemon=True)
    asking.start()
    asking.join(SECONDS)
    return reasons[0] if reasons else f"no answer from {address} in {SECONDS} s"


def _ask(address: str) -> str:
    try:
        urllib.request.urlopen(urllib.request.Request(address, method="HEAD"), timeout=SECONDS).close()
    except urllib.error.HTTPError:
        return ""  # it answers; what it says is better judged by its own client, which knows tokens and redirects
    except OSError as error:
        return f"no answer from {address}: {getattr(error, 'reason', error)}"
    return ""


def _is_cached(name: str) -> bool:
    from huggingface_hub import try_to_load_from_cache

    return isinstance(try_to_load_from_cache(f"timm/{name}", "model.safetensors"), str)
