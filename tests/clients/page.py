"""Drives the web page in headless Chromium: `python tests/clients/page.py http://localhost:8000 page.png prompt.wav`.

Types, speaks by keyboard, waits for the player, uploads a recording, makes one with Chromium's own microphone, cancels, saves screenshots of a
desk in the light and a phone in the dark; any script error, refused resource or sideways scrolling fails it. Needs `chromium` and aiohttp.
"""

import asyncio
import base64
import pathlib
import subprocess
import sys
import tempfile

import aiohttp

BASE = sys.argv[1].rstrip("/") if len(sys.argv) > 1 else "http://localhost:8000"
PICTURE = pathlib.Path(sys.argv[2] if len(sys.argv) > 2 else "page.png")
PROMPT = pathlib.Path(sys.argv[3] if len(sys.argv) > 3 else "tests/fixtures/micro-kit/golden/prompt.wav").resolve()
PORT = 9333
FIRST = "document.querySelector('#tasks li')"


class Page:
    """One tab over the DevTools protocol."""

    def __init__(self, socket):
        self.socket, self.calls, self.errors = socket, 0, []

    async def call(self, method, **params):
        self.calls += 1
        mine = self.calls
        await self.socket.send_json({"id": mine, "method": method, "params": params})
        while True:
            message = await self.socket.receive_json()
            if message.get("method") == "Runtime.exceptionThrown":
                self.errors.append(message["params"]["exceptionDetails"])
            if message.get("method") == "Log.entryAdded" and message["params"]["entry"]["level"] == "error":
                self.errors.append(message["params"]["entry"])
            if message.get("id") == mine:
                return message["result"]

    async def js(self, code):
        answer = await self.call("Runtime.evaluate", expression=code, awaitPromise=True, returnByValue=True)
        return answer["result"].get("value")

    async def picture(self, path):
        answer = await self.call("Page.captureScreenshot")
        path.write_bytes(base64.b64decode(answer["data"]))

    async def until(self, code, seconds=90):
        for _ in range(seconds * 5):
            if await self.js(code):
                return
            await asyncio.sleep(0.2)
        raise TimeoutError(code)


async def tab(session):
    for _ in range(150):
        try:
            async with session.get(f"http://127.0.0.1:{PORT}/json/list") as answer:
                return next(t for t in await answer.json() if t["type"] == "page")["webSocketDebuggerUrl"]
        except (aiohttp.ClientError, StopIteration):
            await asyncio.sleep(0.2)
    raise TimeoutError("chromium does not start")


async def submit(page, text, mode):
    """Fills the form in and sends it; leaves the new task first in the list."""
    before = await page.js("document.querySelectorAll('#tasks li').length")
    await page.js(f"""
        document.querySelector('[name=mode][value={mode}]').click();
        document.getElementById("text").value = "{text}";
        document.getElementById("form").requestSubmit()""")
    await page.until(f"document.querySelectorAll('#tasks li').length > {before}")


async def recordings(page):
    """A voice from a file, then one from the microphone."""
    await page.js("document.querySelector('[name=mode][value=zero-shot]').click()")
    assert await page.js("!document.getElementById('recording').hidden")
    document = await page.call("DOM.getDocument")
    file = await page.call("DOM.querySelector", nodeId=document["root"]["nodeId"], selector="#file")
    await page.call("DOM.setFileInputFiles", nodeId=file["nodeId"], files=[str(PROMPT)])
    await page.until("document.getElementById('prompt-player').duration > 0")
    await page.js("document.querySelector('[name=prompt_text]').value = 'What is said in it.'")
    await submit(page, "With the voice of a file.", "zero-shot")
    await page.until(f"{FIRST}?.querySelector('audio')?.duration > 0 && {FIRST}.textContent.includes('own recording')")
    await page.js("document.getElementById('record').click()")
    await page.until("document.getElementById('record').textContent == 'Stop'")
    await asyncio.sleep(2)
    await page.js("document.getElementById('record').click()")
    await page.until("document.getElementById('record-state').textContent.endsWith('s recorded')")
    await submit(page, "With the voice of the microphone.", "cross-lingual")
    await page.until(f"{FIRST}?.querySelector('audio')?.duration > 0 && {FIRST}.textContent.includes('microphone')")


async def cancel(page):
    await submit(page, "This one is too long to be heard to its end, and so it is stopped. " * 100, "cross-lingual")
    await page.until(f"{FIRST}.querySelector('button')?.textContent == 'Cancel'")
    await page.js(f"{FIRST}.querySelector('button').click()")
    await page.until(f"{FIRST}.textContent.includes('Task cancelled by user')")


async def main():
    async with aiohttp.ClientSession() as session, session.ws_connect(await tab(session), max_msg_size=0) as socket:
        page = Page(socket)
        for domain in ("Runtime", "Log", "Page"):
            await page.call(f"{domain}.enable")
        await page.call("Page.navigate", url=f"{BASE}/")
        await page.until("document.querySelectorAll('#voice option').length > 1")
        await page.js("document.getElementById('text').select()")
        await page.call("Input.insertText", text="Spoken from the page.")
        enter = {"key": "Enter", "code": "Enter", "windowsVirtualKeyCode": 13, "modifiers": 2}
        await page.call("Input.dispatchKeyEvent", type="rawKeyDown", **enter)
        await page.call("Input.dispatchKeyEvent", type="keyUp", **enter)
        await page.until("!!document.querySelector('#tasks li canvas') && document.querySelector('#tasks li audio').duration > 0")
        assert (await page.js("document.querySelector('#tasks li a').download")).endswith(".wav")
        await page.js("""
            const field = name => document.querySelector(`#form [name=${name}]`);
            field("text").value = "SQL 3"; field("language").value = "zh"; field("text_normalization").value = "on";
            field("lexicon").value = "SQL = sequel"; document.getElementById("form").requestSubmit()""")
        await page.until("document.querySelector('#tasks li').textContent.includes('Read: sequel 三')")
        assert await page.js("document.getElementById('message').textContent") == ""
        await recordings(page)
        await cancel(page)
        shown = await page.js("document.querySelectorAll('#tasks li').length")
        assert int(await page.js("document.getElementById('total').textContent")) >= shown, "the count of tasks stands still"
        assert await page.js("document.getElementById('message').textContent") == ""
        light = await page.js("getComputedStyle(document.body).backgroundColor")
        await page.picture(PICTURE)
        await page.call("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": "dark"}])
        await page.call("Emulation.setDeviceMetricsOverride", width=390, height=844, deviceScaleFactor=2, mobile=True)
        await page.picture(PICTURE.with_stem(PICTURE.stem + "-phone"))
        assert await page.js("document.documentElement.scrollWidth <= innerWidth"), "the page is wider than a phone"
        assert await page.js("getComputedStyle(document.body).backgroundColor") != light, "the dark is as light as the light"
        await page.call("Page.navigate", url=f"{BASE}/docs")
        await page.until("document.querySelectorAll('details').length > 30")
        assert not page.errors, page.errors


if __name__ == "__main__":
    flags = ["--headless", "--no-sandbox", "--disable-gpu", f"--remote-debugging-port={PORT}", "--window-size=1280,1000"]
    flags += ["--use-fake-device-for-media-stream", "--use-fake-ui-for-media-stream"]
    with tempfile.TemporaryDirectory() as profile:
        browser = subprocess.Popen(["chromium", *flags, f"--user-data-dir={profile}", "about:blank"], stderr=subprocess.DEVNULL)
        try:
            asyncio.run(main())
        finally:
            browser.kill()
            browser.wait()
    print("ok page")
