"""Raw instruction data to packed rows."""
