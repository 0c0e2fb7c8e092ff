"""The page: one HTML file with its style, which loads nothing from anywhere."""

from __future__ import annotations

from datetime import datetime, timezone

from vtexport.report.collect import Sources
from vtexport.report.environment import closing
from vtexport.report.markup import Html, join, tag
from vtexport.report.sections import sections
from vtexport.version import __version__

# Browsers hold the page to it: no script, nothing from the network.
_POLICY = "default-src 'none'; style-src 'unsafe-inline'; img-src data:"

_STYLE = Html("""
:root {
  color-scheme: light dark;
  --page: #ffffff; --text: #1b1f24; --soft: #59636e; --line: #d1d9e0; --panel: #f6f8fa;
  --pass: #116329; --fail: #a40e26; --measured: #0550ae; --unchecked: #6e5600;
  --c0: #6e7781; --c1: #56b4e9; --c2: #0072b2; --c3: #d55e00; --c4: #009e73; --c5: #e69f00; --c6: #cc79a7;
}
@media (prefers-color-scheme: dark) {
  :root {
    --page: #0d1117; --text: #e6edf3; --soft: #9198a1; --line: #3d444d; --panel: #161b22;
    --pass: #56d364; --fail: #ff7b72; --measured: #79c0ff; --unchecked: #e3b341;
    --c0: #9198a1; --c1: #7cc7f0; --c2: #2f8fd0; --c3: #f0803c; --c4: #2fbf95; --c5: #f0b429; --c6: #dd95bb;
  }
}
* { box-sizing: border-box; }
body { margin: 0 auto; padding: 1rem; max-width: 60rem; background: var(--page); color: var(--text);
  font: 16px/1.5 system-ui, sans-serif; overflow-wrap: anywhere; }
h1 { font-size: 1.6rem; line-height: 1.2; margin: 0.5rem 0; }
h2 { font-size: 1.25rem; margin: 2.5rem 0 0.5rem; padding-bottom: 0.25rem; border-bottom: 1px solid var(--line); }
h3 { font-size: 1rem; margin: 1.5rem 0 0.5rem; }
p { margin: 0.5rem 0; }
nav { display: flex; flex-wrap: wrap; gap: 0.25rem 1rem; }
nav a { color: var(--measured); padding: 0.25rem 0; }
code { font: 0.875em ui-monospace, monospace; background: var(--panel); padding: 0.1em 0.3em; border-radius: 4px; }
.soft, .absent { color: var(--soft); }
.absent { border-left: 3px solid var(--unchecked); padding-left: 0.6rem; }
.scroll { overflow-x: auto; margin: 0.75rem 0; }
table { border-collapse: collapse; font-size: 0.875rem; font-variant-numeric: tabular-nums; }
th, td { text-align: left; vertical-align: top; padding: 0.3rem 0.75rem 0.3rem 0; border-bottom: 1px solid var(--line);
  overflow-wrap: normal; min-width: 3rem; max-width: 26rem; }
td, tbody th { overflow-wrap: break-word; }
thead th { color: var(--soft); font-weight: 600; }
tbody th { font-weight: 600; white-space: nowrap; }
.badge { display: inline-block; white-space: nowrap; font-weight: 600; padding: 0 0.5rem; border: 1px solid;
  border-radius: 999px; font-size: 0.8125rem; }
.pass { color: var(--pass); } .fail { color: var(--fail); } .measured { color: var(--measured); }
.not-checked, .differs, .skipped { color: var(--unchecked); }
.legend { display: flex; flex-wrap: wrap; gap: 0.25rem 1rem; font-size: 0.875rem; }
.row { margin: 0.5rem 0; }
.label { display: flex; justify-content: space-between; gap: 1rem; margin: 0; font-size: 0.875rem; }
.label span:last-child { white-space: nowrap; font-variant-numeric: tabular-nums; }
svg { display: block; overflow: visible; }
.legend svg { display: inline-block; }
.bar { background: var(--panel); }
.plot { padding: 0.5rem 0.75rem 0 3.25rem; }
text { font-size: 12px; fill: var(--soft); }
line { stroke: var(--soft); stroke-width: 1; }
.grid { stroke: var(--line); }
.range { stroke: var(--soft); stroke-width: 2; }
.p90 { stroke: var(--c5); stroke-width: 3; }
.p99 { fill: var(--c3); }
.p50 { fill: var(--c2); }
.c0 { fill: var(--c0); } .c1 { fill: var(--c1); } .c2 { fill: var(--c2); } .c3 { fill: var(--c3); }
.c4 { fill: var(--c4); } .c5 { fill: var(--c5); } .c6 { fill: var(--c6); }
.curve { stroke-width: 2; }
.curve.c0 { stroke: var(--c0); } .curve.c1 { stroke: var(--c1); } .curve.c2 { stroke: var(--c2); }
.curve.c3 { stroke: var(--c3); } .curve.c4 { stroke: var(--c4); } .curve.c5 { stroke: var(--c5); }
.curve.c6 { stroke: var(--c6); }
.pictures { display: grid; grid-template-columns: repeat(auto-fill, minmax(9.5rem, 1fr)); gap: 1rem; }
@media (min-width: 45rem) { .pictures { grid-template-columns: repeat(auto-fill, minmax(13rem, 1fr)); } }
figure { margin: 0; }
figure img { width: 100%; height: auto; display: block; }
figcaption { font-size: 0.8125rem; color: var(--soft); }
@media print { nav { display: none; } }
""")


def page(sources: Sources, now: datetime | None = None) -> bytes:
    """The whole page in UTF-8.

    Args:
        sources: what it is made of.
        now: time that the page states; default: the time.
    """
    name = sources.bundle.manifest.name
    made = [*sections(sources), *closing(sources)]
    at = (now or datetime.now(timezone.utc)).strftime("%Y-%m-%d %H:%M UTC")
    title = f"{name}: vtexport report"
    head = tag(
        "head",
        tag("meta", charset="utf-8"),
        tag("meta", http_equiv="Content-Security-Policy", content=_POLICY),
        tag("meta", name="viewport", content="width=device-width, initial-scale=1"),
        tag("title", title),
        tag("style", _STYLE),
    )
    body = tag(
        "body",
        tag("h1", name),
        tag("p", f"{sources.bundle.folder}; vtexport {__version__}, {at}", class_="soft"),
        tag("nav", *(tag("a", each.title, href=f"#{each.id}") for each in made), aria_label="sections"),
        tag("main", *(tag("section", tag("h2", each.title), each.body, id=each.id) for each in made)),
    )
    return join((Html("<!DOCTYPE html>\n"), tag("html", head, body, lang="en"), Html("\n"))).encode()
