"""What can go wrong with files, each with what the caller should do about it."""

from __future__ import annotations

from runtime.errors import Code, PenstockError


class FileUnknown(PenstockError, code=Code.NOT_FOUND, reason="FILE_UNKNOWN"):
    """No such file, or none that this version consists of."""


class FileForbidden(PenstockError, code=Code.PERMISSION_DENIED, reason="FILE_FORBIDDEN"):
    """The caller may not have files of this model."""


class UploadUnknown(PenstockError, code=Code.NOT_FOUND, reason="UPLOAD_UNKNOWN"):
    """No such upload: it was completed, aborted, or dropped after days of silence. Begin again to learn which."""


class UploadRefused(PenstockError, code=Code.INVALID_ARGUMENT, reason="UPLOAD_REFUSED"):
    """The bytes are not those that were announced."""


class UploadIncomplete(PenstockError, code=Code.ABORTED, reason="UPLOAD_INCOMPLETE"):
    """Parts are still missing. Begin again to learn which."""


class UploadBusy(PenstockError, code=Code.ABORTED, reason="UPLOAD_BUSY"):
    """Somebody else works on the same upload at this moment."""


class UploadSilent(PenstockError, code=Code.ABORTED, reason="UPLOAD_SILENT"):
    """The sender stopped sending."""


class ReaderSilent(PenstockError, code=Code.ABORTED, reason="READER_SILENT"):
    """The receiver stopped taking chunks."""


class UploadsFull(PenstockError, code=Code.RESOURCE_EXHAUSTED, reason="UPLOADS_FULL"):
    """As much is under way as may."""


class QuotaExceeded(PenstockError, code=Code.RESOURCE_EXHAUSTED, reason="QUOTA_EXCEEDED"):
    """The tenant would have more than it may. Waiting alone does not help."""


class StorageFull(PenstockError, code=Code.RESOURCE_EXHAUSTED, reason="STORAGE_FULL"):
    """No room for more bytes."""


class StoreUnavailable(PenstockError, code=Code.UNAVAILABLE, reason="STORE_UNAVAILABLE"):
    """The object store did not answer, or not in time."""


class StoreRefused(PenstockError, code=Code.FAILED_PRECONDITION, reason="STORE_REFUSED"):
    """The object store answers, and does not let the registry do what it has to."""


class ObjectMissing(PenstockError, code=Code.DATA_LOSS, reason="OBJECT_MISSING"):
    """The store lacks an object that the database names, or a piece of it."""


class CollectionBusy(PenstockError, code=Code.ABORTED, reason="COLLECTION_BUSY"):
    """Another replica collects garbage at this moment."""
