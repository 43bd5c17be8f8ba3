import base64
import dataclasses
import gzip
import hashlib
import io
import json
import re
import shutil
from urllib.parse import quote, urlsplit

import numpy as np
import pytest
import requests
from astropy.io import fits
from PIL import Image

from dlens_tf.inference.bundle import Manifest
from dlens_tf.inference.predictor import Predictor
from dlens_tf.parameters import CATALOGUE
from dlens_tf.serving.server.app import running
from dlens_tf.serving.server.options import ModelConfig
from dlens_tf.serving.server.page import describe_posterior, symbol_parts
from dlens_tf.serving.warmup import example_images

STRANGE = 1000.0
"""A flux above which the stand-in detector finds an image strange."""


@pytest.fixture(scope="module")
def lens(bundle) -> np.ndarray:
    """A lens that the bundle does not hold, float32 [64, 64, 1]."""
    image = example_images(Manifest.read(bundle).recipe, "axion")[0]
    return (1.5 * np.rot90(image)).astype(np.float32)


@pytest.fixture(scope="module")
def url(bundle, local_options):
    """A server of the model "small", which scores images by their brightest pixel."""
    with running(local_options([ModelConfig("small", bundle.parent)])) as server:
        with server.store.get("small") as model:
            plain = model.run

            def run(signature, inputs):
                scores = np.max(inputs["image"], axis=(1, 2, 3)) / np.float32(STRANGE)
                return {**plain(signature, inputs), "ood_score": scores}

            model.run = run
            ood = {"threshold": 1.0, "false_alarms": 0.01}
            model.manifest = dataclasses.replace(model.manifest, ood=ood)
        yield f"http://127.0.0.1:{server.rest_port}"


def npy(array) -> bytes:
    stream = io.BytesIO()
    np.save(stream, array, allow_pickle=True)
    return stream.getvalue()


def fits_file(array, **keywords) -> bytes:
    stream = io.BytesIO()
    fits.PrimaryHDU(array, fits.Header(keywords)).writeto(stream)
    return stream.getvalue()


def png(array) -> bytes:
    stream = io.BytesIO()
    Image.fromarray(np.flipud(array)).save(stream, "PNG")
    return stream.getvalue()


@pytest.fixture
def predict(url):
    def ask(content: bytes = b"", name: str = "lens.npy", **query) -> requests.Response:
        return requests.post(
            f"{url}/page/predict",
            params={"model": "small", **query},
            data=content,
            headers={"X-File-Name": quote(name)},
            timeout=60,
        )

    return ask


def decoded(image: dict) -> np.ndarray:
    return np.frombuffer(base64.b64decode(image["data"]), "<f4").reshape(image["shape"])


def test_the_page_is_one_file_that_asks_nobody_else(url):
    answer = requests.get(url, timeout=60)
    html = answer.text
    assert answer.headers["Content-Type"] == "text/html; charset=utf-8"
    policy = dict(
        item.split(" ", 1) for item in answer.headers["Content-Security-Policy"].split("; ")
    )
    assert policy["default-src"] == "'none'" and policy["connect-src"] == "'self'"
    for tag in ("script", "style"):
        start, end = html.index(f"<{tag}>") + len(tag) + 2, html.index(f"</{tag}>")
        digest = hashlib.sha256(html[start:end].encode()).digest()
        assert policy[f"{tag}-src"] == f"'sha256-{base64.b64encode(digest).decode()}'"
    assert set(re.findall(r"https?://[^\s'\"]+", html)) == {"http://www.w3.org/2000/svg"}
    assert not re.search(r"\bsrc=|@import|url\(|innerHTML", html)
    assert re.findall(r"<html[^>]*>", html) == ['<html lang="en">']


