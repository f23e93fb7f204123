"""demo/web.py: models, images, predictions, the server, and the page in a browser."""

import importlib
import json
import re
import shutil
import socket
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from mmengine.config import Config
from mmengine.registry import MODELS, DefaultScope
from PIL import Image

import mmvmamba.registry  # noqa: F401  (resolves mmvmamba::)
from mmvmamba.engine.errors import UserError

gr = pytest.importorskip('gradio')

DEMO = Path(__file__).parents[2] / 'demo'
TASKS = {
    'detection': 'Detection',
    'segmentation': 'Segmentation',
    'classification': 'Classification',
}


@pytest.fixture
def web(monkeypatch, tmp_path):
    """Return demo/web.py as a module that keeps uploads in a folder of the test."""
    monkeypatch.syspath_prepend(DEMO)
    monkeypatch.setenv('GRADIO_TEMP_DIR', str(tmp_path / 'uploads'))
    yield importlib.import_module('web')
    sys.modules['web_models'].load_model.cache_clear()


@pytest.fixture
def make_work_dir(request, tmp_path):
    """Return a function that makes the work directory of a task, as a training run leaves it."""

    def make(task):
        cfg = Config.fromfile(request.getfixturevalue(f'{task}_config'))
        torch.manual_seed(0)
        with DefaultScope.overwrite_default_scope(cfg.default_scope):
            model = MODELS.build(cfg.model)
        model.init_weights()
        folder = tmp_path / 'runs' / task
        folder.mkdir(parents=True)
        cfg.dump(folder / f'{task}.py')
        torch.save({'state_dict': model.state_dict()}, folder / 'epoch_1.pth')
        (folder / 'last_checkpoint').write_text(f'/moved/{task}/epoch_1.pth')
        return folder

    return make


@pytest.fixture
def upload(tmp_path):
    """Return a function that uploads an image as gradio does."""

    def write(content, name='image.png'):
        path = tmp_path / 'uploads' / 'a1b2' / name
        path.parent.mkdir(parents=True)
        if isinstance(content, bytes):
            path.write_bytes(content)
        else:
            Image.fromarray(content).save(path)
        return {'path': str(path)}

    return write


def noise(height, width):
    return np.random.default_rng(0).integers(0, 255, (height, width, 3), dtype=np.uint8)


# ---- models and images ---------------------------------------------------------------------------


def test_trained_models_are_found(web, make_work_dir, tmp_path):
    folder = make_work_dir('detection')
    (source,) = web.find_trained([str(tmp_path)])
    assert source[:2] == ('detection', 'mmdet') and not source.is_published
    assert source.checkpoint == str(folder / 'epoch_1.pth')
    shutil.copytree(folder, folder.with_name('second'))
    (folder.with_name('second') / 'best_coco_bbox_mAP_epoch_3.pth').touch()
    _, second = web.find_trained([str(tmp_path)])
    assert second.name == f'detection ({folder.with_name("second")})'
    assert Path(second.checkpoint).name == 'best_coco_bbox_mAP_epoch_3.pth'


def test_published_models(web):
    sources = web.find_published()
    assert {source.package for source in sources} == set(web.TASKS.values())
    for source in sources:
        assert Path(source.config).is_file() and source.checkpoint.startswith('https://')


@pytest.mark.parametrize(
    ('content', 'message'),
    [
        (b'not an image', 'not an image'),
        (b'\x89PNG\r\n\x1a\n' + bytes(100), 'not an image'),
        (noise(10, 210), 'One side is more than 20 times as long as the other (210 x 10)'),
        (np.zeros((6000, 5000), np.uint8), 'The image has 30 megapixels. The limit is 25'),
    ],
)
def test_refused_files(web, upload, tmp_path, content, message):
    payload = upload(content)
    cleared, picture, prediction, html, _ = web.Page([], None).receive(payload, None, '', 0.3)
    assert (cleared, picture, prediction) == (None, None, None)
    assert 'role="alert"' in html and message in html and len(re.findall(r'[.!?]', html)) <= 3
    assert not list((tmp_path / 'uploads').iterdir())


