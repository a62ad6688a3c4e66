"""A visitor without a browser: speaks the page's own protocol over HTTP."""

from __future__ import annotations

import base64
import io
import json
import re
import uuid
from typing import Any

import httpx
import numpy as np
from gradio_client.utils import apply_diff
from PIL import Image


class Refused(Exception):
    """(status, sentence) of an answer other than 200."""


class Visitor:
    """One session of the studio."""

    def __init__(self, address: str):
        self.client = httpx.Client(base_url=address, timeout=600)
        self.session = uuid.uuid4().hex
        self.config = self.client.get("/config").json()
        self.components = {component["id"]: component for component in self.config["components"]}

    def event(self, button: str) -> dict[str, Any]:
        """What a click on the button with this id starts."""
        own = next(i for i, one in self.components.items() if one["props"].get("elem_id") == button)
        return next(one for one in self.config["dependencies"] if [own, "click"] in one["targets"])

    def values(self, button: str, **by_label: Any) -> list[Any]:
        """The inputs of the event, as the page has them at first, some replaced; labels without their spaces."""
        found = []
        for i in self.event(button)["inputs"]:
            props = self.components[i]["props"]
            label = (props.get("label") or "").replace(" ", "_")
            found.append(by_label.pop(label, props.get("value")))
        assert not by_label, f"no such inputs: {by_label}"
        return found

    def join(self, button: str, values: list[Any]) -> str:
        """Ask for the work; returns the number of the event."""
        asked = {"fn_index": self.event(button)["id"], "data": values, "session_hash": self.session}
        answer = self.client.post("/gradio_api/queue/join", json=asked)
        if answer.status_code != 200:
            raise Refused(answer.status_code, answer.json()["detail"])
        return answer.json()["event_id"]

    def answer(self, event: str) -> tuple[str, bool, list[str]]:
        """(the last HTML or the sentence of an error, whether it succeeded, every HTML on the way)."""
        shown: list[str] = []
        state: list[Any] = []
        with self.client.stream("GET", "/gradio_api/queue/data", params={"session_hash": self.session}) as stream:
            for line in stream.iter_lines():
                if not line.startswith("data:"):
                    continue
                message = json.loads(line.removeprefix("data:"))
                if message.get("event_id") != event:
                    continue
                if message["msg"] == "process_generating":
                    data = message["output"]["data"]
                    state = data if not state else [apply_diff(old, new) for old, new in zip(state, data, strict=True)]
                    shown.append(state[0])
                elif message["msg"] == "process_completed":
                    if not message["success"]:
                        return message["output"]["error"], False, shown
                    return shown[-1], True, shown
        raise AssertionError("the answer never came")

    def ask(self, button: str, **by_label: Any) -> tuple[str, bool, list[str]]:
        """Join and wait."""
        return self.answer(self.join(button, self.values(button, **by_label)))

    def upload(self, name: str, data: bytes) -> httpx.Response:
        """Send a file as the page does."""
        return self.client.post("/gradio_api/upload", files={"files": (name, data)})


def pictures_in(html: str) -> np.ndarray:
    """The pictures that can be saved, (n, H, W, 3)."""
    found = re.findall(r'data-save="[^"]+\.png".*?base64,([^"]+)"', html)
    return np.stack([np.asarray(Image.open(io.BytesIO(base64.b64decode(one))).convert("RGB")) for one in found])
