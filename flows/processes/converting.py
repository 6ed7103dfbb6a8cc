"""Convert a backbone from a process that has no torch: a child opens what nobody has checked, and may die of it."""

import json
import signal
import subprocess
import sys
from contextlib import suppress

from components.errors import BackboneError, TesseraError
from components.records.backbones import Addition, Converted

LONGEST = 1 << 20  # characters of a reply


def convert_backbone(asked: Addition) -> Converted:
    """Fill `asked.target`. Raises the TesseraError that the child met, BackboneError where it died without a reply."""
    command = [sys.executable, "-m", "components.models.conversion"]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as child:
        assert child.stdin
        assert child.stdout
        try:
            with suppress(BrokenPipeError):  # a child that died sends no reply, which is reported then
                child.stdin.write(asked.model_dump_json())
                child.stdin.close()
            text = child.stdout.read(LONGEST)
        except BaseException:
            child.kill()
            raise
    try:
        reply = json.loads(text)
    except ValueError:
        raise _describe_end(asked, child.returncode) from None
    if "error" in reply:
        raise TesseraError.from_dict(reply["error"])
    return Converted.model_validate(reply["converted"])


def _describe_end(asked: Addition, code: int) -> BackboneError:
    """Why the child ended without a reply."""
    ends = {
        signal.SIGKILL: "was killed, probably because memory ran out",
        signal.SIGXCPU: "took longer than it may",
        signal.SIGSEGV: "crashed, as it does on files that are made to harm",
    }
    found = ends.get(-code, f"ended with exit code {code}")  # type: ignore[call-overload]
    return BackboneError(
        f"backbone {asked.source}",
        expected="a conversion by the process that opens the file",
        found=f"that it {found}",
        hint="Its own messages are above. Where the file is of the size that its source states, free some memory; "
        "else do not use it.",
    )
