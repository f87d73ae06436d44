"""The pages that a person sees. Self-contained: no scripts, fonts or pictures from anywhere."""

from collections.abc import Iterable
from html import escape
from string import Template

from .messages import HTML, Response
from .people import SimulatedUser, describe_scope

_HEADERS = {
    "Cache-Control": "no-store",
    "X-Frame-Options": "DENY",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    # No form-action: browsers apply it to the redirect that follows the form as well.
    "Content-Security-Policy": (
        "default-src 'none'; style-src 'unsafe-inline'; img-src data:; base-uri 'none'; "
        "frame-ancestors 'none'"
    ),
}

_STYLE = """
:root {
  color-scheme: light dark;
  --page: #eef1f6; --card: #ffffff; --text: #1b2430; --soft: #5b6675; --line: #d8dee8;
  --accent: #1f5fbf; --accent-text: #ffffff; --chosen: #eaf1fc;
  --note: #fff4d6; --note-text: #6b4e00;
}
@media (prefers-color-scheme: dark) {
  :root {
    --page: #11161d; --card: #1b222c; --text: #e8edf4; --soft: #9aa7b8; --line: #333d4b;
    --accent: #7fb0ff; --accent-text: #0c1420; --chosen: #22304a;
    --note: #3a2f10; --note-text: #f5d98b;
  }
}
* { box-sizing: border-box; }
body {
  margin: 0; min-height: 100vh; display: grid; place-items: center; padding: 1.5rem 1rem;
  background: var(--page); color: var(--text);
  font: 16px/1.5 system-ui, -apple-system, "Segoe UI", Roboto, sans-serif;
}
main {
  width: 100%; max-width: 27rem; background: var(--card); border: 1px solid var(--line);
  border-radius: 14px; overflow: hidden; box-shadow: 0 8px 30px rgb(0 0 0 / .08);
}
.note {
  margin: 0; padding: .6rem 1.5rem; background: var(--note); color: var(--note-text);
  font-size: .875rem;
}
.note { text-wrap: balance; }
.content { padding: 1.5rem; }
h1 { margin: 0 0 .35rem; font-size: 1.35rem; line-height: 1.3; }
p { margin: 0 0 1rem; }
.soft { color: var(--soft); font-size: .9rem; }
h2, legend { margin: 0 0 .5rem; padding: 0; font-size: .95rem; font-weight: 600; }
ul { margin: 0 0 1.4rem; padding: 0; list-style: none; }
ul li { padding: .45rem 0; border-top: 1px solid var(--line); }
ul li:last-child { border-bottom: 1px solid var(--line); }
code { color: var(--soft); font-size: .8rem; overflow-wrap: anywhere; display: block; }
p code, dd code { display: inline; }
fieldset { margin: 0 0 1.4rem; padding: 0; border: 0; min-width: 0; }
.user {
  display: flex; gap: .8rem; align-items: center; padding: .6rem .8rem; margin-bottom: .5rem;
  border: 1px solid var(--line); border-radius: 10px; cursor: pointer;
}
.user:has(input:checked) { border-color: var(--accent); background: var(--chosen); }
.user input { accent-color: var(--accent); width: 1.1rem; height: 1.1rem; margin: 0; flex: none; }
.user span { min-width: 0; overflow-wrap: anywhere; }
.user small { display: block; color: var(--soft); }
.buttons { display: flex; gap: .75rem; }
button {
  flex: 1; min-height: 2.75rem; padding: .5rem 1rem; border-radius: 10px; font: inherit;
  font-weight: 600; cursor: pointer; border: 1px solid var(--line); background: transparent;
  color: var(--text);
}
button.primary {
  background: var(--accent); border-color: var(--accent); color: var(--accent-text);
}
button:focus-visible, input:focus-visible { outline: 3px solid var(--accent); outline-offset: 2px; }
dl { margin: 0; }
dt { margin-top: .8rem; font-weight: 600; font-size: .9rem; }
dd { margin: 0; }
"""

