"""A client of the task API as its users write it: `python tests/clients/tasks.py http://localhost:8000 [prompt.wav]`.

Without a recording the zero-shot and cross-lingual modes use the default voice. Exits with a traceback when anything differs from the contract.
"""

import asyncio
import concurrent.futures
import io
import sys
import time
import wave

import aiohttp
import requests

VOICE = "pretrained_voice_001"
BASE = sys.argv[1].rstrip("/") if len(sys.argv) > 1 else "http://localhost:8000"
PROMPT = open(sys.argv[2], "rb").read() if len(sys.argv) > 2 else None


def submit(mode, **kwargs):
    answer = requests.post(f"{BASE}/api/v1/async/synthesize/{mode}", timeout=60, **kwargs)
    assert answer.status_code == 202, (mode, answer.status_code, answer.text)
    body = answer.json()
    assert body["status"] == "pending", body
    assert answer.headers["location"] == body["check_status_url"]
    return body["task_id"]


def wait(task_id, first=0.02, most=1.0, limit=300.0):
    """Polls with growing pauses; progress must never go back."""
    pause, last, deadline = first, 0.0, time.monotonic() + limit
    while time.monotonic() < deadline:
        status = requests.get(f"{BASE}/api/v1/async/tasks/{task_id}/status", timeout=10).json()
        assert status["status"] in ("pending", "processing", "completed", "failed"), status
        assert last <= status["progress"] <= 1.0, (last, status)
        last = status["progress"]
        if status["status"] in ("completed", "failed"):
            return status
        time.sleep(pause)
        pause = min(pause * 1.5, most)
    raise TimeoutError(task_id)


def download(task_id):
    result = requests.get(f"{BASE}/api/v1/async/tasks/{task_id}/result", timeout=10).json()
    assert result["success"] is True and result["duration"] > 0, result
    audio = requests.get(BASE + result["audio_url"], timeout=30)
    assert audio.status_code == 200 and len(audio.content) == int(audio.headers["content-length"])
    return result, audio.content


def seconds(wav_bytes):
    with wave.open(io.BytesIO(wav_bytes)) as file:
        assert file.getnchannels() == 1 and file.getsampwidth() == 2
        return file.getnframes() / file.getframerate()


def speak(mode, **kwargs):
    task_id = submit(mode, **kwargs)
    status = wait(task_id)
    assert status["status"] == "completed", status
    result, audio = download(task_id)
    assert abs(seconds(audio) - result["duration"]) < 0.01, result
    return audio


def all_modes():
    text = "Hello, this is a test."
    speak("sft", json={"text": text, "voice_id": VOICE, "speed": 1.2, "format": "wav"})
    speak("sft", data={"text": text, "voice_id": VOICE})
    if PROMPT:
        files = {"prompt_audio": ("prompt.wav", PROMPT, "audio/wav")}
        speak("zero-shot", data={"text": text, "prompt_text": "What is said."}, files=files)
        speak("cross-lingual", data={"text": text}, files=files)
    speak("zero-shot", data={"text": text, "voice_id": VOICE})
    speak("cross-lingual", data={"text": text, "voice_id": VOICE})
    speak("instruct", json={"text": text, "voice_id": VOICE, "instruct_text": "Speak slowly."})


def same_seed_same_bytes():
    body = {"text": "The same again.", "voice_id": VOICE, "seed": 42}
    assert speak("sft", json=body) == speak("sft", json=body)


def batch_of_five():
    texts = [f"This is sentence number {n}." for n in range(1, 6)]
    with concurrent.futures.ThreadPoolExecutor(5) as pool:
        sounds = list(pool.map(lambda t: speak("sft", json={"text": t, "voice_id": VOICE}), texts))
    assert len(sounds) == 5


def listing_and_cancelling():
    long = "A rather long sentence that takes its time, so that it can be stopped on its way. " * 8
    task_id = submit("sft", json={"text": long, "voice_id": VOICE})
    listed = requests.get(f"{BASE}/api/v1/async/tasks", params={"limit": 5}, timeout=10).json()
    assert task_id in [t["task_id"] for t in listed["tasks"]] and listed["total"] >= 1
    answer = requests.delete(f"{BASE}/api/v1/async/tasks/{task_id}", timeout=30)
    assert answer.status_code in (200, 409), answer.text
    if answer.status_code == 200:
        assert answer.json()["message"] == f"Task {task_id} cancelled successfully"
        status = wait(task_id)
        assert status["status"] == "failed" and status["error"] == "Task cancelled by user" and status["cancelled"]


def errors():
    for method, path, kwargs, code, word in [
        ("get", "/api/v1/async/tasks/task_000000000000/status", {}, 404, "task_not_found"),
        ("post", "/api/v1/async/synthesize/sft", {"json": {"text": "x", "voice_id": "nobody"}}, 404, "voice_not_found"),
        ("post", "/api/v1/async/synthesize/sft", {"json": {"text": "", "voice_id": VOICE}}, 422, "validation_error"),
        ("post", "/api/v1/async/synthesize/sft", {"json": {"text": "x", "voice_id": VOICE, "speed": 9}}, 422, "validation_error"),
        ("post", "/api/v1/async/synthesize/sft", {"data": b"{", "headers": {"content-type": "application/json"}}, 400, "malformed_body"),
    ]:
        answer = requests.request(method, BASE + path, timeout=10, **kwargs)
        assert answer.status_code == code and answer.json()["error"] == word, (path, answer.status_code, answer.text)


async def many_at_once():
    async with aiohttp.ClientSession(BASE) as session:

        async def one(n):
            body = {"text": f"Number {n}.", "voice_id": VOICE}
            async with session.post("/api/v1/async/synthesize/sft", json=body) as answer:
                assert answer.status == 202
                task_id = (await answer.json())["task_id"]
            async with session.get(f"/api/v1/async/tasks/{task_id}/events") as events:
                kinds = [line async for line in events.content if line.startswith(b"data: ")]
            assert b'"completed"' in kinds[-1], kinds[-1]
            async with session.get(f"/api/v1/async/tasks/{task_id}/result") as answer:
                return (await answer.json())["duration"]

        durations = await asyncio.gather(*(one(n) for n in range(8)))
        assert all(d > 0 for d in durations)
        async with session.post("/api/v1/synthesize/sft", json={"text": "Streamed.", "voice_id": VOICE, "stream": True}) as answer:
            assert answer.status == 200 and answer.headers["content-type"] == "audio/wav"
            assert len(await answer.read()) > 44


if __name__ == "__main__":
    health = requests.get(f"{BASE}/health", timeout=10).json()
    assert health["status"] == "healthy" and health["voice_manager_ready"] and health["async_synthesis_ready"], health
    voices = requests.get(f"{BASE}/api/v1/voices/pretrained/list", timeout=10).json()
    assert VOICE in [v["voice_id"] for v in voices["pretrained_voices"]], voices
    for step in (all_modes, same_seed_same_bytes, batch_of_five, listing_and_cancelling, errors):
        step()
        print("ok", step.__name__)
    asyncio.run(many_at_once())
    print("ok many_at_once")
