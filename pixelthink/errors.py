"""The errors that are the user's to mend: a wrong option, a damaged file, a missing package, weights that differ.

The command line and the tools print such an error as one line. Any other exception is a bug and keeps its traceback.
"""

from __future__ import annotations


class UserError(ValueError):
    """Something that the user can mend. The message is one line; it names the option, file or sample, and the fix."""


class FileError(UserError, OSError):
    """A file or folder that cannot be read or written."""


class MissingFileError(FileError, FileNotFoundError):
    """A file or folder that is not there."""


class MissingPackageError(UserError, ImportError):
    """A package that an option needs is not installed."""


def brief(error: BaseException, length: int = 160) -> str:
    """The beginning of an error's message on one line; the name of its class where it has no message."""
    return " ".join(str(error).split())[:length] or type(error).__name__
