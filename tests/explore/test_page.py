from __future__ import annotations

import base64
import io
import json
from collections.abc import Callable
from typing import Any

import pytest
from PIL import Image

from jepa_lightning.explore.items import Item
from jepa_lightning.explore.subject import Subject

pytest.importorskip("dash")
from jepa_lightning.explore.answers import Answers
from jepa_lightning.explore.page import page
from jepa_lightning.masking import MultiBlock


@pytest.fixture
def client(subject: Callable[..., Subject], items: Callable[..., list[Item]]) -> Any:
    answers = Answers(subject(), items(4), MultiBlock((1, 4, 4), min_keep=2))
    return page(answers, "last.ckpt", {"127.0.0.1", "localhost"}).server.test_client()


def ask(client: Any, outputs: list[str], changed: list[str], inputs: dict[str, Any], state: dict[str, Any]) -> Any:
    """What a browser sends when something on the page has changed."""
    listed = client.get("/_dash-dependencies", headers={"Host": "127.0.0.1"}).get_json()
    (found,) = [one for one in listed if all(f"{name}." in one["output"] for name in outputs)]

    def filled(wanted: list[dict[str, str]], given: dict[str, Any]) -> list[dict[str, Any]]:
        return [{**one, "value": given.get(f"{one['id']}.{one['property']}")} for one in wanted]

    names = found["output"].strip(".").split("...")
    parts = [{"id": name.partition(".")[0], "property": name.partition(".")[2]} for name in names]
    body = {
        "output": found["output"],
        "outputs": parts if found["output"].startswith("..") else parts[0],
        "inputs": filled(found["inputs"], inputs),
        "state": filled(found["state"], state),
        "changedPropIds": changed,
    }
    response = client.post("/_dash-update-component", json=body, headers={"Host": "127.0.0.1"})
    assert response.status_code in (200, 204), response.get_data(as_text=True)
    return response.get_json()["response"] if response.status_code == 200 else None


def test_the_page_loads_nothing_from_elsewhere(client: Any) -> None:
    text = client.get("/", headers={"Host": "127.0.0.1:8050"}).get_data(as_text=True)
    assert "jepa explore" in text
    assert 'src="http' not in text
    assert 'href="http' not in text


@pytest.mark.parametrize(("host", "status"), [("127.0.0.1:8050", 200), ("localhost", 200), ("evil.example", 403)])
def test_only_this_machine_is_answered(client: Any, host: str, status: int) -> None:
    assert client.get("/_dash-layout", headers={"Host": host}).status_code == status


def test_a_click_on_a_patch_changes_what_is_looked_at(client: Any) -> None:
    click = {"points": [{"customdata": 6}]}
    answer = ask(client, ["patch"], ["pca.clickData"], {"pca.clickData": click}, {})
    assert answer["patch"]["data"] == 6
    inputs = {"item.value": 0, "patch.data": 6, "layer.value": 1, "head.value": -1, "opacity.value": 0.5}
    inputs["threshold.value"] = 0.0
    shown = ask(client, ["attends", "similarity"], ["patch.data"], inputs, {})
    assert set(shown) == {"input", "attends", "attended", "perplexity", "pca", "similarity", "followed"}
    assert shown["attends"]["figure"]["layout"]["shapes"][0]["x0"] == 2


def test_a_box_a_click_and_a_sampled_mask_hide_patches_and_a_button_shows_all(client: Any) -> None:
    def hide(changed: str, value: Any, hidden: list[int]) -> Any:
        return ask(client, ["hidden", "note"], [changed], {"item.value": 0, changed: value}, {"hidden.data": hidden})

    box = {"points": [{"customdata": 2}, {"customdata": 3}]}
    assert hide("mask.selectedData", box, [1])["hidden"]["data"] == [1, 2, 3]
    assert hide("mask.clickData", {"points": [{"customdata": 1}]}, [1, 2])["hidden"]["data"] == [2]
    assert len(hide("sample.n_clicks", 1, [])["hidden"]["data"]) >= 2
    assert hide("clear.n_clicks", 1, [1, 2])["hidden"]["data"] == []


def test_what_is_expected_is_shown_or_why_not(client: Any) -> None:
    found = ask(client, ["surprise", "says"], ["hidden.data"], {"hidden.data": [1, 2]}, {"item.value": 0})
    assert found["says"]["children"].startswith("2 hidden patches")
    nothing = ask(client, ["surprise", "says"], ["hidden.data"], {"hidden.data": []}, {"item.value": 0})
    assert "hide some patches" in json.dumps(nothing["surprise"])


def test_a_wrong_file_is_named_and_the_page_lives_on(client: Any) -> None:
    def drop(content: bytes, name: str) -> Any:
        contents = "data:image/png;base64," + base64.b64encode(content).decode()
        return ask(client, ["item", "note"], ["file.contents"], {"file.contents": contents}, {"file.filename": name})

    assert drop(b"nothing", "wrong.png")["note"]["children"].startswith("wrong.png cannot be read as an image")
    buffer = io.BytesIO()
    Image.new("RGB", (1, 1)).save(buffer, "PNG")
    right = drop(buffer.getvalue(), "pixel.png")
    assert right["item"]["value"] == 4
    assert right["item"]["options"][4]["label"] == "pixel.png"
