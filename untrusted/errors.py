"""The error type that is meant for people."""

from untrusted.text import printable, redacted


class InputError(ValueError):
    """Something the user gave is wrong: the message is one line naming the thing and the remedy.

    The command line prints it without a stack trace; everything else raised is our own fault.
    Passwords of URLs are left out of the message, and what would steer a terminal is spelled out,
    whatever raised it.
    """

    def __init__(self, message: object = "") -> None:
        super().__init__(redacted(printable(str(message))))