def test_models(url, bundle):
    manifest = Manifest.read(bundle)
    [model] = requests.get(f"{url}/page/models", timeout=60).json()["models"]
    assert (model["name"], model["version"], model["head"]) == ("small", 1, "gaussian")
    assert model["image"] == {
        "shape": [64, 64, 1],
        "pixel_scale": 0.101,
        "pixel_scale_unit": "arcsec",
    }
    assert [p["name"] for p in model["parameters"]] == manifest.parameters.names
    assert [p["unit"] for p in model["parameters"]] == ["log10(eV)", "arcsec"]
    assert model["parameters"][0]["prior"] == {"kind": "uniform", "low": -24.0, "high": -22.0}
    assert model["parameters"][0]["range"] == [-24.0, -22.0]


def test_the_answer_is_the_predictor_s(predict, bundle, lens):
    answer = predict(npy(lens)).json()
    posterior = Predictor.load(bundle).predict(lens)
    np.testing.assert_array_equal(decoded(answer["image"]), lens)
    assert answer["model"] == {"name": "small", "version": 1}
    for p, entry in enumerate(answer["parameters"]):
        np.testing.assert_allclose(entry["median"], posterior.median[0, p], rtol=1e-5)
        np.testing.assert_allclose(entry["mean"], posterior.mean[0, p], rtol=1e-5)
        for level in (68, 95):
            interval = posterior.interval(level / 100)[0, p]
            np.testing.assert_allclose(entry[f"interval_{level}"], interval, rtol=1e-5)
        x, pdf = (np.array(entry["density"][key]) for key in ("x", "pdf"))
        assert (x[0], x[-1]) == tuple(entry["range"]) and (np.diff(x) >= 0.0).all()
        assert 150 < len(x) < 250
        # A density whose half lies below the median.
        masses = np.diff(x) * (pdf[1:] + pdf[:-1]) / 2.0
        assert abs(masses.sum() - 1.0) < 0.01
        assert abs(masses[x[1:] <= entry["median"]].sum() - 0.5) < 0.02
    assert answer["ood"]["is_outside"] is False


def test_every_kind_of_file_gives_the_same(predict):
    rng = np.random.default_rng(0)
    image = rng.integers(0, 200, (64, 64))
    files = {
        "a.npy": npy(image.astype(np.float64)),
        "a.fits": fits_file(image.astype(np.float32), PIXSCALE=0.101),
        "a.fits.gz": gzip.compress(fits_file(image.astype(np.int32), PIXSCALE=0.101)),
        "a.png": png(image.astype(np.uint8)),
        "b.png": png(image.astype(np.uint16)),
    }
    answers = {name: predict(content, name).json() for name, content in files.items()}
    for name, answer in answers.items():
        assert answer["file"] == name
        np.testing.assert_array_equal(decoded(answer["image"])[..., 0], image)
        assert answer["parameters"] == answers["a.npy"]["parameters"]
        assert bool(answer["notes"]) == (".fits" not in name)
    assert "a PNG states no flux unit and no pixel scale" in answers["a.png"]["notes"][0]


HOLED = np.zeros((64, 64), np.float32)
HOLED[3, 4] = np.nan


@pytest.mark.parametrize(
    "name, content, message",
    [
        ("a.npy", npy(np.zeros((60, 64))), "a.npy: shape [60, 64], but the model takes"),
        ("a.npy", npy(HOLED), "a.npy: 1 of 4096 values are NaN"),
        ("a.fits", b"SIMPLE  = nonsense", "a.fits: not a whole FITS file"),
        ("a.txt", b"hello", "a.txt: not a kind of file that is read here"),
        ("a.fits", fits_file(np.zeros((64, 64)), PIXSCALE=0.15), "0.15 arcsec per pixel, but"),
        ("a.npy", npy(np.array([np.eye(64), 1.0], object)), "values are Python objects"),
        ("a.npy", b"", "a.npy: the file is empty"),
        ("", b"", "the file: the file is empty"),
        ("/etc/passwd", b"", "/etc/passwd: the file is empty"),
        ("../\n\0<b>Ω.npy", b"?", "../<b>Ω.npy: not a kind of file"),
    ],
)
def test_one_line_for_what_does_not_fit(predict, name, content, message):
    answer = predict(content, name)
    assert answer.status_code == 400
    assert answer.json().keys() == {"error"}
    assert message in answer.json()["error"] and "\n" not in answer.json()["error"]


