"""The one entry: `tessera`. Each command is a thin shell around a function elsewhere that returns a typed record.

Nothing heavy is imported at the top of these modules: help must come in under half a second, so each command imports
what it needs.
"""

import codecs
import gc
import os
import sys

from flows.commands import backbone, data, models, operations
from flows.commands.app import app

__all__ = ["app", "backbone", "data", "main", "models", "operations"]  # importing the four registers their commands

#: What tables and lines are made of, for terminals without it.
SIGNS = {"✓": "+", "►": ">", "·": "-", "…": "...", "–": "-", "—": "-", "−": "-", "×": "x", "’": "'", "─": "-"}


def main() -> None:
    """Console entry point."""
    # A command makes half a million small objects while it imports; looking for garbage among them took a quarter of
    # the processor time of `tessera status`.
    gc.set_threshold(100_000, 50, 100)
    codecs.register_error("tessera", _spell)
    os.environ.pop("PYTHONIOENCODING", None)  # it is about this terminal, not about what children write into pipes
    sys.stdout.reconfigure(line_buffering=True, errors="tessera")  # type: ignore[union-attr]
    sys.stderr.reconfigure(errors="tessera")  # type: ignore[union-attr]
    app()


def _spell(error: UnicodeError) -> tuple[str, int]:
    """Characters that the terminal's encoding lacks: our own signs in ASCII, others by their code."""
    if not isinstance(error, UnicodeEncodeError):
        raise error
    lost = error.object[error.start : error.end]
    return "".join(SIGNS.get(sign, sign.encode("ascii", "backslashreplace").decode()) for sign in lost), error.end


if __name__ == "__main__":
    main()
