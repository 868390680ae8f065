"""Whether a model version may be answered for here: not if it was withdrawn, nor if who signed it was revoked.

Pure. Decides by the registry's notices as they are now. What becomes of a copy that may not be here is the plan's question.
"""

from __future__ import annotations

from runtime.errors import PenstockError, VersionWithdrawn
from runtime.identity import node_id_of
from runtime.ids import Digest, ModelName, ModelVersion
from runtime.manifests import ManifestRefused
from runtime.notices import ModelNotice


def objection_to(
    notice: ModelNotice | None, model: ModelName, version: ModelVersion, digest: Digest, signer: bytes = b""
) -> PenstockError | None:
    """Why nobody may load this version or be answered by it; None: nothing is known against it.

    `signer`: public key of who signed it, 32 bytes; empty while that is not known.
    """
    if notice is None:
        return None
    if digest in notice.withdrawn:
        return VersionWithdrawn(f"version {version} of model {model!r} was withdrawn; use another one")
    if notice.revoked_signers and signer and (signer_id := node_id_of(signer)) in notice.revoked_signers:
        return ManifestRefused(
            f"signer {signer_id} of version {version} of model {model!r} was revoked; publish it again with another key"
        )
    return None
