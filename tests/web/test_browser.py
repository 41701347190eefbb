# SPDX-License-Identifier: Apache-2.0
"""The page in Chromium: the whole lesson by keyboard, each step's rings, accessibility by axe-core, narrow and dark."""

from __future__ import annotations

import base64
import json
import os
import re
import shutil
import signal
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import axe_core_python
import pytest
from selenium import webdriver
from selenium.webdriver.chrome.service import Service
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys
from selenium.webdriver.support.select import Select
from selenium.webdriver.support.wait import WebDriverWait

from netback.testing import ServedBackend, Vif, Xen
from netback.web.lesson import STEPS
from netback.web.server import MAX_STREAMS
from tests.web.conftest import Page, events, started

SECONDS = 60
OPTIONS = (
    "--headless=new --no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking"
    " --disable-component-update --disable-sync --disable-dev-shm-usage"
)
AXE = Path(axe_core_python.__file__).with_name("axe.min.js")
RINGS: tuple[list[int] | None, ...] = (
    *([], [0, 0], [1, 0], [0, 0], [0, 4], [0, 3], [0, 0], [0, 3], [], [0, 3], []),
    None,
)
"""The requests that wait after each step, in TX and RX; empty: no rings are shown; None: they are busy."""
BUSY = "devices.get('vif1.0')?.rates.tx_frames > 100"

pytestmark = pytest.mark.skipif(
    shutil.which("chromium") is None or shutil.which("chromedriver") is None,
    reason="needs chromium and chromium-driver",
)


@pytest.fixture
def browser(tmp_path: Path) -> Iterator[webdriver.Chrome]:
    options = webdriver.ChromeOptions()
    options.binary_location = shutil.which("chromium") or ""
    for option in (*OPTIONS.split(), f"--user-data-dir={tmp_path}"):
        options.add_argument(option)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    driver = webdriver.Chrome(options=options, service=Service(shutil.which("chromedriver")))
    driver.set_window_size(1200, 1000)
    yield driver
    driver.quit()


def until(browser: webdriver.Chrome, script: str) -> Any:
    """Wait until an expression of the page is true, and return it."""
    return WebDriverWait(browser, SECONDS, 0.05).until(lambda _: browser.execute_script(f"return {script}"))


def emulate(browser: webdriver.Chrome, width: int, **features: str) -> None:
    """A window of this width, and media features such as forced_colors="active"."""
    wanted = [{"name": name.replace("_", "-"), "value": value} for name, value in features.items()]
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": wanted})
    metrics = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": False}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)


def picture(browser: webdriver.Chrome, name: str) -> None:
    """Keep a picture of the whole page, for people, in the directory that NETBACK_SCREENSHOTS names."""
    if directory := os.environ.get("NETBACK_SCREENSHOTS"):
        width, height = until(browser, "[window.innerWidth, document.documentElement.scrollHeight]")
        clip = {"x": 0, "y": 0, "width": width, "height": height, "scale": 1}
        wanted = {"captureBeyondViewport": True, "clip": clip}
        shot = browser.execute_cdp_cmd("Page.captureScreenshot", wanted)
        (Path(directory) / f"{name}.png").write_bytes(base64.b64decode(shot["data"]))


def violations(browser: webdriver.Chrome) -> list[str]:
    """What axe-core finds in the page as it is."""
    browser.execute_script(AXE.read_text())
    found = browser.execute_async_script("axe.run().then(arguments[arguments.length - 1])")
    return [
        f"{rule['id']}: {node['html']}: {node.get('failureSummary', '')}"
        for rule in found["violations"]
        for node in rule["nodes"]
    ]


def wide(browser: webdriver.Chrome) -> int:
    """By how many pixels the page is wider than its window."""
    return int(
        browser.execute_script(
            "return document.documentElement.scrollWidth - document.documentElement.clientWidth"
        )
    )


def faults(browser: webdriver.Chrome) -> list[str]:
    """Errors of the page's own; an answer that says that no backend runs, or that a vif is gone, is none."""
    return [
        entry["message"]
        for entry in browser.get_log("browser")  # type: ignore[no-untyped-call]
        if entry["level"] == "SEVERE" and "Failed to load resource" not in entry["message"]
    ]


