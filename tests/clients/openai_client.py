"""The official `openai` client against a server: `python tests/clients/openai_client.py http://localhost:8000`."""

import sys

import openai

BASE = sys.argv[1].rstrip("/") if len(sys.argv) > 1 else "http://localhost:8000"
client = openai.OpenAI(base_url=f"{BASE}/v1", api_key="any", max_retries=0)

models = list(client.models.list())
assert models and models[0].object == "model", models

for form in ("mp3", "wav", "flac", "opus", "aac", "pcm"):
    speech = client.audio.speech.create(model=models[0].id, voice="alloy", input="Hello from the client.", response_format=form)
    assert len(speech.content) > 500, (form, len(speech.content))

with client.audio.speech.with_streaming_response.create(
    model=models[0].id, voice="pretrained_voice_001", input="Streamed to the client.", instructions="Warmly.", response_format="pcm"
) as speech:
    pieces = list(speech.iter_bytes(1024))
assert sum(map(len, pieces)) > 4800, len(pieces)

try:
    client.audio.speech.create(model=models[0].id, voice="nobody", input="x")
    raise SystemExit("an unknown voice was taken")
except openai.NotFoundError as error:
    assert "nobody" in str(error), error
try:
    client.audio.speech.create(model=models[0].id, voice="alloy", input="")
    raise SystemExit("an empty text was taken")
except openai.UnprocessableEntityError:
    pass
print("ok openai", openai.__version__)
