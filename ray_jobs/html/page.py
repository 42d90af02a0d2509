"""A page of sections, to keep or to mail: it needs no network, runs no script, and escapes every word."""

from __future__ import annotations

from collections.abc import Iterable
from html import escape

_STYLE = """
body{font:15px/1.5 system-ui,sans-serif;max-width:60rem;margin:2rem auto;padding:0 1rem;color:#222;background:#fff}
h1{font-size:1.5rem}h2{font-size:1.1rem;margin-top:2.2rem;border-bottom:1px solid #ddd}
.table{overflow-x:auto}table{border-collapse:collapse;font-variant-numeric:tabular-nums}
td,th{padding:.15rem .8rem;text-align:right;vertical-align:top;border-bottom:1px solid #eee}.text{text-align:left}
p{margin:.6rem 0;overflow-wrap:anywhere}summary{margin:.4rem 0;cursor:pointer}
details table{font-size:.8rem}pre{background:#f6f6f6;padding:.6rem;overflow-x:auto;font-size:.8rem}
svg{width:100%;max-width:760px;display:block}
.legend{list-style:none;display:flex;flex-wrap:wrap;gap:1rem;padding:0;font-size:.85rem}
.legend li::before{content:"";display:inline-block;width:.8em;height:.8em;margin-right:.4em;background:var(--colour)}
"""
_POLICY = "default-src 'none'; style-src 'unsafe-inline'"


def page_of(title: str, sections: Iterable[tuple[str, str]]) -> str:
    """The page.

    Args:
        title: text.
        sections: headings as text, and what stands below them as markup; those without any are left out.
    """
    body = "".join(f"<h2>{escape(heading)}</h2>{content}" for heading, content in sections if content)
    return (
        f'<!doctype html><html lang="en"><head><meta charset="utf-8"><title>{escape(title)}</title>'
        f'<meta http-equiv="Content-Security-Policy" content="{_POLICY}"><style>{_STYLE}</style></head>'
        f"<body><h1>{escape(title)}</h1>{body}</body></html>\n"
    )
