"""What a user is meant to read."""


class InputError(Exception):
    """Something the user gave cannot be used.

    The message is one line that says what is wrong, where (file, record), and what to do about it. The command line
    prints it without a traceback and exits with 1.
    """


class Interrupted(Exception):
    """A run was asked to stop; it is saved and resumes. The message says where."""
