"""The HTTP API: files in, jobs, their progress and sounds. Its schema is that of the command line and of Python."""

import asyncio
import hmac
import io
import json
import secrets
from collections.abc import AsyncIterator
from dataclasses import asdict, fields, replace
from importlib import resources
from pathlib import Path
from typing import Annotated, Any, Literal, get_type_hints

import numpy as np
import soundfile
import torch
from fastapi import Body, FastAPI, HTTPException, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import HTMLResponse, JSONResponse, Response, StreamingResponse
from matplotlib import colormaps
from PIL import Image
from pydantic import ConfigDict, Field, create_model
from starlette.exceptions import HTTPException as StarletteHTTPException

from audioldm2_pl.atomic import written_whole
from audioldm2_pl.audio import AudioConfig, LogMel, load_waveform
from audioldm2_pl.errors import UserError
from audioldm2_pl.fields import check_fields
from audioldm2_pl.generation import MEDIA, Editing, Generation, Sampling, by_name, requests_of
from audioldm2_pl.recording import Recording
from audioldm2_pl.serve.jobs import ENDED, Busy, Job, Jobs, find_file
from audioldm2_pl.tags import encode_audio, read_comment

MAX_JSON_BYTES = 1 << 18  # of a request's body
TYPES = {"wav": "audio/wav", "flac": "audio/flac", "mp3": "audio/mpeg"}
SUFFIXES = (".wav", ".flac", ".mp3", ".ogg", ".opus", ".m4a", ".png", ".jpg", ".jpeg", ".webp", ".mp4", ".webm", ".mkv")
LOCAL_HOSTS = ("127.0.0.1", "localhost", "::1")


def body_of(name: str, *schemas: type, **more: Any) -> Any:
    """A pydantic model of the fields of dataclasses, all optional, with their help and ranges."""
    found = dict(more)
    for schema in schemas:
        hints = get_type_hints(schema)
        for f in fields(schema):
            about = f.metadata["help"] + (f" ({f.metadata['unit']})" if f.metadata["unit"] else "")
            numeric = not hasattr(hints[f.name], "__args__") or "list" not in str(hints[f.name])
            bounds = f.metadata["bounds"] if numeric else {}
            found[f.name] = (hints[f.name] | None, Field(None, description=about, **bounds))
    return create_model(name, __config__=ConfigDict(extra="forbid"), **found)


GenerateBody = body_of("Generate", Generation, Sampling)
EditBody = body_of(
    "Edit",
    Editing,
    Generation,
    Sampling,
    source=(str, Field(description="id of a file or of a job with the recording")),
)


