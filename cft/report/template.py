"""The page's template and style. No script: tooltips are style alone, and the policy forbids everything else."""

STYLE = """
:root { --ink: #1f2933; --muted: #616e7c; --line: #e4e7eb; --accent: #2166ac;
  --critical: #f4a582; --wavering: #fdf0c3 }
* { box-sizing: border-box }
body { font: 15px/1.5 system-ui, -apple-system, "Segoe UI", Roboto, sans-serif; color: var(--ink); margin: 0 auto;
  max-width: 1240px; padding: 24px 28px 120px }
h1 { font-size: 26px; margin: 8px 0 4px } h2 { font-size: 19px; margin: 36px 0 8px }
h3 { font-size: 15px; margin: 22px 0 4px }
p, .note { color: var(--muted); margin: 4px 0 10px; max-width: 80ch }
.wide { overflow-x: auto } table { border-collapse: collapse; font-variant-numeric: tabular-nums; font-size: 13.5px }
th, td { padding: 5px 12px 5px 0; border-bottom: 1px solid var(--line); text-align: right; white-space: nowrap }
th { font-weight: 600; border-bottom: 2px solid var(--line) } th:first-child, td:first-child { text-align: left }
.facts td { text-align: left; white-space: normal } .facts td:first-child { color: var(--muted); padding-right: 24px }
figure { margin: 14px 0 } figure img { max-width: 100%; height: auto }
figcaption { color: var(--muted); font-size: 13px }
details summary { cursor: pointer; color: var(--accent) }
.problem { white-space: pre-wrap; overflow-wrap: anywhere; margin: 4px 0; color: var(--ink) }
.response { font: 14.5px/2.05 ui-monospace, Menlo, Consolas, monospace; white-space: pre-wrap;
  overflow-wrap: anywhere; border: 1px solid var(--line); border-radius: 6px; padding: 10px 14px }
.t { position: relative; border-radius: 3px; padding: 2px 0; unicode-bidi: isolate; outline: none }
.t:hover, .t:focus { box-shadow: 0 0 0 2px var(--accent) }
.critical { background: var(--critical) } .wavering { background: var(--wavering) }
.special { color: var(--muted); font-size: 12px }
.legend span { padding: 2px 8px; border-radius: 3px; margin-right: 14px }
.tip { display: none; position: absolute; left: 0; top: 1.9em; z-index: 9; background: #fff; border: 1px solid #9aa5b1;
  border-radius: 6px; user-select: none; padding: 8px 12px; box-shadow: 0 6px 20px rgba(31, 41, 51, .22);
  white-space: nowrap; font: 13px/1.45 system-ui, sans-serif; color: var(--ink) }
.t:hover > .tip, .t:focus > .tip { display: block }
.row { display: grid; grid-template-columns: 4.5em 7em 4.5em 6em auto; gap: 0 12px }
.head { color: var(--muted) } .mono { font-family: ui-monospace, Menlo, Consolas, monospace }
.wrong, .cut { color: #b2182b } .right { color: #1b7837 }
"""

TEMPLATE = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="{{ policy }}">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="referrer" content="no-referrer">
<title>{{ title }}</title>
<style>{{ style|safe }}</style>
</head>
<body>
<h1>{{ title }}</h1>
{% if lead %}<p>{{ lead }}</p>{% endif %}
{% for table in tables %}
<h2>{{ table.heading }}</h2>
<div class="wide"><table>
<thead><tr>{% for name in table.titles %}<th>{{ name }}</th>{% endfor %}</tr></thead>
<tbody>{% for row in table.rows %}<tr>{% for value in row %}<td>{{ value }}</td>{% endfor %}</tr>{% endfor %}</tbody>
</table></div>
{% for note in table.notes %}<p class="note">{{ note }}</p>{% endfor %}
{% endfor %}
{% for figure in figures %}
<figure><img alt="{{ figure.caption }}" width="{{ figure.width }}"
  src="data:image/png;base64,{{ figure.data }}">
<figcaption>{{ figure.caption }}</figcaption></figure>
{% endfor %}
{% if transcripts %}
<h2>Which tokens decide the answer</h2>
<p class="legend"><span class="critical">critical: every alternative ends wrong</span>
<span class="wavering">the first alternative ends wrong, a later one right</span>
Point at a token, or move to it with the tabulator key, to see its alternatives and where each led.</p>
{% for item in transcripts %}
<h3>Problem {{ loop.index }}</h3>
<div class="problem">{{ item.problem }}</div>
<p class="note">Answer {{ item.answer }}; {{ item.critical }} of {{ item.tokens|length }} tokens critical
({{ "%.0f"|format(100 * item.share) }} %)</p>
<div class="response">
{%- for token in item.tokens -%}
<span class="t {{ token.level }}{% if token.special %} special{% endif %}" tabindex="0">{{ token.text -}}
<span class="tip"><span class="row head"><span>rank</span><span>token</span><span>prob.</span><span>ends</span>
<span>answer</span></span><span class="row"><span>chosen</span>
<span class="mono">{{ token.name }}</span><span>{{ token.probability }}</span><span class="right">right</span>
<span>{{ item.answer }}</span></span>
{%- for other in token.alternatives %}<span class="row"><span>{{ other.rank }}</span>
<span class="mono">{{ other.text }}</span><span>{{ other.probability }}</span>
<span class="{{ other.outcome }}">{{ other.outcome }}</span><span>{{ other.answer }}</span></span>{% endfor -%}
<span class="head">entropy {{ token.entropy }} nats</span></span></span>
{%- endfor -%}
</div>
{% endfor %}
{% endif %}
{% if runs %}
<h2>Runs</h2>
<details><summary>{{ runs.rows|length }} runs</summary>
<div class="wide"><table>
<thead><tr>{% for name in runs.titles %}<th>{{ name }}</th>{% endfor %}</tr></thead>
<tbody>{% for row in runs.rows %}<tr>{% for value in row %}<td>{{ value }}</td>{% endfor %}</tr>{% endfor %}</tbody>
</table></div></details>
{% endif %}
{% if facts %}
<h2>How this was made</h2>
<table class="facts">
{% for name, value in facts.items() %}<tr><td>{{ name }}</td><td>{{ value }}</td></tr>{% endfor %}
</table>
{% endif %}
</body>
</html>
"""
