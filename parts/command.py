"""What every command does alike: an error is one line, and so is Ctrl-C."""

import os
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager

from parts.processes import leave


@contextmanager
def command() -> Iterator[None]:
    """Within, what goes wrong ends the program with status 2 and a line that says what."""
    sys.stdout = sys.stdout or open(os.devnull, "w")  # closed
    sys.stderr = sys.stderr or open(os.devnull, "w")
    # through a pipe, too, lines come as they are made, and no character is one too many
    sys.stdout.reconfigure(line_buffering=True, errors="backslashreplace")
    # memory in pages of 2 MB where Linux has them: with those of 4 kB a step has 20,000 page faults
    os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")
    try:
        yield
    except BrokenPipeError:  # nobody reads any more, as in "| head"
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt as interrupt:
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # it ends now
        print(f"\ninterrupted: {str(interrupt) or 'by Ctrl-C'}", file=sys.stderr)
        sys.exit(130)
    finally:
        leave()
