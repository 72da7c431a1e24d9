"""The one exception that stands for a user's mistake; the command line prints it as one line and exits with 2."""


class UserError(Exception):
    """A mistake in the user's files, flags or data: one sentence that names the file or field and the mend."""
