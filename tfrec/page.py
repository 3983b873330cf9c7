"""One HTML page that needs nothing beside it: text that is always escaped, tables, charts, light, dark and on paper."""

import html
from collections.abc import Sequence
from typing import Any

_STYLE = """
:root{color-scheme:light dark;--ink:#1c2128;--soft:#5b6672;--paper:#fff;--panel:#f6f8fa;--faint:#d8dee4;--warn:#b3420f}
@media (prefers-color-scheme:dark){:root{--ink:#dbe1e8;--soft:#93a0ad;--paper:#14171b;--panel:#1c2026;--faint:#343b44;
--warn:#f0a36b}}
*{box-sizing:border-box}
body{margin:0 auto;max-width:76rem;padding:1.5rem;background:var(--paper);color:var(--ink);
font:15px/1.5 system-ui,-apple-system,"Segoe UI",Roboto,sans-serif}
h1{font-size:1.7rem;margin:0 0 .3rem;overflow-wrap:anywhere}
h2{font-size:1.2rem;margin:2.2rem 0 .6rem;padding-top:.8rem;border-top:1px solid var(--faint)}
h3{font-size:1rem;margin:1.2rem 0 .4rem}
p{max-width:48rem;margin:.4rem 0}
nav a{margin-right:1rem}a{color:inherit}
.note{color:var(--soft)}.warning{color:var(--warn)}
.scroll{overflow-x:auto}
table{border-collapse:collapse;font-size:.87rem;font-variant-numeric:tabular-nums;margin:.5rem 0}
th,td{text-align:left;padding:.22rem .8rem .22rem 0;border-bottom:1px solid var(--faint);vertical-align:top}
th{color:var(--soft);font-weight:600}
td:not(:first-child){white-space:nowrap}td.text{white-space:normal}
figure{margin:1rem 0;padding:.8rem;background:var(--panel);border-radius:6px}
figure svg{max-width:100%;height:auto;font-family:inherit}
figcaption{font-size:.87rem;color:var(--soft);margin-top:.4rem;max-width:60rem}
details{margin:.3rem 0;font-size:.9rem}summary{cursor:pointer;color:var(--soft)}
pre{background:var(--panel);padding:.8rem;border-radius:6px;overflow-x:auto;font-size:.8rem;line-height:1.4}
@page{margin:14mm}
@media print{:root{--ink:#000;--soft:#444;--paper:#fff;--panel:#fff;--faint:#ccc;--warn:#8a2f05}
body{max-width:none;padding:0;font-size:11px}nav{display:none}figure,tr{break-inside:avoid}h2,h3{break-after:avoid}
.scroll{overflow:visible}td:not(:first-child){white-space:normal}}
"""


class Page:
    """A page that is written from top to bottom.

    Args:
        title: stands at the top and in the browser's tab.
    """

    def __init__(self, title: str) -> None:
        self.title = title
        self._parts: list[str] = []
        self._sections: list[str] = []

    def section(self, title: str) -> None:
        """Begins a section, which the contents at the top lead to."""
        self._sections.append(title)
        self._parts.append(f'<h2 id="section-{len(self._sections)}">{_escaped(title)}</h2>')

    def heading(self, title: str) -> None:
        """A heading inside a section."""
        self._parts.append(f"<h3>{_escaped(title)}</h3>")

    def text(self, text: str, kind: str = "") -> None:
        """A paragraph; its kind is nothing, `note` or `warning`."""
        self._parts.append(f'<p class="{kind}">{_escaped(text)}</p>' if kind else f"<p>{_escaped(text)}</p>")

    def table(self, rows: Sequence[Sequence[Any]], fields: Sequence[str], *, title: str = "") -> None:
        """A table; where it has a title, it is folded away under that."""
        head = "".join(f"<th>{_escaped(field)}</th>" for field in fields)
        body = "".join(f"<tr>{''.join(map(_cell, row))}</tr>" for row in rows)
        table = f'<div class="scroll"><table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>'
        self._parts.append(_folded(title, table) if title else table)

    def figure(self, svg: str, caption: str, rows: Sequence[Sequence[Any]] = (), fields: Sequence[str] = ()) -> None:
        """A chart, what it shows, and its numbers as a table that is folded away."""
        label = html.escape(caption, quote=True)
        self._parts.append(f'<figure role="img" aria-label="{label}">{svg}')
        self._parts.append(f"<figcaption>{_escaped(caption)}</figcaption>")
        if rows:
            self.table(rows, fields, title="the numbers")
        self._parts.append("</figure>")

    def code(self, text: str, *, title: str) -> None:
        """Text in a fixed width, folded away under a title."""
        self._parts.append(_folded(title, f"<pre>{_escaped(text)}</pre>"))

    def render(self) -> str:
        """The whole document."""
        links = "".join(
            f'<a href="#section-{number}">{_escaped(name)}</a>' for number, name in enumerate(self._sections, start=1)
        )
        title = _escaped(self.title)
        return (
            '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
            '<meta name="viewport" content="width=device-width,initial-scale=1">'
            f"<title>{title}</title><style>{_STYLE}</style></head>\n<body><h1>{title}</h1>\n<nav>{links}</nav>\n"
            + "\n".join(self._parts)
            + "\n</body></html>\n"
        )


def _escaped(text: str) -> str:
    return html.escape(text, quote=False)


def _cell(value: Any) -> str:
    if isinstance(value, float):
        return f"<td>{value:.6g}</td>"
    text = str(value)
    return f'<td class="text">{_escaped(text)}</td>' if len(text) > 60 else f"<td>{_escaped(text)}</td>"


def _folded(title: str, content: str) -> str:
    return f"<details><summary>{_escaped(title)}</summary>{content}</details>"
