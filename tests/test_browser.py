"""The page as people meet it: in a real browser, Debian's Chromium."""

import shutil

import numpy as np
import pandas as pd
import pytest
from PIL import Image
from playwright.sync_api import expect, sync_playwright

from skinlesion.data.ham10000 import HAM10000
from skinlesion.demo import app, html
from skinlesion.demo.predict import CalibratedPredictor
from skinlesion.demo.result import format_percent, list_columns, make_table
from skinlesion.diagnoses import DISCLAIMER
from skinlesion.files import read_json

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
pytestmark = pytest.mark.skipif(
    not CHROMIUM, reason="install Chromium to run this; on Debian: apt install chromium"
)
PHONE = {"viewport": {"width": 390, "height": 844}, "is_mobile": True, "has_touch": True}


@pytest.fixture(scope="module")
def predict(evaluated_run):
    """Gives the result of a file, as it is computed without the page."""
    model = CalibratedPredictor(evaluated_run)
    return lambda path: model.predict_file(path).result


@pytest.fixture(scope="module")
def demo(evaluated_run, sample):
    running = app.launch(evaluated_run, data=sample)
    yield running
    running.close()


@pytest.fixture(scope="module")
def browser():
    with sync_playwright() as playwright:
        # Without a sandbox: Chromium has none for root, and the page is our own.
        options = ["--no-sandbox", "--disable-gpu"]
        running = playwright.chromium.launch(executable_path=CHROMIUM, args=options)
        yield running
        running.close()


@pytest.fixture
def visit(browser, demo):
    """Opens the page for one more user; afterwards no page may have had an error or left home."""
    errors, contexts = [], []

    def open_page(**options):
        context = browser.new_context(**options)
        contexts.append(context)
        opened = context.new_page()
        opened.on("console", lambda line: errors.append(line.text) if line.type == "error" else 0)
        opened.on("pageerror", lambda error: errors.append(str(error)))
        opened.on("request", lambda request: errors.append(request.url) if is_away(request) else 0)
        opened.goto(demo.local_url)
        expect(opened.get_by_text(html.WAITING)).to_be_visible()
        return opened

    def is_away(request):
        return request.url.startswith("http") and not request.url.startswith(demo.local_url)

    yield open_page
    for context in contexts:
        context.close()
    assert errors == []


