"""HTML page around the sections of a report; it loads nothing and runs no scripts."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape

# The browser fetches nothing and runs nothing, even if the name of a case or class contains markup.
_POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'; base-uri 'none'; form-action 'none'"
_CSS = """
body { font: 15px/1.45 system-ui, sans-serif; max-width: 78rem; margin: 1.5rem auto; padding: 0 1rem; color: #1a1a1a;
  background: #fff; overflow-wrap: break-word; }
h2 { margin-top: 2.2rem; border-bottom: 1px solid #ccc; }
.only { border-left: 4px solid #b00020; padding: .3rem .8rem; font-weight: 600; }
.wide { overflow-x: auto; margin: 1rem 0; }
.wide:focus { outline: 2px solid #0072b2; }
table { border-collapse: collapse; font-size: .9rem; font-variant-numeric: tabular-nums; }
caption { text-align: left; color: #444; padding: .3rem 0; max-width: 70rem; min-width: 34rem; }
th, td { padding: .18rem .6rem; border-bottom: 1px solid #e3e3e3; text-align: left; vertical-align: top;
  max-width: 44rem; }
thead th { border-bottom: 2px solid #888; white-space: nowrap; }
tbody th { font-weight: 500; min-width: 9rem; max-width: 22rem; }
tbody td { min-width: 3.2rem; }
th.n, td.n { text-align: right; white-space: nowrap; }
tbody tr:hover { background: #f3f6fa; }
.plots { display: flex; flex-wrap: wrap; gap: 1rem; align-items: flex-start; }
figure { margin: 0; max-width: 38rem; }
.sheets figure { max-width: 60rem; margin-bottom: 1rem; }
img { max-width: 100%; height: auto; }
figcaption { color: #444; font-size: .85rem; }
@media print { .wide { overflow: visible; } h2 { break-after: avoid; } figure { break-inside: avoid; } }
"""


def html_page(name: str, sections: Sequence[tuple[str, str]], warning: str = "") -> str:
    """Return a complete page.

    Args:
        name: its title, as text.
        sections: headings and their HTML; sections with empty HTML are left out.
        warning: text before all sections, after the notice of research use.
    """
    body = "\n".join(f"<section><h2>{head}</h2>\n{content}\n</section>" for head, content in sections if content)
    title = escape(name)
    warning_html = f'<p class="only">{escape(warning)}</p>\n' if warning else ""
    return (
        '<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{_POLICY}">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{title}</title><style>{_CSS}</style></head>\n<body>\n<main><h1>{title}</h1>\n"
        '<p class="only">For research use only. Not for diagnosis or treatment.</p>\n'
        f"{warning_html}{body}\n</main></body></html>\n"
    )
