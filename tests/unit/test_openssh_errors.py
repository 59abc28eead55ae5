"""What `ssh` prints when it fails; `tests/hosts/test_ssh_errors.py` has the errors of a real one."""

from __future__ import annotations

import pytest

from flagscale.remote.openssh.errors import Destination, is_crowded, messages, reason

THERE = Destination("gpu-1", None, address="10.0.0.1", port="22", known_hosts="/k", timeout=10.0)
DROPPED = (
    "kex_exchange_identification: Connection closed by remote host\nConnection closed by 10.0.0.1 port 22\n"
)
ON_THE_WAY = (
    "kex_exchange_identification: Connection closed by remote host\nConnection closed by UNKNOWN port 65535\n"
)


@pytest.mark.parametrize(
    ("printed", "why"),
    [
        (
            "ssh: connect to host 10.0.0.1 port 22: Connection timed out\r\n",
            "no answer from 10.0.0.1 port 22 within 10 s",
        ),
        ("ssh: connect to host ::1 port 22: No route to host", "::1 port 22: No route to host"),
        (
            "ssh: Could not resolve hostname gpu-1: Temporary failure in name resolution",
            "cannot resolve the host name gpu-1 (Temporary failure in name resolution)",
        ),
        (
            "Received disconnect from 10.0.0.1 port 22:2: Too many authentication failures\n"
            "Disconnected from 10.0.0.1 port 22",
            "none of your keys is accepted (Too many authentication failures); name the right one in "
            "~/.ssh/config with IdentityFile and `IdentitiesOnly yes`",
        ),
        (
            "Permissions 0644 for '/a b' are too open.\nThis private key will be ignored.\n"
            'Load key "/a b": bad permissions\nLoad key "/x": error in libcrypto\n'
            "no such identity: /none: No such file or directory\n"
            "me@10.0.0.1: Permission denied (publickey).",
            "none of your keys is accepted (me@10.0.0.1: Permission denied (publickey)); /a b is not used "
            "because others can read it: `chmod 600 '/a b'`; /x is not used (error in libcrypto); /none does "
            "not exist; try `ssh gpu-1`",
        ),
        ("Bad owner or permissions on /c", "10.0.0.1 port 22: Bad owner or permissions on /c"),
        (
            "no matching host key type found. Their offer: ssh-rsa",
            "10.0.0.1 port 22: no matching host key type found. Their offer: ssh-rsa",
        ),
        (
            DROPPED,
            "10.0.0.1 port 22 closed the connection at once; perhaps it has too many logins (MaxStartups)",
        ),
        (
            "Certificate invalid: expired\nNo ED25519 host key is known for 10.0.0.1 and you have requested "
            "strict checking.\nHost key verification failed.",
            "its host key is unknown (Certificate invalid: expired); verify it, then add it: "
            "`ssh-keyscan -p 22 10.0.0.1 >> /k`",
        ),
        (
            "Host key ED25519 SHA256:b9WG revoked by file /r\nHost key verification failed.",
            "its host key is revoked: Host key ED25519 SHA256:b9WG revoked by file /r. Do not connect before "
            "the host has a new key",
        ),
        (
            "Host key for jump has changed and you have requested strict checking.\n"
            "Host key verification failed.\n" + ON_THE_WAY,
            "the host key of jump has changed: someone may be intercepting the connection; if the host was "
            "reinstalled, run `ssh-keygen -f /k -R jump` and `ssh-keyscan -p 22 jump >> /k`",
        ),
        ("sh: 1: nc: not found\n" + ON_THE_WAY, "10.0.0.1 port 22: sh: 1: nc: not found"),
        ("", "10.0.0.1 port 22: it closed the connection"),
    ],
)
def test_reasons(printed: str, why: str) -> None:
    assert reason(printed, THERE) == why


def test_notices_are_no_reasons() -> None:
    printed = (
        "Warning: Permanently added 'a' (ED25519) to the list of known hosts.\n"
        "** WARNING: connection is not using a post-quantum key exchange algorithm.\n"
        "** This session may be vulnerable to attacks.\n"
        "Pseudo-terminal will not be allocated because stdin is not a terminal.\n"
        'Authenticated to a ([10.0.0.1]:22) using "publickey".\n'
        "the words\r\n"
        "Transferred: sent 3488, received 3340 bytes, in 0.1 seconds\n"
        "Bytes per second: sent 63844.1, received 61135.1\n"
    )
    assert messages(printed) == "the words"


def test_a_server_with_too_many_logins_drops_some() -> None:
    assert is_crowded(DROPPED)
    assert is_crowded(DROPPED + ON_THE_WAY)  # a jump host
    assert not is_crowded(ON_THE_WAY)
    assert not is_crowded("No ED25519 host key is known for a\n" + DROPPED)
    assert not is_crowded("")
