"""Status codes and the one error type that REST and gRPC turn into an answer."""

from enum import IntEnum


class Code(IntEnum):
    """The canonical codes of TensorFlow and gRPC."""

    OK = 0
    CANCELLED = 1
    UNKNOWN = 2
    INVALID_ARGUMENT = 3
    DEADLINE_EXCEEDED = 4
    NOT_FOUND = 5
    ALREADY_EXISTS = 6
    PERMISSION_DENIED = 7
    RESOURCE_EXHAUSTED = 8
    FAILED_PRECONDITION = 9
    ABORTED = 10
    OUT_OF_RANGE = 11
    UNIMPLEMENTED = 12
    INTERNAL = 13
    UNAVAILABLE = 14
    DATA_LOSS = 15
    UNAUTHENTICATED = 16


HTTP_STATUS = {
    Code.OK: 200,
    Code.CANCELLED: 499,
    Code.UNKNOWN: 500,
    Code.INVALID_ARGUMENT: 400,
    Code.DEADLINE_EXCEEDED: 504,
    Code.NOT_FOUND: 404,
    Code.ALREADY_EXISTS: 409,
    Code.PERMISSION_DENIED: 403,
    Code.RESOURCE_EXHAUSTED: 429,
    Code.FAILED_PRECONDITION: 400,
    Code.ABORTED: 409,
    Code.OUT_OF_RANGE: 400,
    Code.UNIMPLEMENTED: 501,
    Code.INTERNAL: 500,
    Code.UNAVAILABLE: 503,
    Code.DATA_LOSS: 500,
    Code.UNAUTHENTICATED: 401,
}

_MAX_MESSAGE_CHARACTERS = 1024


class ServingError(Exception):
    """What a client is told: a code and one message without paths or stack traces."""

    def __init__(self, code: Code, message: str) -> None:
        super().__init__(message)
        self.code = code
        self.message = message

    @property
    def short_message(self) -> str:
        """The message as gRPC carries it: at most 1024 characters, then a mark that it was cut."""
        if len(self.message) <= _MAX_MESSAGE_CHARACTERS:
            return self.message
        return self.message[:_MAX_MESSAGE_CHARACTERS] + "...TRUNCATED"


def invalid_argument(message: str) -> ServingError:
    """The request itself is wrong."""
    return ServingError(Code.INVALID_ARGUMENT, message)