WAITING = "JSON.stringify([...document.querySelectorAll('.ring h3')].map(h => parseInt(h.textContent.split(' ')[1])))"
"""The numbers of waiting requests that the page shows."""


def test_the_whole_lesson_by_keyboard(browser: webdriver.Chrome, lesson: Page) -> None:
    browser.get(lesson.address)
    until(browser, "!document.getElementById('lesson').hidden")
    assert browser.current_url.endswith("/")
    assert browser.find_elements(By.CSS_SELECTOR, "[aria-live] #lesson-title")
    button = browser.find_element(By.ID, "next")
    for _ in range(3):  # past the link to the vifs and the pause
        browser.switch_to.active_element.send_keys(Keys.TAB)
    assert browser.switch_to.active_element == button
    for number, (step, rings) in enumerate(zip(STEPS, RINGS, strict=True), 1):
        until(browser, "document.getElementById('next').ariaDisabled === 'false'")
        browser.switch_to.active_element.send_keys(Keys.ENTER)
        until(browser, f"document.getElementById('lesson-done').textContent === '{number}'")
        assert browser.find_element(By.ID, "lesson-title").text == step.title
        assert browser.find_element(By.ID, "lesson-error").text == ""
        wanted = json.dumps(rings).replace(" ", "")
        until(browser, BUSY if rings is None else f"{WAITING} === '{wanted}'")
        if number in (2, 7):
            assert violations(browser) == []
    assert button.get_attribute("aria-disabled") == "true"
    browser.switch_to.active_element.send_keys(Keys.ENTER)
    assert browser.find_element(By.ID, "lesson-done").text == str(len(STEPS))
    assert faults(browser) == []
    browser.find_element(By.ID, "restart").send_keys(Keys.ENTER)
    until(browser, "document.getElementById('lesson-done').textContent === '0'")
    until(browser, "!devices.has('vif1.0')")  # the demo's is gone


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [360, 1200])
def test_it_is_accessible(
    browser: webdriver.Chrome, page: Page, xen_vif: Vif, scheme: str, width: int
) -> None:
    emulate(browser, width, prefers_color_scheme=scheme)
    browser.get(page.address)
    until(browser, "document.querySelectorAll('.ring').length > 1")
    until(browser, "document.querySelectorAll('#events li').length > 1")
    until(browser, "devices.get('vif1.0').last")
    picture(browser, f"page-{width}-{scheme}")
    assert violations(browser) == []
    assert wide(browser) == 0
    assert faults(browser) == []


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [360, 1200])
def test_the_lesson_is_accessible(browser: webdriver.Chrome, lesson: Page, scheme: str, width: int) -> None:
    emulate(browser, width, prefers_color_scheme=scheme)
    browser.get(lesson.address)
    for number in range(1, RINGS.index([0, 3]) + 2):  # a response and requests are in the rings then
        until(browser, "document.getElementById('next').ariaDisabled === 'false'")
        browser.find_element(By.ID, "next").click()
        until(browser, f"document.getElementById('lesson-done').textContent === '{number}'")
    until(browser, f"{WAITING} === '[0,3]'")
    until(browser, "devices.get('vif1.0').last")
    for details in browser.find_elements(By.TAG_NAME, "summary"):
        details.click()
    picture(browser, f"lesson-{width}-{scheme}")
    assert violations(browser) == []
    assert wide(browser) == 0
    assert faults(browser) == []


