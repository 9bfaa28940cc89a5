"""Error texts without the secrets they may quote."""

import pytest

from dnt.redact import redacted


@pytest.mark.parametrize(
    ("secret", "shown"),
    [
        ("https://me:pass@host/x?sig=abc&b=1 failed", "https://***@host/x?*** failed"),
        ("401 for url (https://host/a?token=abc)", "401 for url (https://host/a?***"),
        ("token hf_AbCdEfGhIjKl is invalid", "token hf_*** is invalid"),
        ("Authorization: Bearer abcdefgh.ijk", "Authorization: Bearer ***"),
        ("s3://key:secret@bucket/x", "s3://***@bucket/x"),
        ("what? a plain user@host text", "what? a plain user@host text"),
    ],
)
def test_secrets_are_not_shown(secret, shown):
    assert redacted(secret) == shown
