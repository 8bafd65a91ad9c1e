"""`python -m nydus_service.nydus_image`: the command `nydus-image-py`."""

from nydus_service.nydus_image.command import run

run()
