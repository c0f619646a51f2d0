"""Certificates for TLS and keys for SuperNode authentication, as files."""

from datetime import UTC, datetime, timedelta
from ipaddress import ip_address
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID


def certificates(folder: Path) -> None:
    """Write ``ca.crt``, an authority of one's own, and ``server.crt`` and ``server.key``, that it signed."""
    authority, server = (ec.generate_private_key(ec.SECP384R1()) for _ in range(2))
    issuer = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "FedSieve test authority")])
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "localhost")])
    names = [x509.DNSName("localhost"), x509.IPAddress(ip_address("127.0.0.1")), x509.IPAddress(ip_address("::1"))]
    own = _certificate(issuer, issuer, authority, authority, x509.BasicConstraints(ca=True, path_length=0))
    signed = _certificate(subject, issuer, server, authority, x509.SubjectAlternativeName(names))
    (folder / "ca.crt").write_bytes(own.public_bytes(serialization.Encoding.PEM))
    (folder / "server.crt").write_bytes(signed.public_bytes(serialization.Encoding.PEM))
    _private(folder / "server.key", server, serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8)


def node_key(path: Path) -> None:
    """Write a SuperNode's key, what ``ssh-keygen -t ecdsa -b 384`` writes: ``path`` and ``path.pub``."""
    key = ec.generate_private_key(ec.SECP384R1())
    _private(path, key, serialization.Encoding.PEM, serialization.PrivateFormat.OpenSSH)
    public = key.public_key().public_bytes(serialization.Encoding.OpenSSH, serialization.PublicFormat.OpenSSH)
    path.with_name(path.name + ".pub").write_bytes(public)


def _certificate(
    subject: x509.Name,
    issuer: x509.Name,
    key: ec.EllipticCurvePrivateKey,
    signer: ec.EllipticCurvePrivateKey,
    extension: x509.ExtensionType,
) -> x509.Certificate:
    now, authority = datetime.now(UTC), subject == issuer
    usage = x509.KeyUsage(True, False, False, False, False, authority, authority, False, False)
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - timedelta(minutes=5))
        .not_valid_after(now + timedelta(days=2))
        .add_extension(extension, critical=authority)
        .add_extension(usage, critical=True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
        .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(signer.public_key()), critical=False)
        .sign(signer, hashes.SHA384())
    )


def _private(
    path: Path, key: ec.EllipticCurvePrivateKey, encoding: serialization.Encoding, form: serialization.PrivateFormat
) -> None:
    path.touch(mode=0o600)
    path.write_bytes(key.private_bytes(encoding, form, serialization.NoEncryption()))
