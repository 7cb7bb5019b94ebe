"""The one exception that means "the input is wrong", as opposed to "the program is wrong"."""


class InputError(Exception):
    """Something the user gave cannot be used.

    The message names the file and field at fault and says what to do about it; the command line prints it
    without a traceback and exits with status 2.
    """
