"""Certificates for the servers and clients of a test."""

import trustme


class Authority:
    """A certificate authority, and the files of what it has signed."""

    def __init__(self, folder):
        self._ca = trustme.CA()
        self._folder = folder
        folder.mkdir()
        self.certificate = folder / "ca.pem"
        self._ca.cert_pem.write_to_path(self.certificate)

    def files_for(self, name):
        """The certificate and the key for a host or a client."""
        issued = self._ca.issue_cert(name)
        certificate, key = self._folder / f"{name}.pem", self._folder / f"{name}.key"
        certificate.write_bytes(b"".join(part.bytes() for part in issued.cert_chain_pems))
        issued.private_key_pem.write_to_path(key)
        return certificate, key
