"""A certificate for 127.0.0.1, signed by itself."""

import subprocess

from servers.server import program


def certificate(folder):
    """The paths of a certificate and its key, made in `folder`."""
    certificate, key = folder / "certificate.pem", folder / "key.pem"
    openssl = program("openssl", hint="apt-get install openssl")
    subprocess.run(
        [openssl, "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-keyout", key,
         "-out", certificate, "-subj", "/CN=localhost",
         "-addext", "subjectAltName=DNS:localhost,IP:127.0.0.1"],
        check=True, capture_output=True,
    )  # fmt: skip
    return certificate, key
