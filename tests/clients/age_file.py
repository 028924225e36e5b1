"""Writes age files (age-encryption.org/v1) by their specification, for one X25519 recipient."""

from __future__ import annotations

import base64
import os

from cryptography.hazmat.primitives import hashes, hmac, serialization
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey
from cryptography.hazmat.primitives.ciphers.aead import ChaCha20Poly1305
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

CHUNK = 64 << 10
LETTERS = "qpzry9x8gf2tvdw0s3jn54khce6mua7l"
PREFIX = "age-secret-key-"


def identity(secret: bytes) -> str:
    """A secret key as a file of identities has it: Bech32, in upper case."""
    bits = "".join(f"{byte:08b}" for byte in secret)
    groups = [int(bits[at : at + 5].ljust(5, "0"), 2) for at in range(0, len(bits), 5)]
    expanded = [ord(each) >> 5 for each in PREFIX] + [0] + [ord(each) & 31 for each in PREFIX]
    checksum = 1
    for value in expanded + groups + [0] * 6:
        top = checksum >> 25
        checksum = (checksum & 0x1FFFFFF) << 5 ^ value
        for bit, generator in enumerate((0x3B6A57B2, 0x26508E6D, 0x1EA119FA, 0x3D4233DD, 0x2A1462B3)):
            checksum ^= generator * (top >> bit & 1)
    tail = [(checksum ^ 1) >> 5 * (5 - place) & 31 for place in range(6)]
    return (PREFIX + "1" + "".join(LETTERS[group] for group in groups + tail)).upper()


def encrypt(plain: bytes, secret: bytes) -> bytes:
    """A file that whoever has the secret key can read."""
    recipient = _public(X25519PrivateKey.from_private_bytes(secret))
    ephemeral = X25519PrivateKey.generate()
    share = _public(ephemeral)
    shared = ephemeral.exchange(X25519PrivateKey.from_private_bytes(secret).public_key())
    file_key, nonce = os.urandom(16), os.urandom(16)
    wrapping = _derived(shared, share + recipient, b"age-encryption.org/v1/X25519")
    wrapped = ChaCha20Poly1305(wrapping).encrypt(bytes(12), file_key, None)
    head = b"age-encryption.org/v1\n-> X25519 %s\n%s\n---" % (_base64(share), _base64(wrapped))
    mac = hmac.HMAC(_derived(file_key, b"", b"header"), hashes.SHA256())
    mac.update(head)
    payload = ChaCha20Poly1305(_derived(file_key, nonce, b"payload"))
    chunks = [plain[at : at + CHUNK] for at in range(0, len(plain), CHUNK)] or [b""]
    sealed = (
        payload.encrypt(number.to_bytes(11, "big") + bytes([number == len(chunks) - 1]), chunk, None)
        for number, chunk in enumerate(chunks)
    )
    return head + b" " + _base64(mac.finalize()) + b"\n" + nonce + b"".join(sealed)


def _public(key: X25519PrivateKey) -> bytes:
    return key.public_key().public_bytes(serialization.Encoding.Raw, serialization.PublicFormat.Raw)


def _derived(key: bytes, salt: bytes, info: bytes) -> bytes:
    return HKDF(hashes.SHA256(), 32, salt, info).derive(key)


def _base64(text: bytes) -> bytes:
    return base64.b64encode(text).rstrip(b"=")
