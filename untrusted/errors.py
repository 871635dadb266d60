"""The error type that is meant for people."""


class InputError(ValueError):
    """Something the user gave is wrong: the message is one line naming the thing and the remedy.

    The command line prints it without a stack trace; everything else raised is our own fault.
    """
