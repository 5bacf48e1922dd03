"""Certificates are checked wherever there is encryption, and read where there may be some."""

import ssl

import pytest

from dotdo.tls import trusted


@pytest.mark.parametrize("url, trusts_some", [("https://do.example.com", True), ("http://localhost:8000", False)])
def test_certificates_are_required_and_read_where_they_are_needed(url: str, trusts_some: bool):
    context = trusted(url)
    assert (context.verify_mode, context.check_hostname) == (ssl.CERT_REQUIRED, True)
    assert (context.cert_store_stats()["x509_ca"] > 0) == trusts_some
