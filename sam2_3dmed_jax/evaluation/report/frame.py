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
.headline { border: 2px solid #0072b2; border-radius: .4rem; background: #f6fafd; padding: .2rem 1rem; }
.headline table { font-size: 1rem; }
.headline data { font-weight: 600; }
td div, .headline td div data { font-size: .85rem; font-weight: 400; color: #444; }
.only { border-left: 4px solid #b00020; padding: .3rem .8rem; font-weight: 600; }
.wide { overflow-x: auto; margin: 1rem 0; }
.wide:focus { outline: 2px solid #0072b2; }
table { border-collapse: collapse; font-size: .9rem; font-variant-numeric: tabular-nums; }
caption { text-align: left; color: #444; padding: .3rem 0; font-size: .9rem; }
caption div { position: sticky; left: 0; min-width: min(34rem, 100vw - 4.5rem); max-width: min(70rem, 100vw - 4.5rem); }
th, td { padding: .18rem .6rem; border-bottom: 1px solid #e3e3e3; text-align: left; vertical-align: top;
  max-width: 44rem; }
thead th { border-bottom: 2px solid #888; vertical-align: bottom; }
tbody th { font-weight: 500; min-width: min(9rem, 20vw); max-width: min(22rem, 40vw); }
tbody th:first-child { position: sticky; left: 0; background: #fff; }
.headline tbody th:first-child { background: #f6fafd; }
tbody td { min-width: 3.2rem; }
th.n, td.n { text-align: right; }
td.n { white-space: nowrap; }
tbody tr:hover { background: #f3f6fa; }
.plots { display: flex; flex-wrap: wrap; gap: 1rem; align-items: flex-start; }
figure { margin: 0; max-width: 38rem; }
.sheets { display: flex; flex-wrap: wrap; gap: 1rem; }
img { max-width: 100%; height: auto; }
figcaption { color: #444; font-size: .85rem; }
@media (max-width: 40rem) { th, td { padding: .18rem .3rem; } .headline { padding: .2rem .5rem; } }
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