def test_other_files_of_this_computer_are_refused(web, tmp_path):
    path = tmp_path / 'private.png'
    Image.fromarray(noise(8, 8)).save(path)
    *_, html, _ = web.Page([], None).receive({'path': str(path)}, None, '', 0.3)
    assert 'not an upload' in html and path.is_file()


def test_large_and_rotated_images(web, tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6  # turned by 90 degrees
    Image.fromarray(noise(1000, 1600)).save(tmp_path / 'photo.jpg', exif=exif)
    picture = web.read_image(tmp_path / 'photo.jpg')
    assert picture.size == (1000, 1600) and picture.image.shape == (1280, 800, 3)
    assert picture.notice == 'The image was resized from 1000 x 1600 to 800 x 1280.'


# ---- predictions ---------------------------------------------------------------------------------


@pytest.mark.parametrize('task', TASKS)
def test_a_visit(web, make_work_dir, upload, tmp_path, task):
    page = web.Page(web.find_trained([str(make_work_dir(task))]), 'cpu')
    assert page.names(TASKS[task]) == [task]
    inputs = (task, '', 0.0)
    payload = upload(noise(48, 64))
    _, picture, prediction, html, _ = page.receive(payload, *inputs)
    assert 'alert' not in html and html.count('<img') == 1
    assert re.search(r'\d\.\d\d seconds on the CPU', html) and '<th>class</th>' in html
    assert prediction.image.shape == (480, 640, 3)  # large enough for labels
    web.delete(web.path_of(payload))
    assert not list((tmp_path / 'uploads').iterdir())
    inside = page.look_inside(picture, task, '', 3, (0.5, 0.5))
    assert 'alert' not in inside and inside.count('<figure>') == 1 + 5 + 4
    assert 'path 2: columns, top to bottom' in inside
    redrawn = page.redraw(prediction, 1.0)
    if task == 'detection':
        assert 'Nothing has a score above 1.00.' in redrawn
    # The prediction is that of the package's inferencer, at another size.
    path = tmp_path / 'image.png'
    Image.fromarray(noise(48, 64)).save(path)
    (expected,) = as_list(page.load(task, '').inferencer(str(path), return_datasamples=True))
    if task == 'detection':
        boxes = prediction.sample.pred_instances.bboxes / 10
        torch.testing.assert_close(boxes, expected.pred_instances.bboxes, atol=1e-3, rtol=1e-3)
    elif task == 'segmentation':
        labels = prediction.sample.pred_sem_seg.data[:, 5::10, 5::10]
        assert (labels == expected.pred_sem_seg.data).float().mean() > 0.95
    else:
        torch.testing.assert_close(prediction.sample.pred_score, expected.pred_score)


def as_list(results):
    results = results['predictions'] if isinstance(results, dict) else results
    return results if isinstance(results, list) else [results]


def test_a_click_is_located_after_resizing_and_cropping(web, make_work_dir):
    folder = make_work_dir('classification')
    config = folder / 'classification.py'
    steps = "[dict(type='ResizeEdge', scale=32), dict(type='CenterCrop', crop_size=32), "
    text = config.read_text() + f'\ntest_dataloader["dataset"]["pipeline"] = {steps}'
    config.write_text(text + "dict(type='PackInputs')]\n")
    model = web.load_model(str(config), str(folder / 'epoch_1.pth'), 'cpu')
    assert model.locate((64, 128), (0.5, 0.25)) == pytest.approx((15.5, 7.5), abs=0.6)
    assert model.locate((64, 128), (0.3, 0.5)) == pytest.approx((0.3 * 64 - 16, 15.5), abs=1)
    assert model.locate((64, 128), (0.0, 1.0)) == pytest.approx((0, 31), abs=0.6)  # outside


def test_a_segmentor_without_a_resize_reads_the_size_of_its_crops(web):
    model = web.Model.__new__(web.Model)
    model.side, model.scope, sizes = 160, 'mmseg', []
    model.steps = lambda data: sizes.append(data['img'].shape)
    model.prepare(noise(640, 1280))
    assert sizes == [(160, 320, 3)]


def test_published_weights(web, make_work_dir, upload, tmp_path):
    """They are read from the entered path, and a URL is only opened after a press of Run."""
    (source,) = web.find_trained([str(make_work_dir('detection'))])
    url = 'https://weights.invalid/x.pth'
    page = web.Page([source._replace(checkpoint=url, is_published=True)], 'cpu')
    assert page.choose_model('detection').value == url
    _, picture, _, html, _ = page.receive(upload(noise(48, 64)), 'detection', url, 0.3)
    assert 'Press Run' in html
    for weights, message in (
        ('', 'Enter the path'),
        ('gone.pth', 'gone.pth&#x27; does not exist'),
        (str(tmp_path / 'runs/detection/detection.py'), 'not a checkpoint'),
    ):
        prediction, html = page.predict(picture, 'detection', weights, 0.3)
        assert prediction is None and 'role="alert"' in html and message in html
        assert 'Traceback' not in html
    prediction, _ = page.predict(picture, 'detection', source.checkpoint, 0.3)
    assert prediction is not None


def test_an_unexpected_error_is_logged(web, caplog):
    page = web.Page([], None)
    html = page.look_inside(None, None, '', 3, (0, 0))
    assert 'Click a point' in html
    html = page.look_inside(object(), 'gone', '', 3, (0, 0))
    assert 'role="alert"' in html and 'Traceback' not in html
    assert 'Traceback' in caplog.text


# ---- the server ----------------------------------------------------------------------------------


def free_port():
    with socket.socket() as sock:
        sock.bind(('127.0.0.1', 0))
        return sock.getsockname()[1]


@pytest.fixture
def serve(web, monkeypatch):
    """Return a function that serves a page and returns its address."""
    pages = []
    monkeypatch.setattr(web, 'MAX_MEGABYTES', 1)

    def launch(sources):
        pages.append(web.Page(sources, 'cpu').build())
        port = free_port()
        web.launch(pages[-1], '127.0.0.1', port)
        return f'http://127.0.0.1:{port}'

    yield launch
    for page in pages:
        page.close(verbose=False)


def test_server(serve, monkeypatch):
    """Nothing comes from elsewhere, the server asks nobody, and large files are refused."""
    import httpx

    hosts, find = set(), socket.getaddrinfo
    monkeypatch.setattr(socket, 'getaddrinfo', lambda h, *a, **k: hosts.add(h) or find(h, *a, **k))
    url = serve([])
    text = httpx.get(url).text
    assert 'No trained models were found' in text and 'fonts.googleapis' not in text
    config = json.loads(re.search(r'window.gradio_config = (\{.*?\});</script>', text)[1])
    assert config['analytics_enabled'] is False and not config['stylesheets']
    assert not config.get('is_space') and config['max_file_size'] == 2**20
    large = httpx.post(f'{url}/gradio_api/upload', files={'files': ('a.png', bytes(2**21))})
    assert large.status_code == 413
    assert {str(getattr(h, 'decode', lambda h=h: h)()) for h in hosts} <= {'127.0.0.1', 'localhost'}


@pytest.mark.parametrize(('arguments', 'published'), [((), True), (('--host', '0.0.0.0'), False)])
def test_weights_can_be_entered_on_this_computer_only(
    web, make_work_dir, monkeypatch, arguments, published
):
    folder = make_work_dir('detection')
    seen = {}

    def build(page):
        seen['names'] = list(page.sources)
        return SimpleNamespace(block_thread=lambda: None)

    monkeypatch.setattr(sys, 'argv', ['web.py', str(folder), '--device', 'cpu', *arguments])
    monkeypatch.setattr(web.signal, 'signal', lambda *_: None)
    monkeypatch.setattr(web, 'launch', lambda page, host, port: seen.update(host=host, port=port))
    monkeypatch.setattr(web.Page, 'build', build)
    web.main()
    assert seen['host'] == (arguments[1] if arguments else '127.0.0.1') and seen['port'] == 7860
    assert seen['names'][0] == 'detection' and (len(seen['names']) > 1) is published


def test_a_port_that_is_in_use(web, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(web.signal, 'signal', lambda *_: None)
    with socket.socket() as sock:
        sock.bind(('127.0.0.1', 0))
        sock.listen()
        port = str(sock.getsockname()[1])
        monkeypatch.setattr(sys, 'argv', ['web.py', '--port', port])
        with pytest.raises(UserError, match=f'cannot use port {port} of 127.0.0.1'):
            web.main()


def test_a_folder_without_models(web, monkeypatch, tmp_path):
    monkeypatch.setattr(sys, 'argv', ['web.py', str(tmp_path)])
    with pytest.raises(
        UserError, match='must contain work directories with a config and a checkpoint'
    ):
        web.main()


# ---- the page in a browser -----------------------------------------------------------------------


@pytest.fixture
def browser(tmp_path):
    """A headless Chromium in the size of a phone, which records what it requests."""
    webdriver = pytest.importorskip('selenium.webdriver')
    programs = [shutil.which('chromium') or shutil.which('google-chrome')]
    programs.append(shutil.which('chromedriver'))
    if None in programs:
        pytest.skip('there is no Chromium with its chromedriver')
    options = webdriver.ChromeOptions()
    options.binary_location = programs[0]
    for option in ('headless=new', 'no-sandbox', 'disable-gpu', f'user-data-dir={tmp_path}/chrome'):
        options.add_argument(f'--{option}')
    options.set_capability('goog:loggingPrefs', {'performance': 'ALL'})
    driver = webdriver.Chrome(options=options, service=webdriver.ChromeService(programs[1]))
    size = dict(width=390, height=844, deviceScaleFactor=1, mobile=True)
    driver.execute_cdp_cmd('Emulation.setDeviceMetricsOverride', size)
    driver.requests = lambda: [
        message['params']['request']['url']
        for entry in driver.get_log('performance')
        if (message := json.loads(entry['message'])['message'])['method']
        == 'Network.requestWillBeSent'
    ]
    yield driver
    driver.quit()


def test_page_in_a_browser(web, serve, browser, make_work_dir, tmp_path):
    from selenium.webdriver.support.ui import WebDriverWait

    def send(path):
        wait.until(lambda _: find('input[type=file]'))[0].send_keys(str(path))

    def find(selector):
        return browser.find_elements('css selector', selector)

    url = serve(web.find_trained([str(make_work_dir('detection'))]))
    wait = WebDriverWait(browser, 60)
    browser.get(url)
    (tmp_path / 'notes.png').write_text('not an image')
    send(tmp_path / 'notes.png')
    (error,) = wait.until(lambda _: find('#result .error'))
    assert 'This file is not an image' in error.text
    Image.fromarray(noise(48, 64)).save(tmp_path / 'image.png')
    send(tmp_path / 'image.png')
    wait.until(lambda _: find('#result img'))
    wait.until(lambda _: not list((tmp_path / 'uploads').iterdir()))
    find('#upload img')[0].click()
    wait.until(lambda _: len(find('#inside figure img')) == 10)
    width = browser.execute_script('return document.documentElement.scrollWidth')
    assert width == 390, 'the page scrolls sideways on a phone'
    foreign = [r for r in browser.requests() if not r.startswith((url, 'data:', 'blob:', 'chrome'))]
    assert not foreign
