"""How much may be uploaded, and what it may cost to read."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class DatasetLimits:
    """Limits of one control plane.

    Attributes:
        default_part_bytes: of a part, where the client has no wish.
        min_part_bytes: a client may wish for no smaller parts; a file of one part may be smaller.
        max_part_bytes: nor for larger ones.
        max_parts: of one dataset.
        max_bytes: of one dataset.
        max_decompressed_bytes: that a dataset may decompress to. The ratio is limited as well, by
            `service.rows.decompress.MAX_EXPANSION`.
        upload_expiry_s: an upload that is not complete after so long is removed.
        memory_bytes: address space of the process that reads a dataset.
        preview_timeout_s: that a preview may take.
        scan_timeout_s: that verification, or a pass over all rows, may take.
    """

    default_part_bytes: int = 8 * 2**20
    min_part_bytes: int = 2**20
    max_part_bytes: int = 64 * 2**20
    max_parts: int = 10_000
    max_bytes: int = 50 * 2**30
    max_decompressed_bytes: int = 200 * 2**30
    upload_expiry_s: float = 7 * 86400.0
    memory_bytes: int = 4 * 2**30
    preview_timeout_s: float = 30.0
    scan_timeout_s: float = 3600.0
