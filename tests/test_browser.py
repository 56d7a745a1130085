"""The page as people meet it: in a real browser, Debian's Chromium."""

import shutil

import numpy as np
import pandas as pd
import pytest
from PIL import Image
from playwright.sync_api import expect, sync_playwright

from skinlesion.demo import app, page
from skinlesion.demo.result import FOREIGN, find_operating_point, format_share, judge_image
from skinlesion.diagnoses import CLASS_CODES, CLASS_NAMES, DISCLAIMER
from skinlesion.files import read_json
from skinlesion.model.predictor import Predictor

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
pytestmark = pytest.mark.skipif(
    not CHROMIUM, reason="install Chromium to run this; on Debian: apt install chromium"
)
PHONE = {"viewport": {"width": 390, "height": 844}, "is_mobile": True, "has_touch": True}


@pytest.fixture(scope="module")
def predictor(evaluated_run):
    return Predictor.load(evaluated_run)


@pytest.fixture(scope="module")
def demo(evaluated_run, predictor, sample):
    running = app.launch(evaluated_run, predictor, data=sample)
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
        expect(opened.get_by_text(page.WAITING)).to_be_visible()
        return opened

    def is_away(request):
        return request.url.startswith("http") and not request.url.startswith(demo.local_url)

    yield open_page
    for context in contexts:
        context.close()
    assert errors == []


@pytest.fixture
def pictures(sample):
    return sorted(sample.glob("HAM10000_images_part_*/*.jpg"))


