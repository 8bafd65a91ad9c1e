"""Who is measured: whole conversions of an image, and single steps of a builder."""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from hashlib import file_digest
from pathlib import Path

from bench.inputs import TAG, Input
from bench.measure import Measurement, measure
from bench.stages import Part, stages_of

OURS = (sys.executable, "-m", "nydus_service.cli.main")
EMBEDDED = (sys.executable, "-m", "nydus_service.nydus_image")
_PROJECT = Path(__file__).parent.parent
ENVIRONMENT = {
    key: value for key, value in os.environ.items() if not key.startswith(("NYDUS_", "PYTHON"))
} | {"PYTHONPATH": str(_PROJECT)}
"""Of what is measured: this tree's code, and none of the variables that steer it or its interpreter."""

PACK = (
    *("create", "--log-level", "warn", "--prefetch-policy", "fs", "--whiteout-spec", "none"),
    *("--fs-version", "6", "--type", "tar-rafs", "--features", "blob-toc", "--compressor", "zstd"),
)
MERGE = ("merge", "--log-level", "warn", "--prefetch-policy", "fs")

CONVERT = "convert"
FOR_MEMORY = ("ours", "go")
"""Contenders who convert the inputs that are there for memory."""


@dataclass(frozen=True, slots=True)
class Run:
    """One measured run.

    Attributes:
        output_bytes: what it wrote: blobs and documents, or one bootstrap.
        parts: stages of a conversion of ours, codecs of the floor; else none.
    """

    wall_s: float
    cpu_s: float
    peak_rss: int
    output_bytes: int
    parts: tuple[Part, ...] = ()


@dataclass(frozen=True, slots=True)
class Contender:
    """One way to do the work.

    Attributes:
        key: names it in the results.
        run: does the work on an input, given an empty directory.
    """

    key: str
    title: str
    run: Callable[[Input, Path], Run]


@dataclass(frozen=True, slots=True)
class Race:
    """Contenders that do the same work, run in turn. Ratios are to `peer`, the last of them.

    Attributes:
        prepare: makes what all of them need, unmeasured, in a directory; None: nothing.
    """

    name: str
    contenders: tuple[Contender, ...]
    peer: str
    prepare: Callable[[Input, Path], None] | None = None


def compile_ours() -> None:
    """Compile this tree's modules, as an installation does: no run is to do it for the others."""
    subprocess.run([sys.executable, "-m", "compileall", "-q", _PROJECT / "nydus_service"], check=True)


def races(native: Path | None, peer: Path | None) -> list[Race]:
    """All that is measured, as far as the programs are there.

    Args:
        native: a builder that speaks nydus-image's command line.
        peer: the Go converter, bench/peer.
    """
    convert = [
        Contender("floor", "floor: the codecs alone, over all cores", _floor),
        Contender("ours", "ours, embedded builder", _ours("embedded", "tree")),
        Contender("ours-unverified", "ours, embedded builder, --verify none", _ours("embedded", "none")),
    ]
    pack = [
        Contender(
            "embedded-gzip", "embedded create, from the gzip layers", _packer(EMBEDDED, compressed=True)
        ),
        Contender("embedded", "embedded create", _packer(EMBEDDED)),
    ]
    merge = [Contender("embedded", "embedded merge", _merger(EMBEDDED))]
    if native:
        convert.append(Contender("ours-native", "ours, native builder", _ours(str(native), "tree")))
        pack.append(Contender("native", "native create", _packer((str(native),))))
        merge.append(Contender("native", "native merge", _merger((str(native),))))
        if peer:
            convert.append(Contender("go", "the Go converter, native builder", _go(peer, native)))
    return [
        Race(CONVERT, tuple(convert), "go"),
        Race("create", tuple(pack), "native"),
        Race("merge", tuple(merge), "native", _prepare_merge),
    ]


def races_for(image: Input, offered: Sequence[Race]) -> list[Race]:
    """Those of the races that are run with an input."""
    if not image.for_memory:
        return list(offered)
    return [
        replace(race, contenders=tuple(each for each in race.contenders if each.key in FOR_MEMORY))
        for race in offered
        if race.name == CONVERT
    ]