_PAGE = Template("""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="robots" content="noindex">
<title>$title · Simulated Bipsync</title>
<link rel="icon" href="data:,">
<style>$style</style>
</head>
<body>
<main>
<p class="note"><strong>Simulated Bipsync</strong> for development and tests.
This is not Bipsync.</p>
<div class="content">
$content
</div>
</main>
</body>
</html>
""")

_CONSENT = Template("""<h1>Sign in to <span id="application">$application</span></h1>
<p class="soft">It asks for access to your data at <strong id="tenant">$tenant</strong>.</p>
$scopes
<form method="post" action="/oauth/authorize" id="consent">
<input type="hidden" name="request_id" value="$request_id">
<fieldset>
<legend>Who are you?</legend>
$users
</fieldset>
<div class="buttons">
<button class="primary" type="submit" name="decision" value="approve" id="approve">Allow</button>
<button type="submit" name="decision" value="deny" id="deny" formnovalidate>Cancel</button>
</div>
</form>
<p class="soft" style="margin:1rem 0 0">You will go on to <code>$redirect_uri</code></p>""")

_USER = Template(
    '<label class="user">'
    '<input type="radio" name="user" id="user-$id" value="$id" required$checked>'
    "<span>$name<small>$email</small></span></label>"
)


def _page(title: str, content: str, status: int = 200) -> Response:
    html = _PAGE.substitute(title=escape(title), style=_STYLE, content=content)
    return Response(status, html.encode(), HTML, _HEADERS)


def consent(
    *,
    application: str,
    tenant: str,
    scopes: Iterable[str],
    users: Iterable[SimulatedUser],
    redirect_uri: str,
    request_id: str,
) -> Response:
    """Return the page that asks who signs in, and whether they agree."""
    rows = "".join(
        f"<li>{escape(describe_scope(scope))}<code>{escape(scope)}</code></li>" for scope in scopes
    )
    choices = [
        _USER.substitute(
            id=escape(user.id),
            name=escape(user.name),
            email=escape(user.email),
            checked="" if position else " checked",
        )
        for position, user in enumerate(users)
    ]
    return _page(
        f"Sign in to {application}",
        _CONSENT.substitute(
            application=escape(application),
            tenant=escape(tenant),
            scopes=f"<h2>It will be able to</h2><ul id='scopes'>{rows}</ul>" if rows else "",
            users="\n".join(choices) or "<p>This tenant has no users.</p>",
            redirect_uri=escape(redirect_uri),
            request_id=escape(request_id),
        ),
    )


def message(title: str, text: str, status: int = 400) -> Response:
    """Return a page with one thing to say."""
    return _page(title, f"<h1>{escape(title)}</h1><p>{escape(text)}</p>", status)


_CONNECTED = Template(
    '<form method="post" action="/withdraw"><input type="hidden" name="user" value="$id">'
    '<p>$name <button type="submit">Withdraw the permission</button></p></form>'
)


def home(
    *,
    tenant: str,
    url: str,
    client_id: str,
    redirect_uris: Iterable[str],
    connected: Iterable[SimulatedUser],
) -> Response:
    """Return the page for somebody who opens the simulator's address in a browser."""
    people = "".join(
        _CONNECTED.substitute(id=escape(user.id), name=escape(user.name)) for user in connected
    )
    callbacks = "".join(f"<dd><code>{escape(uri)}</code></dd>" for uri in sorted(redirect_uris))
    return _page(
        "Simulated Bipsync",
        "<h1>Nothing to sign in to here</h1>"
        "<p>This server plays Bipsync's part for a site that is being developed or tested: it"
        " lets made-up people sign in, issues tokens, and answers a little of the API. Start at"
        " the site's own sign-in page; it sends you here.</p>"
        f"<dl><dt>Tenant</dt><dd><code>{escape(tenant)}</code></dd>"
        f"<dt>Application</dt><dd><code>{escape(client_id)}</code></dd>"
        f"<dt>May return to</dt>{callbacks or '<dd>nowhere yet</dd>'}"
        f"<dt>Signing keys</dt><dd><code>{escape(url)}/v1/oauth/jwks</code></dd></dl>"
        + (f"<h2>Who has given permission</h2>{people}" if people else ""),
    )
