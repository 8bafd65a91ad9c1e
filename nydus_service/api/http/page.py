"""The status page's shell: three files without data, served without a token."""

import hashlib
from importlib import resources
from typing import Final

from aiohttp import web

FILES: Final = {
    "/": ("index.html", "text/html"),
    "/app.js": ("app.js", "text/javascript"),
    "/style.css": ("style.css", "text/css"),
}


class Page:
    """The files, read once."""

    def __init__(self) -> None:
        folder = resources.files("nydus_service.api").joinpath("page")
        self._contents = {
            path: (folder.joinpath(name).read_bytes(), kind) for path, (name, kind) in FILES.items()
        }

    async def send(self, request: web.Request) -> web.Response:
        content, kind = self._contents[request.path]
        etag = hashlib.sha256(content).hexdigest()[:32]
        if any(known.value == etag for known in request.if_none_match or ()):
            response = web.Response(status=304)
        else:
            response = web.Response(body=content, content_type=kind, charset="utf-8")
        response.etag = etag
        response.headers["Cache-Control"] = (
            "no-cache"  # an upgraded daemon's script must not meet an old page
        )
        return response

    @property
    def paths(self) -> tuple[str, ...]:
        return tuple(self._contents)
