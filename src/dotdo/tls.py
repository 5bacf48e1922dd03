"""Which certificates a client of a server trusts."""

import ssl


def trusted(url: str) -> ssl.SSLContext:
    """For httpx2's `verify=`: the certificates that it trusts by itself, at an address of https. To read them takes
    25 ms of CPU time; at one of http nothing is encrypted, so nobody is trusted."""
    if url.startswith("https://"):
        import httpx2

        return httpx2.create_ssl_context()
    return ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
