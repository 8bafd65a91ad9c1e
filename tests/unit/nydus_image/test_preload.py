"""What a fork server loads is all that its children need: one that loads more starts more slowly."""

import gzip
import os
import subprocess
import sys
from pathlib import Path

from tests.layers import directory, file, layer

SCRIPT = """
import os, sys
from nydus_service.nydus_image import preload
from nydus_service.nydus_image.command import main
layer, work = sys.argv[1:]
loaded = set(sys.modules)
for command in (
    ("create", "--type", "tar-rafs", "--blob", work + "/blob", "--blob-inline-meta", "--features", "blob-toc",
     "--source-tar-split", work + "/tar_split", "--output-json", work + "/json", layer),
    ("create", "--type", "tar-rafs", "--blob", work + "/blob", "--bootstrap", work + "/lower",
     "--compressor", "lz4_block", layer),
    ("merge", "--bootstrap", work + "/merged", "--output-json", work + "/json", work + "/lower"),
    ("promote", "--bootstrap", work + "/promoted", work + "/lower"),
    ("bootstrap-layer", "--bootstrap", work + "/merged", "--output", work + "/tar",
     "--output-json", work + "/json"),
    ("feed", layer),
):
    assert main([*command, "--log-level", "warn"]) == 0, command
print(*sorted(set(sys.modules) - loaded), file=sys.stderr)
"""


def test_commands_load_nothing_more(tmp_path: Path) -> None:
    stored = tmp_path / "layer"
    stored.write_bytes(gzip.compress(layer(directory("d"), file("d/f", os.urandom(5000)))))
    command = [sys.executable, "-c", SCRIPT, str(stored), str(tmp_path)]
    done = subprocess.run(command, input=b"/\n", capture_output=True, check=True, timeout=60)
    assert done.stderr.decode().split() == []