def _floor(image: Input, work: Path) -> Run:
    """Measured on one core and divided: as if every step spread evenly."""
    argv = [sys.executable, "-m", "bench.floor", *map(str, image.compressed_layers)]
    taken = measure(argv, work, ENVIRONMENT)
    cores = len(os.sched_getaffinity(0))
    parts = [Part(name, cpu_s / cores, cpu_s) for name, cpu_s in json.loads(taken.stdout).items()]
    return Run(taken.cpu_s / cores, taken.cpu_s, taken.peak_rss, output_bytes=0, parts=tuple(parts))


def _ours(builder: str, verify: str) -> Callable[[Input, Path], Run]:
    def run(image: Input, work: Path) -> Run:
        target = work / "result"
        argv = [*OURS, "convert", f"oci:{image.layout}:{TAG}", f"oci:{target}:{TAG}"]
        argv += ["--nydus-image", builder, "--verify", verify, "--work-dir", str(work)]
        taken = measure(argv, work, ENVIRONMENT)
        return replace(_run_of(taken, target / "blobs"), parts=stages_of(taken))

    return run


def _go(peer: Path, builder: Path) -> Callable[[Input, Path], Run]:
    """The Go converter tells its own time and CPU, in which import and export of blobs do not count."""

    def run(image: Input, work: Path) -> Run:
        target, root = work / "result", work / "root"
        root.mkdir()
        argv = [str(peer), "-layout", str(image.layout), "-root", str(root), "-builder", str(builder)]
        argv += ["-compressor", "zstd", "-prefetch", "/", "-work", str(work), "-out", str(target)]
        taken = measure(argv, work, ENVIRONMENT)
        told = dict(line.split(" ", 1) for line in taken.stdout.splitlines() if "_s " in line)
        whole = _run_of(taken, target / "blobs")
        return replace(whole, wall_s=float(told["convert_s"]), cpu_s=float(told["cpu_s"]))

    return run


def _packer(builder: tuple[str, ...], *, compressed: bool = False) -> Callable[[Input, Path], Run]:
    """Each layer in turn; the sum of it, the highest peak."""

    def run(image: Input, work: Path) -> Run:
        runs = []
        for index, source in enumerate(image.compressed_layers if compressed else image.tars):
            blob = work / f"blob-{index}"
            argv = [*builder, *PACK, "--blob-inline-meta", "--blob", str(blob), str(source)]
            runs.append(_run_of(measure(argv, work, ENVIRONMENT, prefetch_patterns(work)), blob))
        return Run(
            wall_s=sum(each.wall_s for each in runs),
            cpu_s=sum(each.cpu_s for each in runs),
            peak_rss=max(each.peak_rss for each in runs),
            output_bytes=sum(each.output_bytes for each in runs),
        )

    return run


def _prepare_merge(image: Input, work: Path) -> None:
    """Make the layers' bootstraps, the same ones for whoever merges them, named by their blobs' digests."""
    bootstraps = bootstraps_of(image)
    shutil.rmtree(bootstraps, ignore_errors=True)
    bootstraps.mkdir()
    blob, bootstrap = work / "blob", work / "bootstrap"
    for index, tar in enumerate(image.tars):
        argv = [*EMBEDDED, *PACK, "--blob", str(blob), "--bootstrap", str(bootstrap), str(tar)]
        measure(argv, work, ENVIRONMENT, prefetch_patterns(work))
        with blob.open("rb") as file:
            name = file_digest(file, "sha256").hexdigest()
        (bootstraps / str(index)).mkdir()
        shutil.move(bootstrap, bootstraps / str(index) / name)


def _merger(builder: tuple[str, ...]) -> Callable[[Input, Path], Run]:
    def run(image: Input, work: Path) -> Run:
        merged = work / "merged"
        sources = sorted(bootstraps_of(image).glob("*/*"))
        argv = [*builder, *MERGE, "--output-json", str(work / "merge.json"), "--bootstrap", str(merged)]
        taken = measure([*argv, *map(str, sources)], work, ENVIRONMENT, prefetch_patterns(work))
        return _run_of(taken, merged)

    return run


def bootstraps_of(image: Input) -> Path:
    return image.path / "bootstraps"


def prefetch_patterns(work: Path) -> Path:
    """What builders read on standard input, as converters give it by default."""
    patterns = work / "prefetch"
    patterns.write_text("/\n")
    return patterns


def _run_of(taken: Measurement, output: Path) -> Run:
    files = [output] if output.is_file() else [path for path in output.rglob("*") if path.is_file()]
    written = sum(path.stat().st_size for path in files)
    return Run(taken.wall_s, taken.cpu_s, taken.peak_rss, written)
