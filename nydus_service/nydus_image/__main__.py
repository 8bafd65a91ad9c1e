"""`python -m nydus_service.nydus_image`: the command `nydus-image-py`."""

import sys

from nydus_service.nydus_image.command import main

sys.exit(main())
