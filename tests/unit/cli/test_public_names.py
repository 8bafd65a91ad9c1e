import subprocess
import sys
from pathlib import Path

import pytest

import nydus_service as ns
from tests.unit.cli.layouts import names


@pytest.mark.parametrize("name", ns.__all__)
def test_every_public_name_is_there(name: str) -> None:
    assert getattr(ns, name) is not None
    assert name in dir(ns)


def test_an_unknown_name() -> None:
    with pytest.raises(AttributeError, match="nothing_of_ours"):
        ns.nothing_of_ours  # type: ignore[attr-defined]  # noqa: B018  # that it raises is the point


def test_importing_the_package_imports_nothing_else() -> None:
    code = (
        "import sys; import nydus_service; print(*[m for m in sys.modules if m.startswith('nydus_service.')])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == ""


async def test_the_example_of_the_readme(layout: Path) -> None:
    images = ns.open_layout(layout)
    result = await ns.convert_image(
        ns.Location(images, "sample"),
        ns.Location(images, "example"),
        ns.EmbeddedBuilder(),
        ns.VerifierProcess(),
        ns.ConvertOptions(build=ns.BuildOptions(compressor="lz4_block")),
    )
    assert names(layout)["example"]["digest"] == result.target.digest
