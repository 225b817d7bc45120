"""The page's style sheet: calm, light or dark, no wider than the screen."""

from __future__ import annotations

from bootpig_rt.benchmarks.report import svg

PAGE = """
:root{color-scheme:light dark;--paper:#fff;--ground:#f4f6f8;--ink:#26303a;--faint:#5d6875;
--line:#e2e6ea;--accent:#2f6f8f;--other:#93a5b1;--warm:#b8572a;--soft:#fbf1ea}
@media (prefers-color-scheme:dark){:root{--paper:#1b2026;--ground:#13171b;--ink:#dde3e8;
--faint:#9aa6b2;--line:#313941;--accent:#63a9cc;--other:#5f717d;--warm:#e0894f;--soft:#33261d}}
*{box-sizing:border-box}
body{margin:0;background:var(--ground);color:var(--ink);font:15px/1.55 system-ui,sans-serif}
main{max-width:1040px;margin:0 auto;padding:28px 20px 72px}
h1{font-size:27px;line-height:1.2;margin:0 0 6px}h2{font-size:20px;margin:0 0 6px}
h3{font-size:15px;margin:22px 0 4px}
p{margin:6px 0;overflow-wrap:anywhere}a{color:var(--accent)}
code{font:13px/1.5 ui-monospace,monospace;overflow-wrap:anywhere}
section{background:var(--paper);border:1px solid var(--line);border-radius:10px;
padding:20px 22px;margin:18px 0}
figure{margin:14px 0;min-width:0}figcaption,.faint{color:var(--faint);font-size:13px}
.plot{display:block;width:100%;height:auto}.wide{display:block;max-width:820px}
.narrow{display:none}
.pair{display:grid;grid-template-columns:repeat(auto-fit,minmax(min(320px,100%),1fr));gap:8px 32px}
nav{display:flex;flex-wrap:wrap;gap:2px 16px;margin:12px 0}
.tiles{display:grid;grid-template-columns:repeat(auto-fit,minmax(150px,1fr));gap:12px;
margin:18px 0}
.tile{background:var(--paper);border:1px solid var(--line);border-radius:10px;padding:12px 16px}
.tile b{display:block;font-size:25px;line-height:1.3;font-variant-numeric:tabular-nums}
.warn{background:var(--soft);border-left:3px solid var(--warm);padding:8px 12px;border-radius:4px}
dl{display:grid;grid-template-columns:max-content minmax(0,1fr);gap:2px 16px;margin:8px 0}
dt{color:var(--faint)}dd{margin:0;overflow-wrap:anywhere}
.box{overflow-x:auto;margin:10px 0}
table{border-collapse:collapse;font-size:13.5px;font-variant-numeric:tabular-nums;width:100%}
caption{text-align:left;font-weight:600;padding:4px 0}
th,td{padding:5px 14px 5px 0;text-align:right;border-bottom:1px solid var(--line);
white-space:nowrap;vertical-align:middle}
thead th{color:var(--faint);font-weight:600;vertical-align:bottom}
th:first-child{text-align:left;white-space:normal;min-width:170px}tbody th{font-weight:400}
td:last-child,th:last-child{padding-right:0}
.with{display:flex;align-items:center;justify-content:space-between;gap:6px;
max-width:285px;margin-left:auto}
.interval{flex:none}.track{fill:var(--line)}
.value{fill:var(--accent)}.whisker{stroke:var(--warm);stroke-width:1.5;fill:none}
.samples th,.samples td{text-align:left;vertical-align:top;border:0;padding:4px 10px 4px 0;
white-space:normal;font-size:12.5px;min-width:0}
.samples table{width:auto}.samples thead th{width:156px;max-width:156px}
.samples img{display:block;width:136px;height:136px;border-radius:6px;background:#fff}
@media (max-width:640px){main{padding:18px 10px 48px}section{padding:14px 12px;border-radius:8px}
.wide{display:none}.narrow{display:block}.interval{display:none}dl{grid-template-columns:1fr}dd{margin-bottom:6px}
.tiles{grid-template-columns:1fr 1fr}.samples img{width:96px;height:96px}
.samples thead th{width:106px;max-width:106px}
th:first-child{min-width:130px}.samples th:first-child{min-width:0}}
"""

STYLE = PAGE + svg.STYLE
