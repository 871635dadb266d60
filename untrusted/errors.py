"""The error type that is meant for users."""

from untrusted.text import printable, redacted


class InputError(ValueError):
    """Something the user gave is wrong: the message is one line naming the thing and the remedy.

    The command line prints it without a stack trace; any other exception is a defect of ours.
    Passwords in URLs are removed and terminal control characters escaped here, so that no place
    that raises it can forget to.
    """

    def __init__(self, message: object = "") -> None:
        super().__init__(redacted(printable(str(message))))
