"""The HTML document of the page: Gradio's own, in our language and theme, without what it points to elsewhere."""

from __future__ import annotations

import html
import re
import secrets

from starlette.types import ASGIApp, Message, Receive, Scope, Send

POLICY = (
    "default-src 'none'; script-src 'self' 'nonce-{nonce}' 'unsafe-eval'; style-src 'self' 'unsafe-inline'; "
    "img-src 'self' data: blob:; font-src 'self' data:; connect-src 'self'; media-src 'self' blob:; worker-src 'self' blob:; "
    "form-action 'self'; base-uri 'self'; frame-ancestors 'none'"
)
"""'unsafe-eval': Gradio makes a function of each component's `js_on_load`, which is ours; styles are set by its scripts."""

_FOREIGN = re.compile(
    r"""<meta\s+(?:property="og:|name="twitter:)[^>]*>   # a card for other sites
    |<link\s+rel="manifest"[^>]*>
    |<script\s+data-gradio-mode>.*?</script>             # for pages inside frames: this one never is
    |<script>\s*\(\(\)\s=>\s\{(?:(?!</script>).)*?iframeResizer.*?</script>""",
    re.DOTALL | re.VERBOSE,
)
_START = """<script>
window.__gradio_mode__ = "app";
gradio_config.root = new URL(".", document.baseURI).href.replace(/\\/$/, "");  // whatever proxy is between
{{
  const {{ language, theme }} = document.documentElement.dataset, here = new URL(location.href);
  Object.defineProperty(navigator, "language", {{ value: language }});  // what Gradio speaks, and sets as the page's `lang`
  if (theme !== "system" && !here.searchParams.has("__theme")) {{
    here.searchParams.set("__theme", theme);
    history.replaceState(null, "", here);
  }}
}}
</script>
<script type="module" crossorigin"""


def rewrite(text: str, *, language: str, theme: str, nonce: str) -> str:
    """Gradio's index.html as ours. In it `<` stands only where markup begins: Gradio escapes it in the config it embeds."""
    text = _FOREIGN.sub("", text)
    tag = f'<html lang="{html.escape(language)}" data-language="{html.escape(language)}" data-theme="{html.escape(theme)}"'
    text = re.sub(r'<html\s+lang="en"', tag, text, count=1)
    text = text.replace('<script type="module" crossorigin', _START.format(), 1)
    return text.replace("<script", f'<script nonce="{nonce}"')


class Document:
    """ASGI: rewrites the answer to `GET /` and gives it its policy; passes everything else on."""

    def __init__(self, app: ASGIApp, language: str, theme: str) -> None:
        self.app, self.language, self.theme = app, language, theme

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["path"].removeprefix(scope.get("root_path", "")) != "/":
            return await self.app(scope, receive, send)
        scope = {**scope, "headers": [(k, v) for k, v in scope["headers"] if k.lower() != b"accept-encoding"]}
        start: Message = {}
        body = b""

        async def collecting(message: Message) -> None:
            nonlocal start, body
            if message["type"] == "http.response.start":
                start = message
                return
            if message["type"] != "http.response.body":
                return
            body += message.get("body", b"")
            if message.get("more_body"):
                return
            nonce = secrets.token_urlsafe(16)
            page = rewrite(body.decode(), language=self.language, theme=self.theme, nonce=nonce).encode()
            kept = [(k, v) for k, v in start["headers"] if k.lower() != b"content-length"]
            own = {"content-security-policy": POLICY.format(nonce=nonce), "content-length": str(len(page))}
            headers = [*kept, *((k.encode(), v.encode()) for k, v in own.items())]
            await send({**start, "headers": headers})
            await send({"type": "http.response.body", "body": page if scope["method"] != "HEAD" else b""})

        return await self.app(scope, receive, collecting)
