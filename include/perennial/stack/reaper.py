"""Ends a stack's processes when the stack itself has been killed: ``python -m perennial.stack.reaper <family>``.

Its standard input is a pipe from the stack. If the pipe closes without a message, the stack was killed and cannot stop them.
"""

from __future__ import annotations

import sys

from perennial.stack.processes import end, marked


def main() -> None:
    if sys.stdin.buffer.read() != b"done":
        end(lambda: marked(sys.argv[1]), 10)


if __name__ == "__main__":
    main()