class Service:
    """What the API's functions share: files, jobs and limits."""

    def __init__(self, folder: Path, jobs: Jobs, title: str, sampling: Sampling):
        """`title` names the model, `sampling` is its own, for what a request does not say."""
        self.folder, self.jobs, self.title, self.sampling = folder, jobs, title, sampling
        self.limits, self.uploads = jobs.limits, folder / "uploads"

    def submit(self, values: dict[str, Any], editing: bool) -> Job:
        """Checked values => a job. HTTPException for what cannot be done."""
        given = {name: value for name, value in values.items() if value is not None}
        source = given.pop("source", None)
        try:
            asked, sampling, edit = by_name(given, Generation, Sampling, Editing)
            for name in MEDIA:
                if name in asked:
                    asked[name] = str(find_file(self.folder, asked[name]))
            empty = editing or bool(asked.get("transcript")) or any(name in asked for name in MEDIA)
            request = {"prompt": "", **asked}
            [clip] = requests_of([Generation(**request)], {}, empty_prompts=empty)
            how = replace(self.sampling, **sampling)
            check_fields(how)
            if editing:
                Editing(**edit).check()
                self.check_source(find_file(self.folder, source))
            self.check_limits(clip, how, Editing(**edit))
            return self.jobs.add(
                request=request,
                sampling=sampling,
                editing=edit if editing else None,
                source=source,
            )
        except (UserError, TypeError) as error:
            raise HTTPException(422, str(error)) from None
        except Busy as busy:
            raise HTTPException(429, str(busy), {"Retry-After": "10"}) from None

    def check_limits(self, clip: Generation, how: Sampling, edit: Editing) -> None:
        asked = {
            "seconds": (max(clip.seconds or 0, edit.extend or 0, how.window_seconds or 0), self.limits.max_seconds),
            "num_steps": (how.num_steps, self.limits.max_steps),
            "candidates": (how.candidates, self.limits.max_candidates),
        }
        for name, (value, limit) in asked.items():
            if value > limit:
                raise UserError(f"{name}={value:g}: this server makes at most {limit:g}")

    def check_source(self, path: Path) -> None:
        """UserError for a recording that is longer than what this server makes, or none."""
        recording = Recording.load(path)
        if (seconds := recording.waveform.shape[1] / recording.sample_rate) > self.limits.max_seconds:
            raise UserError(f"the recording has {seconds:.0f} s: this server edits at most {self.limits.max_seconds:g}")

    def job(self, job_id: str) -> Job:
        if job_id not in self.jobs.jobs:
            raise HTTPException(404, f"{job_id}: no such job")
        return self.jobs.jobs[job_id]

    def report(self, job: Job) -> dict[str, Any]:
        """What a client is told of a job."""
        told = asdict(job)
        told["request"] = {k: Path(v).name if k in MEDIA and v else v for k, v in job.request.items()}
        waits = self.jobs.num_waiting(job) if job.state == "queued" else 0
        return told | {"waits_for": waits}

    async def store(self, request: Request, suffix: str) -> str:
        """Writes a request's body to a file => its id. HTTPException where it is too large."""
        limit, size = self.limits.max_upload_megabytes * 1_000_000, 0
        name = secrets.token_hex(8) + suffix
        with written_whole(self.uploads / name) as part, part.open("wb") as file:
            async for chunk in request.stream():
                size += len(chunk)
                if size > limit:
                    raise HTTPException(413, f"more than {self.limits.max_upload_megabytes} MB; send a shorter file")
                file.write(chunk)
        if size == 0:
            (self.uploads / name).unlink()
            raise HTTPException(422, "the file is empty")
        kept = sorted(self.uploads.iterdir(), key=lambda path: path.stat().st_mtime)
        for old in kept[: max(0, len(kept) - self.limits.max_kept)]:
            old.unlink(missing_ok=True)
        return name


def build_app(service: Service, token: str | None = None) -> FastAPI:
    """The API; with `token` every call needs it, without one only this machine may call."""
    app = FastAPI(title=f"audioldm2_pl: {service.title}", description="Sound of text, pictures and recordings.")

    @app.middleware("http")
    async def guard(request: Request, call_next: Any) -> Response:
        if (refusal := refused(request, token)) is not None:
            return JSONResponse({"error": refusal[1]}, refusal[0])
        return await call_next(request)

    @app.exception_handler(StarletteHTTPException)  # FastAPI's own is one, too
    async def http_error(_: Request, error: StarletteHTTPException) -> JSONResponse:
        return JSONResponse({"error": error.detail}, error.status_code, error.headers)

    @app.exception_handler(RequestValidationError)
    async def invalid(_: Request, error: RequestValidationError) -> JSONResponse:
        first = error.errors()[0]
        where = ".".join(str(word) for word in first["loc"][1:])
        return JSONResponse({"error": f"{where}: {first['msg']}" if where else first["msg"]}, 422)

    @app.exception_handler(UserError)
    async def user_error(_: Request, error: UserError) -> JSONResponse:
        return JSONResponse({"error": str(error)}, 507 if "cannot be written" in str(error) else 422)

    add_job_routes(app, service)

    @app.get("/", response_class=HTMLResponse, include_in_schema=False)
    def page() -> str:
        return (resources.files("audioldm2_pl.serve") / "page.html").read_text(encoding="utf-8")

    @app.get("/model", summary="The model, its limits and how it samples where a request does not say")
    def model() -> dict[str, Any]:
        return {"model": service.title, "limits": asdict(service.limits), "waiting": service.jobs.num_waiting()}

    @app.post("/files", summary="Take a recording, picture or video, as the bytes of the body")
    async def upload(request: Request) -> dict[str, str]:
        suffix = Path(request.headers.get("x-file-name", "")).suffix.lower()
        if suffix not in SUFFIXES:
            raise HTTPException(415, f"the header X-File-Name names a file of {', '.join(SUFFIXES)}")
        return {"id": await service.store(request, suffix)}

    return app


