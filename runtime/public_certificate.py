"""A certificate for applications that somebody else keeps valid: read at the start, and again when its files were replaced.

Decides whether what it finds may be shown: a certificate and a key that belong together. Anything else, such as the moment in
which one of two files is new, leaves what was shown before. Never asks anybody for a certificate.
"""

from __future__ import annotations

from pathlib import Path
from threading import Lock

import structlog
from cryptography import x509
from cryptography.hazmat.primitives.serialization import load_pem_private_key

from runtime.certificates import UNREADABLE
from runtime.errors import FailedPrecondition
from runtime.serving import PublicTls

_log = structlog.get_logger("penstock.certificate")


class CertificateFiles:
    """Two files. May be asked from any thread."""

    def __init__(self, certificate: Path, key: Path) -> None:
        self._files = (certificate, key)
        self._seen: tuple[tuple[int, int], ...] = ()
        self._lock = Lock()

    def opened(self) -> PublicTls:
        """What to show, and to ask for again. Raises FailedPrecondition."""
        self._seen = self._looked()
        certificate, key = self._read()
        return PublicTls(certificate, key, self.renewed)

    def renewed(self) -> PublicTls | None:
        """What is new since it was last asked; None: nothing that could be shown."""
        with self._lock:
            try:
                seen = self._looked()
                if seen == self._seen:
                    return None
                certificate, key = self._read()
            except FailedPrecondition as error:
                _log.warning("certificate_kept", why=error.message)
                return None
            self._seen = seen
            _log.info("certificate_replaced", certificate=str(self._files[0]))
            return PublicTls(certificate, key)

    def _looked(self) -> tuple[tuple[int, int], ...]:
        try:
            return tuple((found.st_ino, found.st_mtime_ns) for found in (file.stat() for file in self._files))
        except OSError as error:
            raise FailedPrecondition(f"{error.filename}: {error.strerror}") from error

    def _read(self) -> tuple[bytes, bytes]:
        try:
            certificate, key = (file.read_bytes() for file in self._files)
            fits = x509.load_pem_x509_certificate(certificate).public_key() == load_pem_private_key(key, None).public_key()
        except (*UNREADABLE, OSError) as error:
            both = " and ".join(map(str, self._files))
            raise FailedPrecondition(f"{both} are no certificate and its key: {error}") from error
        if not fits:
            raise FailedPrecondition(f"{self._files[1]} is not the key of {self._files[0]}")
        return certificate, key
