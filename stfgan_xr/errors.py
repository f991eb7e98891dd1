"""Errors a user can act on: each says what, where and what to do, and carries the exit code of the commands."""

from __future__ import annotations


class StfganError(Exception):
    """Base of every known error.

    ``exit_code`` is what the commands in ``pipelines`` return for it.
    """

    exit_code = 1


class InputError(StfganError):
    """The request cannot be right: an argument, file or combination of them."""

    exit_code = 2


class NothingToDo(StfganError):
    """The request is right but there is no imagery for it, or all of it is cloud."""

    exit_code = 3


class SourceError(StfganError):
    """A catalog or an image could not be read, or holds something else than it states."""

    exit_code = 4


class ResourceError(StfganError):
    """Out of disk space or memory."""

    exit_code = 5


class Diverged(StfganError):
    """Training came to numbers that are not finite."""


class IncompleteError(StfganError):
    """A cube is unfinished or damaged."""

    exit_code = 6
