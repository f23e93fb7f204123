"""demo/web.py: models, images, predictions, the server, and the page in a browser."""

import importlib
import json
import os
import re
import shutil
import socket
import struct
import sys
import time
import weakref
from pathlib import Path
from types import SimpleNamespace

import cv2
import numpy as np
import pytest
import torch
from mmdet.structures import DetDataSample
from mmengine.config import Config
from mmengine.registry import MODELS, DefaultScope
from mmengine.structures import InstanceData
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
    for name in ('web', 'web_models', 'web_drawing', 'inference'):
        sys.modules.pop(name, None)


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

    def write(content, name='image.png', folder='a1b2'):
        path = tmp_path / 'uploads' / folder / name
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


def test_work_folders_with_other_files(web, make_work_dir, caplog, tmp_path):
    """The config is the newest one, and a checkpoint of another folder is not used."""
    folder = make_work_dir('detection')
    (folder / 'plot.py').write_text('# naïve', encoding='latin-1')
    (source,) = web.find_trained([str(folder)])
    assert source.config == str(folder / 'detection.py')
    (tmp_path / 'other.pth').touch()
    for text, reason in ((str(tmp_path / 'other.pth'), 'other.pth'), ('', 'is empty')):
        (folder / 'last_checkpoint').write_text(text)
        assert not web.find_trained([str(folder)])
        assert f'{folder} is not offered' in caplog.text and reason in caplog.text
    (folder / 'last_checkpoint').write_bytes(b'\xff')
    assert not web.find_trained([str(folder)])


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
    page = web.Page([], None, is_local=False)
    picture, prediction, html, *_, read = page.receive(payload, None, '', 0.3, [])
    assert (picture, prediction) == (None, None)
    assert 'role="alert"' in html and message in html and len(re.findall(r'[.!?]', html)) <= 3
    assert page.finish(payload, picture, read) == (None, [])
    assert not list((tmp_path / 'uploads').iterdir())


def test_an_image_that_is_uploaded_while_another_is_read(web, upload, tmp_path):
    page = web.Page([], None)
    first, second = upload(b'not an image'), upload(noise(8, 8), 'second.png', 'c3d4')
    picture, *_, read = page.receive(first, None, '', 0.3, [])
    value, left = page.finish(second, picture, read)
    assert not left and value is not None  # the second stays on the page
    assert [path.name for path in (tmp_path / 'uploads').iterdir()] == ['c3d4']
    picture, *_, read = page.receive(second, None, '', 0.3, left)
    assert picture.size == (8, 8)
    page.finish(second, picture, read)
    assert not list((tmp_path / 'uploads').iterdir())
    modes = {
        event['targets'][0][1]: event['trigger_mode']
        for event in page.build().config['dependencies']
    }
    assert modes['upload'] == 'always_last'


def test_other_files_of_this_computer_are_refused(web, tmp_path):
    path = tmp_path / 'private.png'
    Image.fromarray(noise(8, 8)).save(path)
    page = web.Page([], None)
    picture, _, html, *_, read = page.receive({'path': str(path)}, None, '', 0.3, [])
    page.finish({'path': str(path)}, picture, read)
    assert 'not an upload' in html and path.is_file()


