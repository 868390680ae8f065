"""What jobs, files and batches are refused with."""

from __future__ import annotations

from runtime.errors import Code, PenstockError


class JobsNotSetUp(PenstockError, code=Code.FAILED_PRECONDITION, reason="JOBS_NOT_SET_UP"):
    """This scheduler was given no database for jobs."""


class JobUnknown(PenstockError, code=Code.NOT_FOUND, reason="JOB_UNKNOWN"):
    """There is no such job, or it is another tenant's: the words are the same."""


class IdempotencyKeyTaken(PenstockError, code=Code.ALREADY_EXISTS, reason="IDEMPOTENCY_KEY_TAKEN"):
    """The key stands for a job with another call."""


class ClaimLost(PenstockError, code=Code.ABORTED, reason="CLAIM_LOST"):
    """The claim does not hold any more: it ran out, was settled, or the job was cancelled."""


class JobsFull(PenstockError, code=Code.RESOURCE_EXHAUSTED, reason="JOBS_FULL"):
    """The tenant has as many open jobs, or as many bytes stored, as it may."""


class WatchersFull(PenstockError, code=Code.RESOURCE_EXHAUSTED, reason="JOB_WATCHERS_FULL"):
    """As many wait here for jobs as this scheduler takes."""


class ClaimsFull(PenstockError, code=Code.RESOURCE_EXHAUSTED, reason="JOB_CLAIMS_FULL"):
    """This gateway waits for jobs with as many calls as it may."""


class JobRefused(PenstockError, code=Code.INVALID_ARGUMENT, reason="JOB_REFUSED"):
    """What was asked for makes no job."""


class FileUnknown(PenstockError, code=Code.NOT_FOUND, reason="JOB_FILE_UNKNOWN"):
    """There is no such file, or it is another tenant's."""


class FileInUse(PenstockError, code=Code.FAILED_PRECONDITION, reason="FILE_IN_USE"):
    """A batch still reads it."""


class FileRefused(PenstockError, code=Code.INVALID_ARGUMENT, reason="FILE_REFUSED"):
    """It is too large, or not described as a file has to be."""


class FileDamaged(PenstockError, code=Code.DATA_LOSS, reason="FILE_DAMAGED"):
    """What is stored is not what was uploaded."""


class BatchUnknown(PenstockError, code=Code.NOT_FOUND, reason="BATCH_UNKNOWN"):
    """There is no such batch, or it is another tenant's."""


class BatchRefused(PenstockError, code=Code.INVALID_ARGUMENT, reason="BATCH_REFUSED"):
    """What was asked for makes no batch."""


class BatchesFull(PenstockError, code=Code.RESOURCE_EXHAUSTED, reason="BATCHES_FULL"):
    """The tenant has as many batches under way as it may."""


class LeaseLost(PenstockError, code=Code.ABORTED, reason="BATCH_LEASE_LOST"):
    """Another scheduler drives this batch now."""