KINDS = ("request", "response", "extra")
SLOT = "getComputedStyle(document.querySelector('.legend .slot.{kind}')).{value}"


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_slots_differ_by_more_than_colour(browser: webdriver.Chrome, page: Page, scheme: str) -> None:
    """Filled, framed and half filled; those that did not change for long have a contrast of 3 still (WCAG 1.4.11)."""
    emulate(browser, 1200, prefers_color_scheme=scheme)
    browser.get(page.address)
    fills = [until(browser, SLOT.format(kind=kind, value="backgroundColor")) for kind in KINDS]
    frames = [until(browser, SLOT.format(kind=kind, value="borderTopWidth")) for kind in KINDS]
    stripes = [until(browser, SLOT.format(kind=kind, value="backgroundImage")) != "none" for kind in KINDS]
    paper = until(browser, "getComputedStyle(document.getElementById('rings')).backgroundColor")
    assert fills[0] != paper
    assert fills[1] == paper
    assert [frames, stripes] == [["0px", "2px", "0px"], [False, False, True]]
    browser.execute_script(
        "document.querySelectorAll('.legend .slot').forEach(slot => slot.classList.add('old'))"
    )
    for kind in KINDS:
        colour = until(browser, SLOT.format(kind=kind, value="color"))
        opacity = float(until(browser, SLOT.format(kind=kind, value="opacity")))
        assert contrast(colour, opacity, paper) >= 3


def contrast(colour: str, opacity: float, paper: str) -> float:
    """Of a colour, as in "rgb(1, 2, 3)", on paper (WCAG 2.2)."""

    def luminance(channels: list[float]) -> float:
        linear = [
            part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4
            for part in (channel / 255 for channel in channels)
        ]
        return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]

    above, below = ([float(part) for part in re.findall(r"[0-9]+", text)] for text in (colour, paper))
    mixed = [opacity * over + (1 - opacity) * under for over, under in zip(above, below, strict=True)]
    light, dark = sorted((luminance(mixed), luminance(below)), reverse=True)
    return (light + 0.05) / (dark + 0.05)


def test_slots_are_there_with_forced_colours(browser: webdriver.Chrome, page: Page) -> None:
    emulate(browser, 1200, forced_colors="active")
    browser.get(page.address)
    paper = until(browser, "getComputedStyle(document.getElementById('rings')).backgroundColor")
    assert until(browser, SLOT.format(kind="request", value="backgroundColor")) != paper
    assert until(browser, SLOT.format(kind="response", value="borderTopColor")) != paper
    assert until(browser, "getComputedStyle(document.querySelector('.legend .slot')).borderTopWidth") == "1px"
    picture(browser, "forced-colours")


def test_losses_are_told_apart_by_keyboard(browser: webdriver.Chrome, page: Page, xen_vif: Vif) -> None:
    browser.get(page.address)
    until(browser, "devices.get('vif1.0')?.last")
    event = "{device: 'vif1.0', time: 1e12, counters: {rx_dropped: 2, rx_too_big: 1}, drops: {queue: 0}}"
    browser.execute_script(f"handlers.statistics = () => {{}}; count({event}); draw()")
    cell = browser.find_element(By.CSS_SELECTOR, "#rows details")
    until(browser, "document.querySelector('#rows summary').textContent === '3'")
    assert "rx_dropped" not in cell.text
    cell.find_element(By.TAG_NAME, "summary").send_keys(Keys.ENTER)
    assert cell.text.splitlines() == ["3", "rx_dropped 2", "rx_too_big 1"]


def test_text_that_did_not_change_is_not_written_again(
    browser: webdriver.Chrome, page: Page, xen_vif: Vif
) -> None:
    """A selection, and a screen reader's place, would be lost."""
    browser.get(page.address)
    until(browser, "document.querySelectorAll('.ring').length > 1")
    browser.execute_script(
        "window.text = document.querySelector('.ring pre').firstChild;"
        "window.looks = 0; const before = showRings; showRings = (rings) => { before(rings); window.looks++; };"
    )
    until(browser, "window.looks > 2")
    assert browser.execute_script("return document.querySelector('.ring pre').firstChild === window.text")


@pytest.mark.parametrize(("motion", "seconds"), [("no-preference", "0.3s"), ("reduce", "0s")])
def test_slots_change_at_once_with_reduced_motion(
    browser: webdriver.Chrome, page: Page, xen_vif: Vif, motion: str, seconds: str
) -> None:
    emulate(browser, 1200, prefers_reduced_motion=motion)
    browser.get(page.address)
    until(browser, "document.querySelectorAll('.ring').length > 1")
    assert (
        until(browser, "getComputedStyle(document.querySelector('.ring .slot')).transitionDuration")
        == seconds
    )


