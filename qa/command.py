"""What every command does alike: an error is one line, and so is Ctrl-C.

It is the first import of each command, so that Ctrl-C is one line while torch is imported, too: it
sets sys.excepthook, which leaves other programs' errors as they are.
"""

import codecs
import os
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from types import TracebackType

SIGNS = str.maketrans("ᵀ░▒▓█", "T.:*#")  # what stands for them in an encoding that lacks them


def in_ascii(error: UnicodeEncodeError) -> tuple[str, int]:
    signs = error.object[error.start : error.end].translate(SIGNS)
    return signs.encode("ascii", "backslashreplace").decode(), error.end


codecs.register_error("in_ascii", in_ascii)


@contextmanager
def command() -> Iterator[None]:
    """Within, what goes wrong ends the program with status 2 and a line that says what."""
    from qa.processes import leave  # and torch

    sys.stdin = sys.stdin or open(os.devnull)  # closed
    sys.stdout = sys.stdout or open(os.devnull, "w")
    sys.stderr = sys.stderr or open(os.devnull, "w")
    # through a pipe, too, lines come as they are made, and no character is one too many
    sys.stdout.reconfigure(line_buffering=True, errors="in_ascii")
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
        end(interrupt)
    finally:
        leave()


def end(interrupt: BaseException) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # it ends now
    print(f"\ninterrupted: {str(interrupt) or 'by Ctrl-C'}", file=sys.stderr)
    sys.exit(130)


def excepthook(kind: type, error: BaseException, trace: TracebackType | None) -> None:
    """For what happens outside of a command's main, while it imports; no matter to a program that
    isn't one of the commands.
    """
    if kind is KeyboardInterrupt and getattr(sys.modules["__main__"], "command", None) is command:
        end(error)
    usual(kind, error, trace)


usual, sys.excepthook = sys.excepthook, excepthook
