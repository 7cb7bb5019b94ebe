"""Exceptions whose message is all that a user needs: the input is wrong, or a cluster could not do its work."""


class InputError(Exception):
    """Something the user gave cannot be used.

    The message names the file and field at fault and says what to do about it; the command line prints it
    without a traceback and exits with status 2.
    """


class JobError(Exception):
    """A cluster job ended without its result; the command line prints the message and exits with status 1."""


class NotConnectedError(JobError):
    """The cluster is gone: trying again is of no use."""


class NonFiniteLossError(Exception):
    """A loss became NaN or infinite; training cannot go on."""
