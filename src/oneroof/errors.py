"""What went wrong, said once. A `UserError` is one line that a user can act on; everything else is our own
failure.
"""


class UserError(Exception):
    """Input, option or environment that the user can mend.

    The message is one line in three parts: what was found, what is allowed, what to try. The command line
    prints it without a traceback and exits with status 2.
    """

    def __init__(self, message: str) -> None:
        super().__init__(" ".join(message.split()))


class RankLost(Exception):  # noqa: N818  # as one says it
    """A rank has died, or failed where all have to go on together: none of them can."""