def test_no_more_is_read_than_an_image_has(predict, url):
    (model,) = requests.get(f"{url}/page/models", timeout=60).json()["models"]
    for content in (bytes(3 * 2**20), iter([bytes(3 * 2**20)])):  # with a length, and in chunks
        answer = predict(content)
        assert answer.status_code == 413
        error = f"the request is larger than {model['max_bytes']} bytes"
        assert answer.json() == {"error": error}


def test_unknown_models_and_examples(url, predict):
    assert predict(model="nobody").status_code == 404
    assert requests.get(f"{url}/page/examples?model=../1", timeout=60).status_code == 404
    for number in ("8", "-1", "٣", "x" * 99):
        answer = predict(example=number)
        assert answer.status_code == 400
        assert "there is no example" in answer.json()["error"]


def test_other_sites_can_t_ask(url, lens):
    for query in ("", "&example=0"):
        address = f"{url}/page/predict?model=small{query}"
        answer = requests.post(address, npy(lens), timeout=60)
        assert answer.status_code == 400
        assert answer.json() == {"error": "the header X-File-Name is missing"}
    headers = {"Origin": "http://x", "Access-Control-Request-Headers": "X-File-Name"}
    asked = requests.options(address, headers=headers, timeout=60)
    assert asked.status_code == 405
    assert not any(name.startswith("Access-Control") for name in asked.headers)


def test_metrics_know_the_page(url, predict):
    assert predict(example="0").status_code == 200
    assert predict(b"", "a.npy").status_code == 400
    text = requests.get(f"{url}/metrics", timeout=60).text
    labels = 'model="small",protocol="page",signature="serve_density"'
    for code in ("OK", "INVALID_ARGUMENT"):
        assert f'dlens_serving_requests_total{{code="{code}",{labels}}}' in text


def test_examples(url, predict, bundle):
    examples = decoded(requests.get(f"{url}/page/examples?model=small", timeout=60).json())
    np.testing.assert_array_equal(examples, example_images(Manifest.read(bundle).recipe, "axion"))
    by_number, by_file = predict(example="2").json(), predict(npy(examples[2])).json()
    assert by_number["parameters"] == by_file["parameters"]
    assert (by_number["file"], by_number["notes"]) == ("example lens 3", [])


def test_strange_images_are_told(predict):
    bright = np.full((64, 64), 3.0 * STRANGE)
    assert predict(npy(bright)).json()["ood"] == {
        "score": 3.0,
        "threshold": 1.0,
        "false_alarms": 0.01,
        "is_outside": True,
    }


def test_scores_beyond_numbers_and_point_estimates(bundle):
    manifest = dataclasses.replace(
        Manifest.read(bundle), head={"kind": "point"}, ood={"threshold": 1.0, "false_alarms": 0.01}
    )
    outputs = {"mean": np.array([[-23.0, 0.1]]), "ood_score": np.array([np.inf])}
    answer = describe_posterior(manifest, outputs, "x")
    assert (answer["ood"]["score"], answer["ood"]["is_outside"]) == (None, True)
    assert [p["mean"] for p in answer["parameters"]] == [-23.0, 0.1]
    assert not any("density" in p or "median" in p for p in answer["parameters"])
    json.dumps(answer, allow_nan=False)
    del outputs["ood_score"]
    assert describe_posterior(manifest, outputs, "x")["ood"] is None


def test_symbols():
    assert symbol_parts(r"\log_{10} m_\mathrm{axion}") == [
        {"text": "log", "sub": False},
        {"text": "10", "sub": True},
        {"text": " m", "sub": False},
        {"text": "axion", "sub": True},
    ]
    for parameter in CATALOGUE.values():
        text = "".join(part["text"] for part in symbol_parts(parameter.symbol))
        assert not set(text) & set("\\{}_$")


