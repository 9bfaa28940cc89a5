"""Error texts and names without the secrets that they may quote. No torch."""

import re

SECRETS = (
    (re.compile(r"(?<=://)[^\s/?#'\"]*@"), "***@"),  # user:password@host
    (re.compile(r"(://[^\s?#'\"]*)[?#][^\s'\"]*"), r"\1?***"),  # signatures and tokens in a query or fragment
    (re.compile(r"\bhf_\w{8,}"), "hf_***"),  # a token of the Hugging Face hub
    (re.compile(r"(?i)\b(bearer|basic) +[\w.~+/=-]{8,}"), r"\1 ***"),
)


def redacted(text: object) -> str:
    """The text with the credentials and the query of every URL in it, and every token of the hub, replaced by ***."""
    shown = str(text)
    for secret, instead in SECRETS:
        shown = secret.sub(instead, shown)
    return shown
