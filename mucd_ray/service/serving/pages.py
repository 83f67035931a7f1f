"""What the server says of itself to people: one page of plain HTML that loads nothing from elsewhere."""

import json
import math

import jinja2
import numpy as np

ROUTES = (
    ("POST", "/act", "the action at one observation, and its certified radius"),
    ("POST", "/act/batch", "the same for up to {most} observations, {{\"observations\": [...]}}, in their order"),
    ("GET", "/about", "what is served: the certificate's claim and assumptions"),
    ("GET", "/health", "whether actions are served"),
    ("GET", "/openapi.json", "the exact shapes, for programs"),
    ("GET", "/docs", "this page"),
)
REFUSALS = (
    ("408", "the body was not there in time"),
    ("413", "the body is longer than any honest one"),
    ("415", "the header Content-Type is missing, or is not application/json"),
    ("422", "the body is not of the shape above: the answer names the place"),
)
# Numbers in an example; longer observations are described.
MOST_SHOWN = 32

PAGE = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; style-src 'unsafe-inline'">
<title>{{ about.run }}: certified actions</title>
<style>
body { max-width: 52rem; margin: 0 auto; padding: 1rem; font: 1rem/1.5 system-ui, sans-serif; overflow-wrap: anywhere; }
pre { overflow-x: auto; background: #f4f6f8; padding: .8rem; overflow-wrap: normal; } .scroll { overflow-x: auto; }
th, td { text-align: left; vertical-align: top; padding: .2rem .9rem .2rem 0; overflow-wrap: normal; }
</style>
</head>
<body>
<h1>Certified actions of {{ about.run }}</h1>
<p>{{ about.instances }} policies trained on {{ about.run }} ({{ about.environment }}) answer an observation with one action, and up to how many changed {{ about.unit }} it is certified ({{ about.threat }} threat).</p>
<p>{{ about.confidence }}</p>
<p>Certificate {{ about.certificate }}</p>
<h2>Routes</h2>
<div class="scroll"><table>
{% for method, path, what in routes %}<tr><th scope="row">{{ method }}</th><td><code>{{ path }}</code></td><td>{{ what }}</td></tr>
{% endfor %}</table></div>
<h2>An example</h2>
<p>One observation is {{ seen }}; shape {{ shape }}.</p>
<pre>curl -X POST http://HOST:PORT/act -H 'Content-Type: application/json' -d '{"observation": {{ example }}}'</pre>
<h2>What is refused</h2>
<div class="scroll"><table>
{% for status, why in refusals %}<tr><th scope="row">{{ status }}</th><td>{{ why }}</td></tr>
{% endfor %}</table></div>
</body>
</html>
"""


def documentation(about: dict, *, seen: str, state: np.ndarray, most: int) -> str:
    """The page. Every value is escaped: what it tells comes from a file that anybody may have written.

    Args:
        about: as of `Ensemble.about`.
        seen: what an observation is, in words.
        state: one of the run's own.
        most: observations in one request.
    """
    example = json.dumps(state.tolist()) if math.prod(state.shape) <= MOST_SHOWN else "[...]"
    environment = jinja2.Environment(autoescape=True, undefined=jinja2.StrictUndefined)
    routes = [(method, path, what.format(most=most)) for method, path, what in ROUTES]
    return environment.from_string(PAGE).render(about=about, seen=seen, shape=list(state.shape), example=example, routes=routes, refusals=REFUSALS)