def refused(request: Request, token: str | None) -> tuple[int, str] | None:
    """(status, reason) where a request is not answered."""
    if token is None:  # pages of other sites, and names that they have pointed at this machine, are kept out
        host = request.url.hostname
        if host not in LOCAL_HOSTS or request.headers.get("sec-fetch-site", "none") not in ("same-origin", "none"):
            return 403, "this server answers this machine alone; start it with a token for others"
    elif request.url.path != "/":  # the page itself holds nothing; it asks for the token
        given = request.headers.get("authorization", "").removeprefix("Bearer ")
        if not hmac.compare_digest(given.encode(), token.encode()):
            return 401, "needs the header Authorization: Bearer TOKEN"
    upload = request.url.path == "/files"
    length = request.headers.get("content-length", "")
    if request.method == "POST" and not upload and not (length.isdigit() and int(length) <= MAX_JSON_BYTES):
        return 413, f"a request is JSON of at most {MAX_JSON_BYTES} bytes, with its Content-Length"
    return None


def add_job_routes(app: FastAPI, service: Service) -> None:
    """Jobs: new ones, their state, progress, picture and sound."""

    @app.post("/generate", status_code=202, summary="Make sound of text, or of an uploaded picture, video or recording")
    def generate(body: Annotated[GenerateBody, Body()]) -> dict[str, Any]:  # pyright: ignore[reportInvalidTypeForm]
        return service.report(service.submit(body.model_dump(exclude_unset=True), editing=False))

    @app.post("/edit", status_code=202, summary="Change or continue an uploaded recording, or a finished job's sound")
    def edit(body: Annotated[EditBody, Body()]) -> dict[str, Any]:  # pyright: ignore[reportInvalidTypeForm]
        return service.report(service.submit(body.model_dump(exclude_unset=True), editing=True))

    @app.get("/jobs", summary="The latest jobs, newest first")
    def jobs() -> list[dict[str, Any]]:
        return [service.report(job) for job in list(service.jobs.jobs.values())[-50:][::-1]]

    @app.get("/jobs/{job_id}", summary="A job's state")
    def job(job_id: str) -> dict[str, Any]:
        return service.report(service.job(job_id))

    @app.delete("/jobs/{job_id}", summary="Cancel a job")
    def cancel(job_id: str) -> dict[str, Any]:
        service.jobs.cancel(found := service.job(job_id))
        return service.report(found)

    @app.get("/jobs/{job_id}/events", summary="Server-sent events: the job's state whenever it changes, until it ends")
    def events(job_id: str) -> StreamingResponse:
        return StreamingResponse(changes(service, service.job(job_id)), media_type="text/event-stream")

    @app.get("/jobs/{job_id}/sound", summary="The finished sound")
    def sound(job_id: str, format: Literal["wav", "flac", "mp3"] = "wav") -> Response:
        service.job(job_id)
        path = find_file(service.folder, job_id)
        name = f'attachment; filename="{job_id}.{format}"'
        return Response(in_format(path, format), media_type=TYPES[format], headers={"Content-Disposition": name})

    @app.get("/jobs/{job_id}/log_mel.png", summary="A picture of the sound's log-mel spectrogram")
    def picture(job_id: str) -> Response:
        service.job(job_id)
        return Response(log_mel_picture(find_file(service.folder, job_id)), media_type="image/png")


async def changes(service: Service, job: Job) -> AsyncIterator[str]:
    last = None
    while True:
        told = service.report(job)
        if told != last:
            yield f"data: {json.dumps(told)}\n\n"
        if told["state"] in ENDED:
            return
        last = told
        await asyncio.sleep(0.1)


def in_format(path: Path, name: str) -> bytes:
    """A WAV file's sound in a format, with what it tells of its origin where the format holds that."""
    if name == "wav":
        return path.read_bytes()
    samples, sample_rate = soundfile.read(path, dtype="int16")
    if name == "flac":
        return encode_audio(samples, sample_rate, "FLAC", read_comment(path) or "")
    encoded = io.BytesIO()
    soundfile.write(encoded, samples, sample_rate, format="MP3")
    return encoded.getvalue()


def log_mel_picture(path: Path) -> bytes:
    """A sound's log-mel as a PNG: time to the right, frequency upwards."""
    config = AudioConfig()
    log_mel = LogMel(config)(torch.from_numpy(load_waveform(path, config.sample_rate))[None])[0, 0]  # (F, M)
    shown = ((log_mel + 11.5) / 13).clamp(0, 1).numpy()  # silence is -11.5
    image = Image.fromarray((colormaps["magma"](shown.T[::-1])[..., :3] * 255).astype(np.uint8))
    encoded = io.BytesIO()
    image.resize((min(1_200, max(300, image.width)), 192)).save(encoded, "PNG")
    return encoded.getvalue()