def test_rates_appear(browser: webdriver.Chrome, page: Page, xen_vif: Vif) -> None:
    browser.get(page.address)
    until(browser, "document.querySelector('#rows button')?.textContent === 'vif1.0'")

    def frames_counted(_: webdriver.Chrome) -> bool:
        xen_vif.guest.send(bytes.fromhex("020000000002 020000000001 88b5").ljust(60, b"x"))
        xen_vif.host.recv()
        return "frames/s" in browser.find_element(By.ID, "rows").text

    WebDriverWait(browser, SECONDS, 0.05).until(frames_counted)
    assert faults(browser) == []


def test_what_happened_in_a_pause_is_drawn_after_it(
    browser: webdriver.Chrome, page: Page, xen_vif: Vif
) -> None:
    browser.get(page.address)
    until(browser, "document.querySelector('#rows button')?.textContent === 'vif1.0'")
    pause = browser.find_element(By.ID, "pause")
    pause.click()
    assert (pause.get_attribute("aria-pressed"), pause.text) == ("true", "Pause")
    xen_vif.device.detach(seconds=5)
    until(browser, "!devices.has('vif1.0')")
    assert browser.find_element(By.CSS_SELECTOR, "#rows button").text == "vif1.0"
    assert "is gone" not in browser.find_element(By.ID, "events").text
    browser.find_element(By.ID, "pause").click()
    until(browser, "document.querySelectorAll('#rows button').length === 0")
    assert "vif1.0 is gone" in browser.find_element(By.ID, "events").text
    assert faults(browser) == []


def test_what_a_backend_left_does_not_look_live(browser: webdriver.Chrome, page: Page, xen: Xen) -> None:
    """A device that is removed while no backend runs vanishes when the next one begins."""
    state = "document.querySelector('#rows td')?.textContent"
    with ServedBackend(xen) as backend, Vif(backend):
        browser.get(page.address)
        until(browser, f"{state} === 'Connected'")
        until(browser, "devices.get('vif1.0').last")
    until(browser, f"{state}?.startsWith('last seen: ')")
    assert until(browser, "document.querySelector('#rows tr').className") == "stale"
    assert until(
        browser, "[...document.querySelectorAll('#rows .number')].map(e => e.textContent).join()"
    ) == ("–,–,–")
    assert "No backend runs" in browser.find_element(By.ID, "backend").text
    xen.loop.call(xen.store.rm("/local/domain/0/backend/vif/1"))
    with ServedBackend(xen):
        until(browser, "document.querySelectorAll('#rows tr').length === 0")
    assert faults(browser) == []


def test_entries_of_the_timeline_keep_their_time(browser: webdriver.Chrome, page: Page, xen_vif: Vif) -> None:
    times = "JSON.stringify([...document.querySelectorAll('#events time')].map(e => e.dateTime).sort())"
    browser.get(page.address)
    until(browser, "document.querySelectorAll('#events li').length > 1")
    before = json.loads(until(browser, times))
    browser.refresh()
    until(browser, f"document.querySelectorAll('#events li').length >= {len(before)}")
    assert set(before) <= set(json.loads(until(browser, times)))


