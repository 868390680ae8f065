"""Whether a model version may be answered for here: not if it was withdrawn, nor if who signed it was revoked.

Pure. Decides by the registry's notices as they are now. What becomes of a copy that may not be here is the plan's question.
"""

from __future__ import annotations

from runtime.errors import PenstockError, VersionWithdrawn
from runtime.ids import Digest, ModelName, ModelVersion
from runtime.manifests import ManifestRefused
from runtime.notices import ModelNotice


def objection_to(
    notice: ModelNotice | None, model: ModelName, version: ModelVersion, digest: Digest, signer_id: str = ""
) -> PenstockError | None:
    """Why nobody may load this version or be answered by it; None: nothing is known against it.

    `signer_id`: empty while who signed it is not known.
    """
    if notice is None:
        return None
    if digest in notice.withdrawn or version in notice.withdrawn_versions:
        return VersionWithdrawn(f"version {version} of model {model!r} was withdrawn; use another one")
    if signer_id in notice.revoked_signers:
        return ManifestRefused(
            f"signer {signer_id} of version {version} of model {model!r} was revoked; publish it again with another key"
        )
    return None
