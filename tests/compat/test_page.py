"""The status page in a real browser: what it shows, while the jobs under it change."""

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import msgspec
import pytest

from nydus_service.api.http.server import Timeouts
from nydus_service.jobs.job import Job, JobError, JobProgress, JobState
from tests.compat.chromium import Tab, open_tab, require_chromium
from tests.unit.api.jobservice import MemoryBoard, a_job, progress_of
from tests.unit.api.serving import TOKEN, Served, served

EVIL = "<img src=x onerror=\"document.title='broken'\"><script>document.title='broken'</script>"
REFUSED_BY_DESIGN = (
    "401 (Unauthorized)",
    "404 (Not Found)",
    "ERR_CONNECTION_REFUSED",
    "ERR_INCOMPLETE_CHUNKED",
)
"""What a browser complains of when a test wants the server to refuse or to be away."""


@pytest.fixture(autouse=True)
def chromium() -> None:
    require_chromium()


@asynccontextmanager
async def page(
    job_service: MemoryBoard, folder: Path, *, sign_in: bool = True, fragment: str = ""
) -> AsyncIterator[tuple[Served, Tab]]:
    """The page of a server over a job_service. Whatever the browser complains of fails the test."""
    async with served(job_service, folder, timeouts=Timeouts(shutdown_s=1)) as at, open_tab(folder) as tab:
        await tab.look(width=1280, height=800)
        await tab.call("Page.navigate", url=f"{at.url}/#{fragment}")
        await tab.until("!document.getElementById('door').hidden")
        if sign_in:
            await enter(tab, TOKEN)
            await tab.shows("Live", "#link")
        yield at, tab
        assert [each for each in tab.complaints if not any(word in each for word in REFUSED_BY_DESIGN)] == []
        assert [url for url in tab.requests if TOKEN in url] == []


async def enter(tab: Tab, token: str) -> None:
    await tab.click("#token")
    await tab.type(token)
    await tab.press("Enter", 13, "\r")


def job_id(number: int) -> str:
    return f"{number:032x}"


def row(number: int) -> str:
    return f"a.row[href='#{job_id(number)}']"


async def test_the_shell_shows_nothing_without_the_token(tmp_path: Path) -> None:
    job_service = MemoryBoard(a_job(1, JobState.RUNNING))
    async with page(job_service, tmp_path, sign_in=False) as (_, tab):
        await tab.shows("s token")
        assert "app-1" not in await tab.run("document.documentElement.outerHTML")
        await enter(tab, "not-the-token-0123456789")
        await tab.shows("refuses this token", "#door")
        assert await tab.run("sessionStorage.length") == 0
        await enter(tab, TOKEN)
        await tab.shows("team/app-1:1.1", "#jobs")


async def test_the_token_is_kept_for_this_tab_and_no_longer(tmp_path: Path) -> None:
    async with page(MemoryBoard(a_job(1, JobState.DONE)), tmp_path) as (_, tab):
        await tab.call("Page.reload")
        await tab.shows("team/app-1:1.1", "#jobs")
        assert await tab.run("localStorage.length + document.cookie.length") == 0
        assert TOKEN not in await tab.run("location.href + document.documentElement.outerHTML")
        await tab.click("#leave")
        await tab.shows("s token", "#door")
        assert await tab.run("sessionStorage.length") == 0
        assert "app-1" not in await tab.run("document.documentElement.outerHTML")


async def test_jobs_move_as_they_are_worked_on(tmp_path: Path) -> None:
    job_service = MemoryBoard()
    async with page(job_service, tmp_path) as (_, tab):
        await tab.shows("No jobs yet", "#jobs")
        job_service.put(a_job(1))
        await tab.shows("registry.example.com/team/app-1:1.1", "section[aria-label=Waiting]")
        job_service.move(job_id(1), JobState.RUNNING)
        await tab.shows("40 %", "section[aria-label='Under way']")
        await tab.shows("2/4 layers", row(1))
        await tab.until(f"document.querySelector(\"{row(1)} [role=progressbar]\").ariaValueNow === '40'")
        job_service.move(job_id(1), JobState.VERIFYING)
        await tab.shows("Verifying", row(1))
        job_service.move(job_id(1), JobState.DONE)
        await tab.shows("210 MB → 189 MB", "section[aria-label=Finished]")
        await tab.shows("12.3 s", row(1))
        job_service.put(a_job(2, JobState.FAILED))
        await tab.shows("gzip stream ends", row(2))
        assert await tab.run("document.querySelectorAll('a.row').length") == 2


