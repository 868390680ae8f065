"""Whether a version that was vouched for once still stands: what the registry told the mesh since.

Decides from the notices that this process has; what nobody told it yet counts as nothing.
"""

from __future__ import annotations

from runtime.errors import VersionWithdrawn
from runtime.manifests import ManifestRefused
from runtime.notices import NoticeBoard
from worker.files.manifest import Description


def check_standing(description: Description, board: NoticeBoard) -> None:
    """Raises VersionWithdrawn, ManifestRefused."""
    spec = description.spec
    notice = board.model(spec.model)
    if notice is None:
        return
    if spec.digest in notice.withdrawn or spec.version in notice.withdrawn_versions:
        raise VersionWithdrawn(f"version {spec.version} of model {spec.model!r} was withdrawn; load another version")
    if description.signer_id in notice.revoked_signers:
        raise ManifestRefused(
            f"the signer {description.signer_id} of model {spec.model!r} version {spec.version} was revoked;"
            " publish the model again with another key"
        )