@pytest.fixture
def noise(predictor, tmp_path):
    """An image that the model's gate turns away."""
    pixels = np.random.default_rng(0).integers(0, 256, (300, 400, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / "noise.png")
    assert predictor.predict(tmp_path / "noise.png").is_foreign
    return tmp_path / "noise.png"


def upload(opened, path):
    opened.locator(".upload:visible input[type=file]").set_input_files(path)


def judge(predictor, evaluated_run, path):
    metrics = read_json(evaluated_run / "evaluation" / "metrics.json")
    return judge_image(predictor, path, find_operating_point(predictor, metrics))


def expect_verdict(opened, verdict):
    """The page shows this verdict: call, sentence, and the confidences in their order."""
    shown = opened.locator(".verdict")
    expect(shown.locator(".call strong")).to_have_text(verdict.call)
    expect(shown).to_contain_text(verdict.sentence)
    expect(shown.locator("tbody tr")).to_have_count(7)
    for row, candidate in zip(shown.locator("tbody tr").all(), verdict.candidates, strict=True):
        expect(row).to_contain_text(candidate.name)
        expect(row).to_contain_text(format_share(candidate.probability))
        expect(row.get_by_label("yes")).to_have_count(int(candidate.in_prediction_set))


def test_an_upload_gets_its_verdict_and_then_the_heat_map(
    visit, predictor, evaluated_run, pictures
):
    opened = visit()
    upload(opened, pictures[5])
    expect_verdict(opened, judge(predictor, evaluated_run, pictures[5]))
    expect(opened.locator(".verdict")).to_contain_text(DISCLAIMER)
    expect(opened.get_by_text("(Grad-CAM)")).to_be_visible()


def test_a_second_upload_replaces_the_first_and_clearing_empties(
    visit, predictor, evaluated_run, pictures
):
    opened = visit()
    upload(opened, pictures[5])
    expect_verdict(opened, judge(predictor, evaluated_run, pictures[5]))
    opened.get_by_role("button", name="Clear").or_(
        opened.get_by_role("button", name="Remove Image")
    ).first.click()
    expect(opened.get_by_text(page.WAITING)).to_be_visible()
    expect(opened.get_by_text("(Grad-CAM)")).to_be_hidden()
    upload(opened, pictures[70])
    expect_verdict(opened, judge(predictor, evaluated_run, pictures[70]))


def test_an_example_is_chosen_with_the_keyboard_by_its_name(visit):
    opened = visit()
    for name in CLASS_NAMES:
        expect(opened.get_by_role("button", name=name, exact=True)).to_be_visible()
    opened.get_by_role("button", name="Melanoma", exact=True).focus()
    opened.keyboard.press("Enter")
    expect(opened.locator(".verdict tbody tr")).to_have_count(7)


def test_a_foreign_image_is_turned_away_before_any_class(visit, noise):
    opened = visit()
    upload(opened, noise)
    expect(opened.locator(".verdict .call")).to_have_text(FOREIGN)
    expect(opened.locator(".verdict tbody tr").first).to_be_hidden()
    expect(opened.get_by_text("(Grad-CAM)")).to_be_hidden()
    opened.get_by_text("What the network answers all the same").click()
    expect(opened.locator(".verdict tbody tr").first).to_be_visible()


def test_an_upload_that_is_no_image_gets_a_message_in_the_place_of_the_result(
    visit, pictures, tmp_path
):
    (tmp_path / "notes.jpg").write_text("<b>not</b> an image")
    opened = visit()
    upload(opened, tmp_path / "notes.jpg")
    expect(opened.locator(".verdict .call")).to_contain_text("notes.jpg: cannot be read")
    expect(opened.locator(".verdict tbody tr")).to_have_count(0)


def test_the_name_of_a_file_is_never_taken_for_html(visit, tmp_path):
    path = tmp_path / "<img src=x onerror=document.title='hacked'>.jpg"
    path.write_text("not an image")
    opened = visit()
    upload(opened, path)
    expect(opened.locator(".verdict .call")).to_contain_text("cannot be read")
    expect(opened.locator(".verdict img")).to_have_count(0)
    expect(opened).to_have_title(app.TITLE)


def test_several_images_make_a_table_thumbnails_and_a_csv(
    visit, predictor, evaluated_run, pictures, tmp_path
):
    (tmp_path / "notes.jpg").write_text("not an image")
    chosen = [pictures[3], tmp_path / "notes.jpg", pictures[40]]
    opened = visit()
    opened.get_by_role("tab", name="Several").click()
    opened.locator(".files input[type=file]").set_input_files(chosen)
    button = opened.get_by_role("button", name="Download the table")
    expect(button).to_be_visible()
    expect(opened.locator(".pictures:visible button img")).to_have_count(2)
    with opened.expect_download() as download:
        button.click()
    table = pd.read_csv(download.value.path(), keep_default_na=False)
    assert list(table["image"]) == [path.name for path in chosen]
    assert "cannot be read" in table.loc[1, "error"]
    for row, path in ((0, pictures[3]), (2, pictures[40])):
        verdict = judge(predictor, evaluated_run, path)
        assert table.loc[row, "verdict"] == verdict.call
        for candidate in verdict.candidates:
            assert float(table.loc[row, candidate.code]) == pytest.approx(
                candidate.probability, abs=1e-5
            )
    assert set(CLASS_CODES) <= set(table.columns)
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


def test_a_phone_shows_everything_without_scrolling_sideways(
    visit, predictor, evaluated_run, pictures
):
    opened = visit(**PHONE)
    for name in ("One image", "Several", "Model"):
        expect(opened.get_by_role("tab", name=name)).to_be_visible()
    upload(opened, pictures[5])
    expect_verdict(opened, judge(predictor, evaluated_run, pictures[5]))
    expect(opened.get_by_text("(Grad-CAM)")).to_be_visible()
    assert opened.evaluate("document.documentElement.scrollWidth <= window.innerWidth")


def test_two_users_at_once_see_their_own_images(visit, predictor, evaluated_run, pictures):
    one, other = visit(), visit()
    upload(one, pictures[5])
    upload(other, pictures[70])
    expect_verdict(other, judge(predictor, evaluated_run, pictures[70]))
    expect_verdict(one, judge(predictor, evaluated_run, pictures[5]))
