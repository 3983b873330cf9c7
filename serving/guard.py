"""Who may ask: the token that clients show, and the certificates of both ports."""

import hmac
import ssl
import tempfile
from hashlib import sha256
from pathlib import Path

import grpc

from serving.settings import Tls
from tfrec.errors import UserError

_SCHEME = b"bearer "
_MIN_TOKEN_CHARACTERS = 16


def read_token(path: Path) -> str:
    """The token of a file that holds nothing else.

    Raises:
        UserError: the file cannot be read, or the token is too short to be a secret.
    """
    try:
        token = path.read_text("ascii").strip()
    except (OSError, UnicodeDecodeError):
        raise UserError(f"{path}: cannot be read as a token; write one line of ASCII there.") from None
    if len(token) < _MIN_TOKEN_CHARACTERS or not token.isprintable() or " " in token:
        raise UserError(f"{path}: a token must have at least {_MIN_TOKEN_CHARACTERS} characters and no spaces.")
    return token


class Guard:
    """Compares tokens in constant time; without a token everyone is let in.

    Args:
        token: what clients must show.
    """

    def __init__(self, token: str | None) -> None:
        self._digest = sha256(token.encode()).digest() if token is not None else None

    def admits(self, authorization: bytes) -> bool:
        """Whether the value of an Authorization header is enough."""
        if self._digest is None:
            return True
        scheme, shown = authorization[: len(_SCHEME)], authorization[len(_SCHEME) :]
        same = hmac.compare_digest(sha256(shown.strip()).digest(), self._digest)
        return same and scheme.lower() == _SCHEME


def ssl_context(tls: Tls) -> ssl.SSLContext:
    """What the REST port encrypts with.

    Raises:
        UserError: the key and the certificate cannot be used.
    """
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    with tempfile.TemporaryDirectory() as private:  # Python's ssl reads them from files alone
        key, certificate = Path(private) / "key.pem", Path(private) / "cert.pem"
        key.touch(mode=0o600)
        key.write_text(tls.server_key)
        certificate.write_text(tls.server_cert)
        try:
            context.load_cert_chain(certificate, key)
            if tls.custom_ca:
                context.load_verify_locations(cadata=tls.custom_ca)
        except (ssl.SSLError, ValueError):
            raise UserError(
                "the certificate, its key or the authority for TLS cannot be used; check the PEM."
            ) from None
    if tls.client_verify:
        context.verify_mode = ssl.CERT_REQUIRED
    return context


def grpc_credentials(tls: Tls) -> grpc.ServerCredentials:
    """What the gRPC port encrypts with."""
    authority = tls.custom_ca.encode() or None
    pairs = [(tls.server_key.encode(), tls.server_cert.encode())]
    return grpc.ssl_server_credentials(pairs, authority, tls.client_verify)