async def test_one_job_is_shown_whole_while_it_goes_on(tmp_path: Path) -> None:
    job_service = MemoryBoard(a_job(1, JobState.RUNNING), a_job(2))
    async with page(job_service, tmp_path) as (_, tab):
        await tab.click(row(1))
        await tab.shows("84.0 MB of 210 MB read", "#details")
        await tab.shows("8 s left", "#details")
        assert await tab.run("document.querySelectorAll('table.layers tbody tr').length") == 4
        await tab.shows("waiting", "table.layers")
        job_service.move(job_id(1), JobState.DONE)
        await tab.shows("equal to the source: 3,211 names, 210 MB (tree)", "#details")
        await tab.shows("nydus-image-py 0.1.0", "#details")
        await tab.shows("90 %", "table.layers")
        await tab.shows("4.50 s", "table.layers")
        await tab.shows("0.87 s", "table.platforms")
        assert await tab.run("document.title") == "Done: app-1:1.1 \u2013 nydus-service"
        job_service.move(job_id(1), JobState.QUEUED)  # somebody asks for it again elsewhere
        await tab.shows("Queued", "#details .actions")
        job_service.move(job_id(1), JobState.RUNNING)
        await tab.shows("Running", "#details .actions")
        await tab.press("Escape", 27)
        await tab.until("document.getElementById('details').hidden && location.hash === ''")
        assert await tab.run("document.activeElement.hash") == f"#{job_id(1)}"


async def test_cancel_asks_first_and_retry_begins_anew(tmp_path: Path) -> None:
    job_service = MemoryBoard(a_job(1, JobState.RUNNING))
    async with page(job_service, tmp_path) as (_, tab):
        await tab.click(row(1))
        await tab.shows("Cancel", "#details .buttons")
        await tab.click("#details .buttons button")
        await tab.shows("Really cancel?", "#details .buttons")
        assert job_service.get(job_id(1)).state is JobState.RUNNING
        await tab.click("#details .buttons button")
        await tab.shows("Retry", "#details .buttons")
        assert job_service.get(job_id(1)).state is JobState.CANCELLED
        await tab.click("#details .buttons button")
        await tab.shows("Queued", "#details .actions")
        assert job_service.get(job_id(1)).state is JobState.QUEUED
        job_service.move(job_id(1), JobState.DONE)
        await tab.shows("Done", "#details .actions")


async def test_an_error_is_told_whole(tmp_path: Path) -> None:
    waits = JobError(code="unreachable", message="containerd does not answer", retryable=True)
    hungry = JobProgress(stage="waiting for space")
    job_service = MemoryBoard(
        a_job(1, JobState.FAILED), a_job(2, error=waits, attempts=1), a_job(3, progress=hungry)
    )
    async with page(job_service, tmp_path, fragment=job_id(1)) as (_, tab):
        await tab.shows("corrupt_input", "#details .error")
        await tab.shows("pull the image again", "#details .error")
        await tab.shows("stopped", "table.layers")
        await tab.shows("again soon: unreachable", row(2))
        await tab.shows("waiting for space", row(3))
        await tab.run("location.hash = 'f'.repeat(32)")
        await tab.shows("not known, or no longer", "#details")


async def test_text_stays_text(tmp_path: Path) -> None:
    job = a_job(1, JobState.FAILED, error=JobError(code="internal", message=EVIL, retryable=False))
    request = msgspec.structs.replace(job.request, source=f"a/{EVIL}", target=f"{EVIL}-nydus", namespace=EVIL)
    async with page(MemoryBoard(msgspec.structs.replace(job, request=request)), tmp_path) as (_, tab):
        await tab.click(row(1))
        await tab.shows("onerror", "#details .error pre")
        await tab.shows("<script>", "#jobs")
        assert await tab.run("document.querySelectorAll('main img, main script').length") == 0
        assert "broken" not in await tab.run("document.title.slice(0, 6)")


async def test_a_lost_connection_is_told_and_found_again(tmp_path: Path) -> None:
    """The server goes away and comes back at its place; what happened meanwhile is shown then."""
    job_service = MemoryBoard(a_job(1, JobState.RUNNING), a_job(2, JobState.RUNNING))
    async with open_tab(tmp_path) as tab:
        await tab.look(width=1280, height=800)
        async with served(job_service, tmp_path) as at:
            address = at.server.addresses[0]
            await tab.call("Page.navigate", url=f"{at.url}/")
            await enter(tab, TOKEN)
            await tab.click(row(1))
            await tab.shows("84.0 MB of 210 MB read", "#details")
        await tab.shows("Connection lost", "#lost")
        await tab.shows("Trying again in", "#lost")
        await tab.shows("Not connected", "#link")
        await tab.shows("app-1", "#jobs")
        del job_service.jobs[job_id(2)]
        job_service.move(job_id(1), JobState.DONE)
        (tmp_path / "token").unlink()
        async with served(job_service, tmp_path, address=address):
            await tab.click("#lost button")
            await tab.shows("Live", "#link")
            await tab.shows("Done", "#details .actions")
            await tab.until("document.getElementById('lost').hidden")
            await tab.until("document.querySelectorAll('a.row').length === 1")


