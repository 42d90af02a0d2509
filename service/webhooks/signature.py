"""Signatures of messages, as Standard Webhooks 1.0 has them: HMAC-SHA256 over id, time and body.

A webhook's secret follows from the server's own and the webhook's id, so it is in no table and no backup of one.
https://github.com/standard-webhooks/standard-webhooks/blob/main/spec/standard-webhooks.md
"""

from __future__ import annotations

import base64
import hashlib
import hmac

SECRET_PREFIX = "whsec_"  # noqa: S105  marks a secret, is none


def webhook_secret(server_secret: bytes, webhook_id: str) -> str:
    """The secret that a webhook's messages are signed with.

    Args:
        server_secret: of this service and its replicas.
        webhook_id: of the webhook.
    """
    key = hmac.digest(server_secret, f"webhook:{webhook_id}".encode(), hashlib.sha256)
    return SECRET_PREFIX + base64.b64encode(key).decode()


def signed_headers(secret: str, message_id: str, timestamp: int, body: bytes) -> dict[str, str]:
    """The headers that prove where a message comes from.

    Args:
        secret: of the webhook.
        message_id: the same at each try, so that the receiver can tell repetitions.
        timestamp: of this try, in seconds since 1970; receivers refuse old ones.
        body: as it is sent.
    """
    key = base64.b64decode(secret.removeprefix(SECRET_PREFIX))
    signed = f"{message_id}.{timestamp}.".encode() + body
    signature = base64.b64encode(hmac.digest(key, signed, hashlib.sha256)).decode()
    return {
        "webhook-id": message_id,
        "webhook-timestamp": str(timestamp),
        "webhook-signature": f"v1,{signature}",
    }
