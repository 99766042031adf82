"""The error of this package."""


class DataError(ValueError):
    """The data cannot be had as asked: the message says what, where it was looked for, and why."""
