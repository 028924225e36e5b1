"""Certificates of the tests' own, made by openssl: a root, and what it signs."""

from __future__ import annotations

import pathlib
import subprocess

LEAF = "basicConstraints=CA:FALSE\nsubjectAltName=IP:127.0.0.1,DNS:localhost\n"


def _openssl(*arguments: str) -> None:
    subprocess.run(["openssl", *arguments], check=True, capture_output=True)


class Root:
    """A root and its key."""

    def __init__(self, folder: pathlib.Path, name: str):
        self.folder = folder
        self.name = name
        self.certificate = folder / f"{name}.crt"
        self.key = folder / f"{name}.key"
        _openssl(
            "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-days", "2",
            "-subj", f"/CN={name}", "-addext", "keyUsage=critical,keyCertSign",
            "-keyout", str(self.key), "-out", str(self.certificate),
        )  # fmt: skip

    def sign(self, name: str, into: str | None = None) -> tuple[pathlib.Path, pathlib.Path]:
        """A certificate with that name, and its key; in the files of another name if one is given."""
        files = self.folder / (into or name)
        certificate, key, request = (files.with_suffix(end) for end in (".crt", ".key", ".csr"))
        extensions = files.with_suffix(".ext")
        extensions.write_text(LEAF)
        _openssl(
            "req", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes",
            "-subj", f"/CN={name}", "-keyout", str(key), "-out", str(request),
        )  # fmt: skip
        _openssl(
            "x509", "-req", "-in", str(request), "-CA", str(self.certificate), "-CAkey", str(self.key),
            "-CAcreateserial", "-days", "2", "-extfile", str(extensions), "-out", str(certificate),
        )  # fmt: skip
        return certificate, key
