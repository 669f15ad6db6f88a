"""The key pair that signs model bundles: training holds the private half, registry and serving the public one."""

import os
from pathlib import Path

from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from tidemill.stack.state import write_private


def ensure_key_pair(signing: Path, verify: Path) -> None:
    """Create an Ed25519 pair as PEM files; an existing pair is kept, since it signed the bundles on disk."""
    signing.parent.mkdir(parents=True, exist_ok=True)
    if not signing.exists():
        private = Ed25519PrivateKey.generate().private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        )
        write_private(signing, private.decode())
    key = serialization.load_pem_private_key(signing.read_bytes(), password=None)
    public = key.public_key().public_bytes(serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo)
    if not verify.exists() or verify.read_bytes() != public:
        write_private(verify, public.decode())
        os.chmod(verify, 0o644)
