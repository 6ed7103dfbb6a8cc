"""Tables and sentences that the terminal, the retrain report and the card share."""

from collections.abc import Mapping, Sequence
from typing import Any

HEADS = ("candidate", "seed", "trainable", "share", "val", "test [95 %]", "secs", "adapter")


def list_gains(tuners: Sequence[Mapping[str, Any]]) -> list[str]:
    """A sentence per candidate on its gain over the linear probe. tuners: lines of an outcome."""
    if any("over_linear" not in line for line in tuners):  # an outcome of an older version
        return []
    if not any(line["kind"] == "linear" for line in tuners):
        return ["No `linear` among the candidates: nothing says whether these are worth more than a linear probe."]
    gains = [line["over_linear"]["text"] for line in tuners if line["over_linear"]]
    solved = [line for line in tuners if line["kind"] == "linear" and len(line["seeds"]) > 1]
    return gains + [
        f"{line['tuner']} is solved, not trained: its {len(line['seeds'])} seeds are one head." for line in solved
    ]


def render_search(line: Mapping[str, Any]) -> str:
    """What a search took and chose, in a sentence."""
    record = line["search"]
    chosen = render_options(record["options"]) or "nothing to choose"
    rungs = ", ".join(str(epochs) for epochs in record["rungs"])
    return (
        f"{chosen}: of {record['trials']} trials compared after {rungs} epochs with seed {record['seed']}, "
        f"in {record['seconds']:.0f} s"
    )


def render_options(options: Mapping[str, Any]) -> str:
    return ", ".join(
        f"{key} {value:g}" if isinstance(value, float) else f"{key} {value}" for key, value in options.items()
    )


def describe_candidate(row: Mapping[str, Any]) -> tuple[str, ...]:
    """The cells of one candidate's row, as the terminal and the report show them."""
    test = row["test"]
    return (
        ("► " if row["selected"] else "  ") + row["tuner"],
        str(row["seed"]),
        f"{row['trainable_params']:,}",
        f"{100 * row['share']:.3g} %",
        f"{row['val']:.3f}",
        format_score(test),
        f"{row['seconds']:.1f}",
        format_bytes(row["adapter_bytes"]),
    )


def format_bytes(size: int) -> str:
    """123 kB, 4.5 MB: decimal units, as disks are sold."""
    return f"{size / 1e6:.1f} MB" if size >= 1e6 else f"{size / 1e3:.0f} kB"


def format_score(score: Mapping[str, Any]) -> str:
    """`0.912 [0.85 0.96]`, or `0.912 not known` where no interval is."""
    if score.get("low") is None:
        return f"{score['value']:.3f} not known"
    return f"{score['value']:.3f} [{score['low']:.2f} {score['high']:.2f}]"