# What follows looks at the page in a browser.


@pytest.fixture(scope="module")
def browser():
    program = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "chrome"))), "")
    program = program or shutil.which("google-chrome")
    if not program:
        pytest.skip("no Chromium or Chrome is installed")
    sync_api = pytest.importorskip("playwright.sync_api")
    with sync_api.sync_playwright() as playwright:
        chromium = playwright.chromium.launch(executable_path=program, args=["--no-sandbox"])
        yield chromium
        chromium.close()


@pytest.fixture
def page(browser, url):
    """The page, ready; whatever it asks must be the server's, and nothing may fail in it."""
    context = browser.new_context(viewport={"width": 1200, "height": 900})
    tab = context.new_page()
    tab.set_default_timeout(60_000)
    asked, failures = [], []
    tab.on("request", lambda request: asked.append(request.url))
    tab.on("pageerror", lambda error: failures.append(str(error)))
    tab.on("console", lambda m: failures.append(m.text) if m.type == "error" else None)
    tab.goto(url)
    tab.get_by_role("button", name="Example lens 1").wait_for()
    yield tab
    context.close()
    assert {urlsplit(address).netloc for address in asked} <= {urlsplit(url).netloc, ""}
    assert [text for text in failures if "Failed to load resource" not in text] == []


DROP = """([name, content]) => {
  const bytes = Uint8Array.from(atob(content), (c) => c.charCodeAt(0));
  const data = new DataTransfer();
  data.items.add(new File([bytes], name));
  for (const kind of ["dragenter", "dragover", "drop"]) {
    document.body.dispatchEvent(
      new DragEvent(kind, { dataTransfer: data, bubbles: true, cancelable: true }));
  }
}"""


def drop(tab, name: str, content: bytes) -> None:
    """Drops a file on the page, as a hand would."""
    tab.evaluate(DROP, [name, base64.b64encode(content).decode()])


def middle_pixel(tab) -> list[int]:
    """Colour of the middle of the image's canvas."""
    return tab.evaluate(
        """() => { const c = document.getElementById("view");
        return [...c.getContext("2d").getImageData(c.width / 2, c.height / 2, 1, 1).data]; }"""
    )


@pytest.mark.slow
def test_a_dropped_file_gives_curves(page, lens, bundle):
    peak = lens.copy()
    peak[30:34, 30:34] = 50.0
    drop(page, "my lens.fits", fits_file(peak[..., 0], PIXSCALE=0.101))
    page.locator(".estimate").first.wait_for()
    posterior = Predictor.load(bundle).predict(peak)
    cards = page.locator(".card")
    assert cards.count() == 2
    for p in range(2):
        card = cards.nth(p)
        shown = card.locator(".estimate").inner_text().replace("−", "-").split()[0]
        assert abs(float(shown) - posterior.median[0, p]) < 0.02
        for part in (".line", ".narrow-area", ".wide-area", ".median", ".prior"):
            assert card.locator(part).count() == 1
        curve = card.get_by_role("img").get_attribute("aria-label")
        assert "median" in curve and "68 % interval" in curve and "prior from" in curve
        assert "68 % interval" in card.inner_text()
    assert page.get_by_text("my lens.fits").is_visible()
    assert middle_pixel(page) == [255, 255, 255, 255]
    page.get_by_label("Colours").select_option("inferno")
    assert middle_pixel(page)[:3] == [252, 255, 164]
    assert page.locator("#outside").is_hidden() and page.locator("#error").is_hidden()