async def test_filters(tmp_path: Path) -> None:
    states = (JobState.DONE, JobState.FAILED, JobState.QUEUED)
    job_service = MemoryBoard(*(a_job(number, states[number % 3]) for number in range(1, 31)))
    async with page(job_service, tmp_path) as (_, tab):
        await tab.until("document.querySelectorAll('a.row').length === 30")
        await tab.click(".chip.failed")
        await tab.until("document.querySelectorAll('a.row').length === 10")
        await tab.click(".chip.failed")
        await tab.press("/", text="/")
        assert await tab.run("document.activeElement.id") == "search"
        await tab.type("APP-12:")
        await tab.until("document.querySelectorAll('a.row').length === 1")
        await tab.shows("1", ".chip.all")
        await tab.type("nothing like it")
        await tab.shows("No job is like that", "#jobs")


async def test_the_keyboard_will_do(tmp_path: Path) -> None:
    job_service = MemoryBoard(*(a_job(number, JobState.DONE) for number in range(1, 6)))
    async with page(job_service, tmp_path) as (_, tab):
        await tab.until("document.querySelectorAll('a.row').length === 5")
        await tab.press("j", text="j")
        await tab.press("j", text="j")
        await tab.press("ArrowDown", 40)
        await tab.press("k", text="k")
        assert await tab.run("document.activeElement.hash") == f"#{job_id(4)}"
        await tab.press("Enter", 13, "\r")
        await tab.shows(job_id(4), "#details")
        job_service.put(a_job(6, JobState.DONE))  # a row above it: focus stays
        await tab.until("document.querySelectorAll('a.row').length === 6")
        assert await tab.run("document.activeElement.hash") == f"#{job_id(4)}"


@pytest.mark.conditions
async def test_a_thousand_jobs(tmp_path: Path) -> None:
    """All are there, few are drawn, and a storm of changes is not lost."""
    job_service = MemoryBoard(*(a_job(number, JobState.DONE) for number in range(1, 1201)))
    async with page(job_service, tmp_path) as (_, tab):
        await tab.shows("1,000", ".chip.done")
        assert await tab.run("document.querySelectorAll('a.row').length") == 150
        await tab.click("section button.more")
        await tab.until("document.querySelectorAll('a.row').length === 650")
        for number in range(1201, 1401):
            job_service.put(a_job(number, JobState.RUNNING))
            await asyncio.sleep(0)
        for number in range(1201, 1401):
            job_service.move(job_id(number), JobState.DONE)
            await asyncio.sleep(0)
        await tab.shows("1,200", ".chip.done")
        assert await tab.run("document.querySelectorAll(\"section[aria-label='Under way']\").length") == 0
        await tab.click("#jobs > button.more")
        await tab.shows("1,400", ".chip.all")


@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
async def test_every_width_and_scheme(tmp_path: Path, dark: bool) -> None:
    """Nothing needs scrolling sideways, and text stands out from its ground (WCAG 2: 4.5 to 1)."""
    job_service = MemoryBoard(*(_longest(number, state) for number, state in enumerate(JobState, 1)))
    async with page(job_service, tmp_path) as (_, tab):
        await tab.until(f"document.querySelectorAll('a.row').length === {len(JobState)}")
        for width in (360, 768, 1280):
            await tab.look(width=width, height=740, dark=dark)
            for number in range(len(JobState) + 1):
                await tab.run(f"location.hash = '{job_id(number) if number else ''}'")
                if number:
                    await tab.shows(job_id(number), "#details")
                    await tab.run("document.querySelector('#details details').open = true")
                assert await tab.run("document.documentElement.scrollWidth <= innerWidth")
                assert await tab.run(_CUT_OFF) == []
                assert await tab.run(_FAINT) == []


async def test_a_narrow_page_shows_one_thing_at_a_time(tmp_path: Path) -> None:
    async with page(MemoryBoard(a_job(1, JobState.DONE)), tmp_path) as (_, tab):
        await tab.look(width=360, height=740)
        await tab.click(row(1))
        await tab.shows(job_id(1), "#details")
        assert not await tab.run("document.getElementById('jobs').checkVisibility()")
        await tab.click("#details .close")
        await tab.until("document.getElementById('jobs').checkVisibility()")
        assert await tab.run("document.getElementById('details').hidden")