@pytest.fixture
def noise(predict, tmp_path):
    """An image that is out of distribution."""
    pixels = np.random.default_rng(0).integers(0, 256, (300, 400, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / "noise.png")
    assert not predict(tmp_path / "noise.png").is_in_distribution
    return tmp_path / "noise.png"


def upload(opened, path):
    opened.locator(".upload:visible input[type=file]").set_input_files(path)


def expect_result(opened, result):
    """The page shows this result: headline, sentence, and the probabilities in their order."""
    shown = opened.locator(".result")
    expect(shown.locator(".headline strong")).to_have_text(result.headline)
    expect(shown).to_contain_text(result.sentence)
    expect(shown.locator("tbody tr")).to_have_count(7)
    for row, diagnosis in zip(shown.locator("tbody tr").all(), result.diagnoses, strict=True):
        expect(row).to_contain_text(diagnosis.name)
        expect(row).to_contain_text(format_percent(diagnosis.probability))
        expect(row.get_by_label("yes")).to_have_count(int(diagnosis.in_prediction_set))


def test_an_upload_gets_its_result_and_then_the_heat_map(visit, predict, pictures, count_calls):
    opened, expected = visit(), predict(pictures[5])
    calls = count_calls()
    upload(opened, pictures[5])
    expect_result(opened, expected)
    expect(opened.locator(".result")).to_contain_text(DISCLAIMER)
    expect(opened.get_by_text("(Grad-CAM)")).to_be_visible()
    assert calls == {"decoded": 1, "predicted": 1}


def test_a_second_upload_replaces_the_first_and_clearing_empties(visit, predict, pictures):
    opened = visit()
    upload(opened, pictures[5])
    expect_result(opened, predict(pictures[5]))
    opened.get_by_role("button", name="Clear").or_(
        opened.get_by_role("button", name="Remove Image")
    ).first.click()
    expect(opened.get_by_text(html.WAITING)).to_be_visible()
    expect(opened.get_by_text("(Grad-CAM)")).to_be_hidden()
    upload(opened, pictures[50])
    expect_result(opened, predict(pictures[50]))


def test_an_example_is_chosen_with_the_keyboard_by_its_name(visit):
    opened = visit()
    for name in HAM10000.names:
        expect(opened.get_by_role("button", name=name, exact=True)).to_be_visible()
    opened.get_by_role("button", name="Melanoma", exact=True).focus()
    opened.keyboard.press("Enter")
    expect(opened.locator(".result tbody tr")).to_have_count(7)


def test_an_image_out_of_distribution_is_named_before_any_diagnosis(visit, predict, noise):
    opened = visit()
    upload(opened, noise)
    expect(opened.locator(".result .headline")).to_have_text(predict(noise).headline)
    expect(opened.locator(".result tbody tr").first).to_be_hidden()
    expect(opened.get_by_text("(Grad-CAM)")).to_be_hidden()
    opened.get_by_text("Show the predictions anyway").click()
    expect(opened.locator(".result tbody tr").first).to_be_visible()


def test_an_upload_that_is_no_image_gets_a_message_in_the_place_of_the_result(
    visit, pictures, tmp_path
):
    (tmp_path / "notes.jpg").write_text("<b>not</b> an image")
    opened = visit()
    upload(opened, tmp_path / "notes.jpg")
    expect(opened.locator(".result .headline")).to_contain_text("notes.jpg: cannot be read")
    expect(opened.locator(".result tbody tr")).to_have_count(0)


def test_the_name_of_a_file_is_never_taken_for_html(visit, tmp_path):
    path = tmp_path / "<img src=x onerror=document.title='hacked'>.jpg"
    path.write_text("not an image")
    opened = visit()
    upload(opened, path)
    expect(opened.locator(".result .headline")).to_contain_text("cannot be read")
    expect(opened.locator(".result img")).to_have_count(0)
    expect(opened).to_have_title(app.TITLE)


def test_several_images_make_a_table_thumbnails_and_a_csv(
    visit, predict, pictures, count_calls, tmp_path
):
    (tmp_path / "notes.jpg").write_text("not an image")
    chosen = [pictures[3], tmp_path / "notes.jpg", pictures[40]]
    opened = visit()
    opened.get_by_role("tab", name="Several").click()
    calls = count_calls()
    opened.locator(".files input[type=file]").set_input_files(chosen)
    button = opened.get_by_role("button", name="Download the table")
    expect(button).to_be_visible()
    expect(opened.locator(".pictures:visible button img")).to_have_count(2)
    assert calls == {"decoded": 3, "predicted": 2}
    with opened.expect_download() as download:
        button.click()
    table = pd.read_csv(download.value.path(), keep_default_na=False)
    assert list(table.columns) == list_columns(HAM10000)
    assert list(table["file"]) == [path.name for path in chosen]
    assert "cannot be read" in table.loc[1, "error"]
    for row, path in ((0, chosen[0]), (2, chosen[2])):
        (expected,) = make_table([predict(path)], HAM10000).to_dict("records")
        for column, value in expected.items():
            assert table.loc[row, column] in (value, str(value)) or float(
                table.loc[row, column]
            ) == pytest.approx(value, abs=1e-5)
    for path in chosen:
        cell = opened.get_by_role("gridcell", name=path.name, exact=True)
        expect(cell).to_be_visible()


def test_the_model_tab_shows_the_figures_of_the_run(visit, evaluated_run):
    metrics = read_json(evaluated_run / "evaluation" / "metrics.json")
    found = metrics["overall"]["balanced_accuracy"]
    opened = visit()
    opened.get_by_role("tab", name="Model").click()
    figure = f"{found['value']:.3f} [{found['low']:.3f}, {found['high']:.3f}]"
    expect(opened.get_by_text(figure).first).to_be_visible()
    expect(opened.get_by_role("heading", name="Limits")).to_be_visible()
    expect(opened.locator("[role=tabpanel]:visible img")).not_to_have_count(0)


def test_a_phone_shows_everything_without_scrolling_sideways(visit, predict, pictures):
    opened = visit(**PHONE)
    for name in ("One image", "Several", "Model"):
        expect(opened.get_by_role("tab", name=name)).to_be_visible()
    upload(opened, pictures[5])
    expect_result(opened, predict(pictures[5]))
    expect(opened.get_by_text("(Grad-CAM)")).to_be_visible()
    assert opened.evaluate("document.documentElement.scrollWidth <= window.innerWidth")


def test_two_users_at_once_see_their_own_images(visit, predict, pictures):
    one, other = visit(), visit()
    upload(one, pictures[5])
    upload(other, pictures[50])
    expect_result(other, predict(pictures[50]))
    expect_result(one, predict(pictures[5]))
