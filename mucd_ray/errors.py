"""Errors that a user can act on."""


class MucdError(Exception):
    """Bad input. The message is one line that names the value and the fix; the command line prints it and exits 2."""