def _longest(number: int, state: JobState) -> Job:
    name = f"registry.example.com/a-team/with/{'deep-' * 6}paths/and-{'long-' * 8}names:2026.11.24-{number}"
    job = a_job(number, state, progress=progress_of(number, state, layers=12))
    source = f"{name}@sha256:{'ab' * 32}"
    request = msgspec.structs.replace(job.request, source=source, target=f"{name}-nydus")
    return msgspec.structs.replace(job, request=request)


_CUT_OFF = """[...document.querySelectorAll('main *, header *')]
    .filter((e) => e.checkVisibility() && !e.closest('#filters'))
    .filter((e) => e.getBoundingClientRect().width > 1 && e.getBoundingClientRect().right > innerWidth + 1)
    .map((e) => `${e.tagName}.${e.className}: ${e.innerText}`)"""

_FAINT = """(() => {
    const rgb = (text) => text.match(/[\\d.]+/g).map(Number);
    const linear = (c) => (c <= 0.03928 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4);
    const light = ([r, g, b]) =>
        0.2126 * linear(r / 255) + 0.7152 * linear(g / 255) + 0.0722 * linear(b / 255);
    const ground = (e) => {
        for (; e; e = e.parentElement) {
            const color = rgb(getComputedStyle(e).backgroundColor);
            if (color.length < 4 || color[3] === 1) return color;
        }
        return [255, 255, 255];
    };
    const contrast = (e) => {
        const both = [light(rgb(getComputedStyle(e).color)), light(ground(e))];
        return (Math.max(...both) + 0.05) / (Math.min(...both) + 0.05);
    };
    const hasText = (e) => [...e.childNodes].some((node) => node.nodeType === 3 && node.data.trim());
    return [...document.querySelectorAll('body *')]
        .filter((e) => e.checkVisibility() && hasText(e) && contrast(e) < 4.5)
        .map((e) => `${contrast(e).toFixed(2)} ${e.className} ${e.innerText}`);
})()"""


async def test_nothing_is_loaded_from_elsewhere(tmp_path: Path) -> None:
    async with page(MemoryBoard(a_job(1, JobState.DONE)), tmp_path, fragment=job_id(1)) as (at, tab):
        await tab.shows("Layers", "#details")
        away = [url for url in tab.requests if not url.startswith((at.url, "data:image/svg+xml"))]
        assert away == []
        assert (
            json.loads(await tab.run("JSON.stringify(performance.getEntriesByType('resource').length)")) > 0
        )


async def test_an_address_that_names_no_job(tmp_path: Path) -> None:
    """Whatever is typed after "#" neither breaks the page nor becomes another path of the API."""
    job_service = MemoryBoard(a_job(1, JobState.DONE))
    async with page(job_service, tmp_path, fragment="%") as (_, tab):
        await tab.shows("team/app-1:1.1", "#jobs")
        await tab.shows("not known, or no longer", "#details")
        for fragment in ("%E0%A4%A", "%ED%A0%80", "..", "events", f"{job_id(1)}/cancel?x", "<b>", "%00"):
            await tab.run(f"location.hash = {json.dumps('#' + job_id(1))}")
            await tab.shows("nydus-image-py 0.1.0", "#details")
            await tab.run(f"location.hash = {json.dumps('#' + fragment)}")
            await tab.shows("not known, or no longer", "#details")
        await tab.run("location.hash = '#'")
        await tab.until("document.getElementById('details').hidden")
        asked = {url.rpartition("/api/v1/conversions")[2] for url in tab.requests if "/api/" in url}
        assert {each for each in asked if not each.startswith("?")} <= {"", "/events", f"/{job_id(1)}/events"}


async def test_control_characters_are_shown_as_escapes(tmp_path: Path) -> None:
    error = JobError(
        code="internal", message="bad \x1b[31m\u202e\x9b\U000e0001 name\nby hand", retryable=False
    )
    job = msgspec.structs.replace(a_job(1, JobState.FAILED), error=error)
    async with page(MemoryBoard(job), tmp_path, fragment=job_id(1)) as (_, tab):
        await tab.shows(r"bad \x1b[31m\u202e\x9b\U000e0001 name", "#details")
        html = await tab.run("document.title + document.documentElement.outerHTML")
        assert not any(each in html for each in "\x1b\u202e\x9b\U000e0001")
