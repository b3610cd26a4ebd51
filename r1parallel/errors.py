"""How a mistake of the user's reaches the user: one line, exit code 2, no traceback."""

import sys
from collections.abc import Callable, Sequence


class UserError(Exception):
    """Something that the user can mend. The message says what, where, and what to do, in one line."""


def run_command(main: Callable[[Sequence[str]], None]) -> None:
    """Run a command line's `main(argv)` and end the process: 0 when it returns, 2 on a mistake of the user's."""
    try:
        main(sys.argv[1:])
    except UserError as error:
        print(f"error: {' '.join(str(error).split())}", file=sys.stderr, flush=True)
        sys.exit(2)
    except OSError as error:  # a file or folder that this user may not enter, for example
        if error.filename is None:
            raise
        print(f"error: {error.filename}: {error.strerror}", file=sys.stderr, flush=True)
        sys.exit(2)
    except KeyboardInterrupt:
        print("error: interrupted", file=sys.stderr, flush=True)
        sys.exit(130)