@pytest.mark.slow
def test_from_the_keyboard_alone(page, lens):
    def focused() -> str:
        return page.evaluate(
            "() => document.activeElement.getAttribute('aria-label') || document.activeElement.id"
        )

    def go_to(wanted: str) -> None:
        for _ in range(40):
            if focused() == wanted:
                return
            page.keyboard.press("Tab")
        raise AssertionError(f"{wanted} is not reached by the tab key")

    # Chromium is told in time that choosers are not to be shown; at the key press it may be late.
    page.on("filechooser", lambda chooser: None)
    go_to("file")
    with page.expect_file_chooser() as chooser:
        page.keyboard.press("Enter")
    chooser.value.set_files(
        {"name": "l.npy", "mimeType": "application/octet-stream", "buffer": npy(lens)}
    )
    page.get_by_text("l.npy states no pixel scale").wait_for()
    go_to("Example lens 2")
    assert page.evaluate("() => getComputedStyle(document.activeElement).outlineStyle") == "solid"
    page.keyboard.press("Enter")
    page.get_by_text("example lens 2", exact=True).wait_for()
    go_to("Image of example lens 2, 64 by 64 pixels")
    page.keyboard.press("+")
    page.keyboard.press("+")
    assert page.locator("#zoom").inner_text() == "156 %"
    page.keyboard.press("0")
    assert page.locator("#zoom").inner_text() == "100 %"
    page.keyboard.press("ArrowRight")  # the first points at the middle
    page.keyboard.press("ArrowUp")
    readout = page.locator("#readout").inner_text()
    assert "x 32  y 33  (+0.05″, +0.15″)" in readout
    assert page.locator("#spoken").text_content() == page.locator("#readout").text_content()
    go_to("axis-posterior")
    page.keyboard.press("Space")
    assert page.locator("#axis-posterior").get_attribute("aria-pressed") == "true"
    go_to("download")
    with page.expect_download() as download:
        page.keyboard.press("Enter")
    assert download.value.suggested_filename == "example_lens_2_small.json"
    result = json.loads(download.value.path().read_text())
    assert {"model", "image", "parameters", "ood"} <= result.keys()
    value = decoded(result["image"])[33, 32, 0]
    assert abs(float(readout.split()[1].replace("−", "-")) / value - 1.0) < 1e-3


@pytest.mark.slow
def test_errors_are_told_in_one_line(page, lens):
    alert = page.locator("#error")
    drop(page, "wide.npy", npy(np.zeros((60, 64))))
    alert.wait_for()
    assert alert.get_attribute("role") == "alert"
    assert "wide.npy: shape [60, 64], but the model takes [64, 64, 1]" in alert.inner_text()
    page.get_by_role("button", name="Dismiss").click()
    assert alert.is_hidden()
    drop(page, "<img src=x>.npy", b"")
    page.get_by_text("<img src=x>.npy: the file is empty").wait_for()
    drop(page, "huge.npy", bytes(2 * 2**20))
    page.get_by_text("huge.npy: 2,097,152 bytes").wait_for()
    page.route("**/page/predict*", lambda route: route.abort())
    drop(page, "lens.npy", npy(lens))
    page.get_by_text("The server does not answer").wait_for()
    assert page.locator(".estimate").count() == 0
    page.unroute("**/page/predict*")
    drop(page, "lens.npy", npy(lens))
    page.locator(".estimate").first.wait_for()
    assert alert.is_hidden()


@pytest.mark.slow
def test_strange_images_are_warned_of(page, lens):
    warning = page.locator("#outside")
    drop(page, "bright.npy", npy(lens + 3.0 * STRANGE))
    warning.wait_for()
    assert warning.get_attribute("role") == "alert"
    assert "unlike those the model was trained on" in warning.inner_text()
    drop(page, "lens.npy", npy(lens))
    warning.wait_for(state="hidden")


@pytest.mark.slow
@pytest.mark.parametrize("width", [320, 700, 1600])
def test_nothing_overflows(page, width):
    page.set_viewport_size({"width": width, "height": 800})
    page.get_by_role("button", name="Example lens 1").click()
    page.locator(".estimate").first.wait_for()
    inside = "() => document.documentElement.scrollWidth <= document.documentElement.clientWidth"
    assert page.evaluate(inside)
