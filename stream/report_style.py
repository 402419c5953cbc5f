"""The style of a drift report: light, and dark where the reader's system is."""

__all__ = ["STYLE"]

STYLE = """
:root {
  color-scheme: light dark;
  --page: #f4f6f9; --card: #ffffff; --ink: #1b2430; --soft: #566273; --grid: #e6eaf0; --axis: #aeb8c6;
  --loss: #2563c9; --recall: #0a7d63; --interval: #0a7d6333; --alarm: #c2410c; --limit: #b45309;
  --ingest: #6b7fa3; --compared: #f0f2f6; --learning: #dfe4ec; --on-flag: #ffffff;
  --heat-0: #dbe7fb; --heat-1: #a9c6f5; --heat-2: #f2c37b; --heat-3: #e3813a; --heat-4: #b3261e;
  --frame-0: #7a8799; --frame-1: #2563c9; --frame-2: #0a8a6c; --frame-3: #a445b2; --frame-4: #b7791f;
  --frame-5: #c0395a;
}
@media (prefers-color-scheme: dark) {
  :root {
    --page: #10141b; --card: #181e28; --ink: #e7ebf2; --soft: #9aa7ba; --grid: #262f3c; --axis: #4b586b;
    --loss: #6ea8ff; --recall: #3fcfa8; --interval: #3fcfa838; --alarm: #ff8a50; --limit: #f0b35a;
    --ingest: #8296bd; --compared: #1f2733; --learning: #2e3949; --on-flag: #181e28;
    --heat-0: #22344f; --heat-1: #315f9e; --heat-2: #94682a; --heat-3: #d8752c; --heat-4: #ff6a5c;
    --frame-0: #8b98ab; --frame-1: #6ea8ff; --frame-2: #3fcfa8; --frame-3: #d28be0; --frame-4: #e4b45a;
    --frame-5: #ff87a3;
  }
}
* { box-sizing: border-box; }
body { margin: 0; background: var(--page); color: var(--ink);
  font: 15px/1.5 system-ui, -apple-system, "Segoe UI", Roboto, "DejaVu Sans", sans-serif; }
main { max-width: 1080px; margin: 0 auto; padding: 32px 20px 64px; }
h1 { font-size: 26px; line-height: 1.2; margin: 0 0 4px; overflow-wrap: anywhere; }
h2 { font-size: 17px; margin: 0; }
p { margin: 6px 0; }
.soft, figcaption, .legend { color: var(--soft); font-size: 13.5px; }
.verdict { font-size: 17px; margin: 18px 0; }
.tiles { display: grid; grid-template-columns: repeat(auto-fit, minmax(150px, 1fr)); gap: 12px;
  margin: 0 0 20px; }
.tile { background: var(--card); border: 1px solid var(--grid); border-radius: 10px; padding: 12px 14px; }
.tile b { display: block; font-size: 24px; line-height: 1.25; font-weight: 650;
  font-variant-numeric: tabular-nums; }
.tile span { color: var(--soft); font-size: 13px; display: block; }
section, figure { background: var(--card); border: 1px solid var(--grid); border-radius: 10px;
  margin: 0 0 16px; padding: 16px 18px; }
.legend { display: flex; flex-wrap: wrap; gap: 4px 18px; margin: 8px 0 2px; }
.legend span { display: inline-flex; align-items: center; gap: 7px; }
.legend svg { width: 22px; height: 12px; flex: none; }
.empty { border: 1px dashed var(--axis); border-radius: 8px; padding: 18px; margin: 12px 0 4px;
  color: var(--soft); }
.wide { overflow-x: auto; }
.plot { display: block; width: 100%; min-width: 620px; height: auto; margin-top: 6px; }
.tick { font-size: 12px; fill: var(--soft); font-variant-numeric: tabular-nums; }
.label { font-size: 12px; fill: var(--ink); }
.note { font-size: 12px; fill: var(--limit); font-weight: 600; }
.grid { stroke: var(--grid); } .axis { stroke: var(--axis); }
.line { fill: none; stroke-width: 2; stroke-linejoin: round; }
.line.loss { stroke: var(--loss); } .line.recall { stroke: var(--recall); }
.dot { stroke: transparent; stroke-width: 8; }
.dot.loss { fill: var(--loss); } .dot.recall { fill: var(--recall); } .dot.differs { fill: var(--alarm); }
.dot:hover { stroke: var(--axis); }
.interval { fill: var(--interval); stroke: var(--interval); }
.limit { stroke: var(--limit); stroke-dasharray: 6 4; }
.alarm { stroke: var(--alarm); stroke-width: 1.5; stroke-dasharray: 2 3; }
.flag { fill: var(--alarm); } .flag-number { fill: var(--on-flag); font-size: 11px; font-weight: 700; }
.restart { stroke: var(--ink); stroke-width: 1; stroke-dasharray: 8 3; }
.ingest { fill: var(--ingest); } .ingest:hover, .heat:hover, .band:hover { opacity: .75; }
.reencode { fill: var(--ink); }
.compared, .learning, .heat, .ingest { shape-rendering: crispEdges; }
.compared { fill: var(--compared); } .learning { fill: var(--learning); }
.heat-0 { fill: var(--heat-0); } .heat-1 { fill: var(--heat-1); } .heat-2 { fill: var(--heat-2); }
.heat-3 { fill: var(--heat-3); } .heat-4 { fill: var(--heat-4); }
.frame-0 { fill: var(--frame-0); } .frame-1 { fill: var(--frame-1); } .frame-2 { fill: var(--frame-2); }
.frame-3 { fill: var(--frame-3); } .frame-4 { fill: var(--frame-4); } .frame-5 { fill: var(--frame-5); }
table { border-collapse: collapse; width: 100%; margin-top: 8px; font-size: 14px; }
td, th { text-align: left; vertical-align: top; padding: 5px 14px 5px 0; border-top: 1px solid var(--grid); }
th { color: var(--soft); font-weight: 500; border-top: 0; }
td:first-child { white-space: nowrap; font-variant-numeric: tabular-nums; color: var(--soft); }
td { overflow-wrap: anywhere; }
.badge { display: inline-block; min-width: 20px; padding: 0 5px; border-radius: 10px;
  background: var(--alarm);  color: var(--on-flag); font-size: 12px; font-weight: 700; text-align: center; }
dt { font-weight: 600; margin-top: 10px; } dd { margin: 0; }
summary { cursor: pointer; }
@media print { main { max-width: none; padding: 0; } figure, section { break-inside: avoid; } }
"""
