"""`python -m components.models.conversion`: convert one backbone, in a process that a hostile file may end.

It reads an `Addition` as JSON from stdin, writes the file that it names, and writes `{"converted": {...}}` or
`{"error": {...}}` to stdout; the exit code is that of the error.
"""

import json
import os
import sys

from components.errors import TesseraError
from components.models.conversion.convert import convert
from components.records.backbones import Addition


def main() -> int:
    answer = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # whatever a library prints goes to stderr
    asked = Addition.model_validate_json(sys.stdin.read())
    try:
        reply, code = {"converted": convert(asked).model_dump(mode="json")}, 0
    except TesseraError as error:
        reply, code = {"error": error.to_dict()}, error.exit_code
    answer.write(json.dumps(reply))
    answer.close()
    return code


if __name__ == "__main__":
    sys.exit(main())