def test_large_and_rotated_images(web, tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6  # turned by 90 degrees
    Image.fromarray(noise(1000, 1600)).save(tmp_path / 'photo.jpg', exif=exif)
    picture = web.read_image(tmp_path / 'photo.jpg')
    assert picture.size == (1000, 1600) and picture.image.shape == (1280, 800, 3)
    assert picture.notice == 'The image was resized from 1000 x 1600 to 800 x 1280.'


def test_the_size_is_that_of_the_decoder(web, tmp_path):
    """OpenCV takes the last of two sizes in a TIFF file, and Pillow the first."""
    path = tmp_path / 'image.tif'
    Image.fromarray(np.zeros((10, 10), np.uint8)).save(path)
    data = path.read_bytes()
    start = int.from_bytes(data[4:8], 'little')
    count = int.from_bytes(data[start : start + 2], 'little')
    tags = [data[start + 2 + 12 * k : start + 14 + 12 * k] for k in range(count)]
    sizes = [struct.pack('<HHII', tag, 4, 1, side) for tag, side in ((256, 9000), (257, 7000))]
    tags = sorted([*tags, *sizes], key=lambda tag: tag[:2])
    directory = struct.pack('<H', len(tags)) + b''.join(tags) + bytes(4)
    path.write_bytes(data[:4] + struct.pack('<I', len(data)) + data[8:] + directory)
    try:
        assert web.read_image(path).size == (10, 10)
    except UserError as error:
        assert 'megapixels' in str(error) or 'cannot be read' in str(error)


def test_pixels(web, tmp_path):
    """They are those of OpenCV, which reads the training data."""
    for name in ('image.png', 'image.bmp', 'image.tif'):
        Image.fromarray(noise(8, 12)).save(tmp_path / name)
        np.testing.assert_array_equal(
            web.read_image(tmp_path / name).image, cv2.imread(str(tmp_path / name))
        )
    deep = np.arange(96, dtype=np.uint16).reshape(8, 12) * 600
    Image.fromarray(deep).save(tmp_path / 'deep.png')
    np.testing.assert_array_equal(web.read_image(tmp_path / 'deep.png').image[..., 0], deep >> 8)
    damaged = (tmp_path / 'image.png').read_bytes()[:-100]
    (tmp_path / 'damaged.png').write_bytes(damaged)
    with pytest.raises(UserError, match='may be damaged'):
        web.read_image(tmp_path / 'damaged.png')


# ---- predictions ---------------------------------------------------------------------------------


@pytest.mark.parametrize('task', TASKS)
def test_a_visit(web, make_work_dir, upload, tmp_path, task):
    page = web.Page(web.find_trained([str(make_work_dir(task))]), 'cpu')
    assert page.names(TASKS[task]) == [task]
    inputs = (task, '', 0.0)
    payload = upload(noise(48, 64))
    picture, prediction, html, *_, read = page.receive(payload, *inputs, [])
    assert 'alert' not in html and html.count('<img') == 1
    assert re.search(r'\d\.\d\d seconds on the CPU', html) and '<th>class</th>' in html
    assert prediction.image.shape == (480, 640, 3)  # large enough for labels
    page.finish(payload, picture, read)
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
    model = web.Model(str(config), str(folder / 'epoch_1.pth'), 'cpu')
    assert model.locate((64, 128), (0.5, 0.25)) == pytest.approx((15.5, 7.5), abs=0.6)
    assert model.locate((64, 128), (0.3, 0.5)) == pytest.approx((0.3 * 64 - 16, 15.5), abs=1)
    assert model.locate((64, 128), (0.0, 1.0)) == pytest.approx((0, 31), abs=0.6)  # outside


def test_a_dataset_inside_a_wrapper(web, make_work_dir):
    folder = make_work_dir('detection')
    config = folder / 'detection.py'
    wrap = "test_dataloader['dataset'] = dict(type='ConcatDataset', datasets=[{}])\n"
    text = config.read_text() + '\n' + wrap.format("test_dataloader['dataset']")
    config.write_text(text)
    page = web.Page(web.find_trained([str(folder)]), 'cpu')
    picture = web.Picture(noise(48, 64), (64, 48), '')
    prediction, html, *_ = page.predict(picture, 'detection', '', 0.3)
    assert prediction is not None, html


def test_a_segmentor_without_a_resize_reads_the_size_of_its_crops(web):
    model = web.Model.__new__(web.Model)
    model.side, model.scope, sizes = 160, 'mmseg', []
    model.steps = lambda data: sizes.append(data['img'].shape)
    model.prepare(noise(640, 1280))
    assert sizes == [(160, 320, 3)]


def test_published_weights(web, make_work_dir, upload, tmp_path, monkeypatch):
    """They are read from the entered path, and a URL is only opened after a press of Run."""
    (source,) = web.find_trained([str(make_work_dir('detection'))])
    url = 'https://weights.invalid/x.pth'
    page = web.Page([source._replace(checkpoint=url, is_published=True)], 'cpu')
    assert page.choose_model('detection').value == url
    picture, _, html, *_ = page.receive(upload(noise(48, 64)), 'detection', url, 0.3, [])
    assert 'Press Run' in html
    assert 'Press Run' in page.look_inside(picture, 'detection', url, 3, (0.5, 0.5))
    for weights, message in (
        ('', 'Enter the path'),
        ('gone.pth', 'gone.pth&#x27; does not exist'),
        (str(tmp_path / 'runs/detection/detection.py'), 'not a checkpoint'),
    ):
        prediction, html, *_ = page.predict(picture, 'detection', weights, 0.3)
        assert prediction is None and 'role="alert"' in html and message in html
        assert 'Traceback' not in html
    prediction, *_ = page.predict(picture, 'detection', source.checkpoint, 0.3)
    assert prediction is not None
    monkeypatch.setattr(web, 'Model', lambda config, checkpoint, device: page.model or loaded)
    loaded = page.model
    assert page.predict(picture, 'detection', url, 0.3)[0] is not None  # Run was pressed
    assert page.predict_unless_remote(picture, 'detection', url, 0.3)[0] is not None


def test_a_model_that_was_trained_further_is_loaded_again(web, make_work_dir):
    (source,) = web.find_trained([str(make_work_dir('detection'))])
    page = web.Page([source], 'cpu')
    model = weakref.ref(page.load('detection', ''))
    assert page.load('detection', '') is model()
    os.utime(source.checkpoint, ns=(0, 1))
    assert page.load('detection', '') is not model()
    assert model() is None  # two models are not in memory


def test_errors_do_not_show_paths_to_others(web, caplog, tmp_path):
    config = tmp_path / 'private.py'
    sources = [web.Source('mine', 'mmdet', str(config), 'https://me:secret@x.invalid/a', False)]
    picture = web.Picture(noise(8, 8), (8, 8), '')
    html = {}
    for is_local in (True, False):
        page = web.Page(sources, 'cpu', is_local)
        html[is_local] = page.predict(picture, 'mine', '', 0.3)[1]
    assert 'private.py' in html[True] and 'private' not in html[False]
    assert web.REMOTE_ERROR in html[False] and 'private.py' in caplog.text
    assert 'Select a model first' in page.predict(picture, None, '', 0.3)[1]


def test_only_strong_detections_are_kept(web):
    sample = DetDataSample(seg_logits=torch.zeros(2, 8, 8))
    scores = torch.linspace(0, 1, 101)
    sample.pred_instances = InstanceData(scores=scores, labels=torch.arange(101))
    sample = sys.modules['web_models'].smaller(sample)
    assert 'seg_logits' not in sample
    assert sample.pred_instances.labels.tolist() == list(range(100, 50, -1))
    sample.pred_instances.scores *= 0.06
    assert sample.pred_instances.scores.min() < web.MIN_SCORE
    assert sys.modules['web_models'].smaller(sample).pred_instances.scores.min() >= web.MIN_SCORE


def test_an_unexpected_error_is_logged(web, caplog):
    page = web.Page([], None)
    html = page.look_inside(None, None, '', 3, (0, 0))
    assert 'Click a point' in html
    html = page.look_inside(object(), 'gone', '', 3, (0, 0))
    assert 'role="alert"' in html and 'Traceback' not in html
    assert 'Click a point' in page.clear()[-1] and page.clear()[-2] is None
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

    launch.pages = pages
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
        seen['is_local'] = page.is_local
        return SimpleNamespace(block_thread=lambda: None)

    port = str(free_port())
    arguments = (*arguments, '--port', port)
    monkeypatch.setattr(sys, 'argv', ['web.py', str(folder), '--device', 'cpu', *arguments])
    monkeypatch.setattr(web.signal, 'signal', lambda *_: None)
    monkeypatch.setattr(web, 'launch', lambda page, host, port: seen.update(host=host, port=port))
    monkeypatch.setattr(web.Page, 'build', build)
    web.main()
    assert seen['host'] == ('127.0.0.1' if published else '0.0.0.0')
    assert seen['port'] == int(port) and seen['is_local'] is published
    assert seen['names'][0] == 'detection' and (len(seen['names']) > 1) is published


def test_a_port_that_is_in_use(web, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(web.signal, 'signal', lambda *_: None)
    with socket.socket() as sock:
        sock.bind(('127.0.0.1', 0))
        sock.listen()
        port = str(sock.getsockname()[1])
        monkeypatch.setattr(sys, 'argv', ['web.py', '--port', port])
        with pytest.raises(UserError, match=f'port {port} of 127.0.0.1: .*in use'):
            web.main()


def test_addresses(web, monkeypatch):
    port = free_port()
    assert web.find_address('localhost', port) == ('localhost', True)
    assert web.find_address('0.0.0.0', port) == ('0.0.0.0', False)
    for host in ('::1', '[::1]'):
        try:
            assert web.find_address(host, port) == ('[::1]', True)
        except UserError as error:  # a machine without IPv6
            assert 'of ' + host in str(error)
    with pytest.raises(UserError, match='port 99999 of 127.0.0.1: .* must be 0-65535'):
        web.find_address('127.0.0.1', 99999)
    monkeypatch.setattr(socket, 'getaddrinfo', raise_unknown)
    with pytest.raises(UserError, match='of my-host: Name or service not known'):
        web.find_address('my-host', port)


def raise_unknown(*args, **kwargs):
    raise socket.gaierror(socket.EAI_NONAME, 'Name or service not known')


@pytest.mark.parametrize('is_local', [True, False])
def test_the_page_says_where_images_go(web, is_local):
    page = web.Page([], None, is_local).build()
    text = ' '.join(str(block.value) for block in page.blocks.values() if hasattr(block, 'value'))
    assert ('on this computer' in text) is is_local
    assert ('are sent to the computer that runs this page' in text) is not is_local


def test_without_gradio(web, monkeypatch):
    monkeypatch.delitem(sys.modules, 'web')
    monkeypatch.setitem(sys.modules, 'gradio', None)
    with pytest.raises(SystemExit, match=r'install it with pip install "mmvmamba\[web\]"'):
        importlib.import_module('web')


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


SIDES = ('Width', 'Height')
REMOVE = '#upload button[aria-label="Remove Image"]'


@pytest.mark.slow
def test_page_in_a_browser(web, serve, browser, make_work_dir, monkeypatch, tmp_path):
    from selenium.webdriver.support.ui import WebDriverWait

    def send(path):
        wait.until(lambda _: find('input[type=file]'))[0].send_keys(str(path))

    def find(selector):
        return browser.find_elements('css selector', selector)

    def is_upright(images):
        sides = [[image.get_property(f'natural{side}') for image in images] for side in SIDES]
        return sides[0] < sides[1]

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
    # An image that is uploaded during a prediction is predicted after it.
    sizes, predict = [], web.Model.predict

    def slow(model, image):
        sizes.append(image.shape[:2])
        time.sleep(3)
        return predict(model, image)

    monkeypatch.setattr(web.Model, 'predict', slow)
    for k, size in enumerate([(40, 60), (60, 40)]):
        Image.fromarray(noise(*size)).save(tmp_path / f'{k}.png')
    find(REMOVE)[0].click()
    send(tmp_path / '0.png')
    wait.until(lambda _: sizes)
    wait.until(lambda _: find(REMOVE))[0].click()
    send(tmp_path / '1.png')
    wait.until(lambda _: sizes == [(40, 60), (60, 40)])
    wait.until(lambda _: not list((tmp_path / 'uploads').iterdir()))
    wait.until(lambda _: is_upright(find('#result img')))
    foreign = [r for r in browser.requests() if not r.startswith((url, 'data:', 'blob:', 'chrome'))]
    assert not foreign
    browser.quit()
    wait.until(lambda _: not serve.pages[-1].state_holder.session_data)
