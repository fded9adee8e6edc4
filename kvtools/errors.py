"""What can go wrong for a user, and the exit code that says so.

Library code raises `ValueError` and friends with the values it found; where a failure has a meaning to the shell it raises
one of these. `cli.py` prints them, once, as `kvtools CMD: <message>`, and exits with `code`. Our own mistakes are
`assert`ions and never appear here.
"""


class Fault(Exception):
    """A failure with an exit code; the message is one line, WHERE: FOUND, EXPECTED. NEXT STEP."""

    code = 1
    is_agreed = False  # whether all ranks know already and end by themselves


class Usage(Fault):
    """The command line asks for something that cannot be meant."""

    code = 2


class Corrupt(Fault):
    """Bytes that are damaged, cut short, or of another kind than asked for: do not retry."""

    code = 65


class Missing(Fault):
    """An input that is not there or may not be read."""

    code = 66


class CannotCreate(Fault):
    """An output that may not be written, or that exists and `--force` was not given."""

    code = 73


class Stopped(Fault):
    """Stopped early on request with everything saved: run the same command again to continue."""

    code = 75
    is_agreed = True


class Died(Fault):
    """The end, with this code, of a run that has already said why; nothing more is printed."""

    def __init__(self, code: int, *, is_agreed: bool = False) -> None:
        super().__init__("")
        self.code = code
        self.is_agreed = is_agreed


class Terminated(BaseException):
    """SIGTERM has come. No Exception, and no Fault: whoever tries something and goes on if it fails must let this pass, be it a
    library's `except Exception` or a command that names damaged files one by one."""