def test_slow_motion(browser: webdriver.Chrome, page: Page, xen_backend: ServedBackend) -> None:
    """It shows the chosen vif's pace, and ends when the page shows another vif, or closes."""

    def wait_for_rate(vif: Vif, rate: str | None) -> None:
        WebDriverWait(browser, SECONDS, 0.05).until(lambda _: vif.device.show().device.tx_rate == rate)

    with Vif(xen_backend) as one, Vif(xen_backend) as other:
        browser.get(page.address)
        until(browser, "document.querySelectorAll('#rows button').length === 2")
        choice = "document.getElementById('pace-choice').value"
        until(browser, "!document.querySelector('#pace').hidden && page")
        Select(browser.find_element(By.ID, "pace-choice")).select_by_value("slower")
        wait_for_rate(one, "10kb/s")
        browser.refresh()
        wait_for_rate(one, None)
        xen_backend.client.set(other.device.name, tx_rate="5Mb/s")
        until(browser, "document.querySelectorAll('#rows button').length === 2 && page")
        Select(browser.find_element(By.ID, "pace-choice")).select_by_value("slow")
        wait_for_rate(one, "100kb/s")
        browser.find_elements(By.CSS_SELECTOR, "#rows button")[1].click()
        wait_for_rate(one, None)
        own = "its own limits: from guest 5Mb/s, to guest none"
        until(browser, f"document.getElementById('full-speed').textContent === '{own}'")
        assert until(browser, choice) == "full"
        Select(browser.find_element(By.ID, "pace-choice")).select_by_value("slower")
        wait_for_rate(other, "10kb/s")
        browser.switch_to.new_window("tab")
        browser.get(page.address)
        until(browser, "document.querySelectorAll('#rows button').length === 2 && page")
        browser.find_elements(By.CSS_SELECTOR, "#rows button")[1].click()
        until(browser, f"{choice} === 'slower'")
        browser.close()
        browser.switch_to.window(browser.window_handles[0])
        assert other.device.show().device.tx_rate == "10kb/s"
        browser.get("about:blank")
        wait_for_rate(other, "5Mb/s")


def test_real_xen_is_not_asked_for_a_pace(browser: webdriver.Chrome, page: Page) -> None:
    """It has no slow motion, and the answer would take every node of the vif."""
    browser.get(page.address)
    asked = browser.execute_script(
        "const asked = []; window.fetch = async (path) => { asked.push(path); return Response.error(); };"
        "backend = {platform: 'xen'}; choose('vif1.0'); choose('vif2.0'); return asked;"
    )
    assert asked == ["/api/rings/vif1.0"]


BACKEND = "document.getElementById('backend').textContent"


def test_a_page_too_many_says_so_and_tries_again(
    browser: webdriver.Chrome, page: Page, xen_backend: ServedBackend
) -> None:
    with ExitStack() as others:
        for _ in range(MAX_STREAMS):
            others.enter_context(events(page))
        browser.get(page.address)
        until(browser, f"{BACKEND}.includes('{MAX_STREAMS} pages listen already')")
    until(browser, f"{BACKEND}.startsWith('Backend of domain 0')")


def test_a_page_of_a_former_server_says_so(
    browser: webdriver.Chrome, page: Page, xen: Xen, xen_backend: ServedBackend
) -> None:
    """Once the new address was opened, the old page goes on, too."""
    browser.get(page.address)
    until(browser, f"{BACKEND}.startsWith('Backend of domain 0')")
    page.process.kill(signal.SIGTERM)
    page.process.wait(seconds=30)
    until(browser, f"{BACKEND}.includes('does not answer')")
    words = ("web", "--dir", str(xen.directory), "--port", str(page.port))
    new = started(xen.spawn("netback", *words))
    until(browser, f"{BACKEND}.includes('token is no longer valid: open the address')")
    old = browser.current_window_handle
    browser.switch_to.new_window("tab")
    browser.get(new.address)
    browser.close()
    browser.switch_to.window(old)
    until(browser, f"{BACKEND}.startsWith('Backend of domain 0')")


def test_a_hostile_name_stays_text(browser: webdriver.Chrome, page: Page, xen_vif: Vif) -> None:
    """Events are put into the page as text: a name that a guest chose runs nothing."""
    browser.get(page.address)
    until(browser, "document.querySelectorAll('#events li').length > 0")
    event = "{device: '<img src=x onerror=alert(1)>', notice: '<b>x</b>'}"
    browser.execute_script(f"handlers.timeline([{{time: 1, kind: 'notice', event: {event}}}])")
    until(browser, "document.querySelector('#events li').textContent.includes('img')")
    first = browser.find_element(By.CSS_SELECTOR, "#events li")
    assert "<img src=x onerror=alert(1)>: <b>x</b>" in first.text
    assert first.find_elements(By.TAG_NAME, "img") == []
